"""`glscl train`: train a run, or continue it where it stopped; test it; write its report."""

from glscl.data.options import DataConfig
from glscl.evaluation.options import EvaluationConfig
from glscl.options import Options
from glscl.options.flags import check_spelling
from glscl.options.packaged import split_config
from glscl.reporting.console import start_panel
from glscl.system.environment import check_environment
from glscl.training.options import CheckpointConfig, TrackingConfig, TrainingConfig

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
    "tracking": TrackingConfig,
}
"""The sections of a run's configuration that are known without torch."""
OTHER_SECTIONS = ("model", "loss")


def run(words: list[str], program: str) -> str:
    """Check everything that can be checked, then train; a dry run stops before that."""
    check_spelling(split_config(words)[1], SECTIONS, OTHER_SECTIONS)
    dry = "--dry-run" in words
    if not (dry or {"-h", "--help"} & set(words)):
        check_environment()

    from glscl.training.config import run_config, to_yaml

    config = run_config([word for word in words if word != "--dry-run"], program, ABOUT).resolved()

    from glscl.commands._runs import train_and_report
    from glscl.system.session import cluster_nodes
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
