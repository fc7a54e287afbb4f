"""`glscl train`: train a run, or continue it where it stopped; test it; write its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glscl.commands._results import print_results
from glscl.data.options import DataConfig
from glscl.evaluation.options import EvaluationConfig
from glscl.options import Options
from glscl.options.flags import check_spelling
from glscl.options.packaged import split_config
from glscl.reporting.console import start_panel
from glscl.system import storage
from glscl.system.environment import check_environment
from glscl.system.ownership import ANOTHER_NAME, owned
from glscl.system.session import cluster_nodes, ray_session
from glscl.training.options import CheckpointConfig, TrainingConfig

if TYPE_CHECKING:
    from glscl.training.config import RunConfig
    from glscl.training.driver.preflight import Preflight

HELP = "train or continue a run:  --config PRESET|FILE.yaml  --a.b value ...  [--dry-run]"
ORDER = 20

ABOUT = """Train a run, or continue it where it stopped.

  --config NAME|FILE.yaml   start from a preset (`glscl presets`) or a YAML file; the options below win over it
  --dry-run                 print the effective configuration, check shards, batch arithmetic and model, start nothing

Defaults shown are those of the preset or file that --config names."""

SECTIONS: dict[str, type[Options]] = {
    "data": DataConfig,
    "training": TrainingConfig,
    "checkpoint": CheckpointConfig,
    "evaluation": EvaluationConfig,
}
"""The sections of a run's configuration that are known without torch."""


def run(words: list[str], program: str) -> str:
    """Check everything that can be checked, then train; a dry run stops before that."""
    check_spelling(split_config(words)[1], SECTIONS)
    dry = "--dry-run" in words
    if not (dry or {"-h", "--help"} & set(words)):
        check_environment()

    from glscl.training.config import run_config, to_yaml

    config = run_config([word for word in words if word != "--dry-run"], program, ABOUT).resolved()

    from glscl.training.driver.machines import with_machines
    from glscl.training.driver.preflight import as_begun, preflight

    config, notes = as_begun(config)
    for note in notes:
        print(note, flush=True)
    config = with_machines(config, cluster_nodes)
    ready = preflight(config, fetch=not dry)
    if dry:
        print(to_yaml(config), end="")
    start_panel(program, ready.facts)
    if dry:
        return "dry run: configuration and data are sound, nothing was started"
    return train_and_report(config, ready)


def train_and_report(config: RunConfig, ready: Preflight) -> str:
    """Train, test, report; ``status.json`` follows what happens. Returns the verdict."""
    from glscl.training.driver.launch import train
    from glscl.training.driver.outputs import REPORT, status_on_failure, write_results, write_status

    where = config.run_directory
    storage.check_writable(where, "--storage")
    with owned(where, ANOTHER_NAME) as owner:
        write_status(where, state="running", verdict="")
        # Also inside the session: to end a cluster takes seconds, and who sent a signal may not wait.
        with status_on_failure(owner.fence), ray_session(), status_on_failure(owner.fence):
            results = train(config, ready, owner)
            owner.fence.check()
            write_results(results, where)
        write_status(where, state="finished", verdict=results["verdict"])
    print_results(results)
    return f"{results['verdict']} report={storage.join(where, REPORT)}"
