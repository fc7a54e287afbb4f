"""The winner of a sweep: a configuration file for `glscl train`, its model, and its comparison with the default.

Both are trained anew with seeds that the search did not use, with the same budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter

from glscl.evaluation.saved import FOLDER
from glscl.runs.cell import Cell
from glscl.runs.pool import run_cells
from glscl.system import storage
from glscl.system.ownership import Owner
from glscl.training.config import RunConfig, to_yaml
from tune.objective import ALL, Score, Setup, build_cells, build_run_on_all, build_runs, read_history, trials_folder
from tune.options import SweepConfig
from tune.space import Values
from tune.trials import Trial

BEST = "best.yaml"
CONFIRMATION = "confirmation.json"
WINNER, DEFAULT = "winner", "default"


@dataclass(frozen=True, slots=True)
class SeedScore(Score):
    """The last score of a trial's trainings with one seed."""

    seed: int


SeedScores = Mapping[str, list[SeedScore]]
"""`WINNER` and `DEFAULT` -> their scores, by seed."""
_SCORES = TypeAdapter(dict[str, list[SeedScore]])


def write_best(setup: Setup, best: Trial, owner: Owner) -> None:
    """Write the winner as a configuration file for `glscl train`, and its model; Ray must be running."""
    sweep = setup.sweep
    assert best.last is not None
    config = build_run_on_all(sweep, setup.sets, storage.resolve(sweep.storage), f"{sweep.name}-best", best.values)
    scores = ", ".join(f"{name} {score:.2f}" for name, score in best.last.domains.items())
    lines = [
        f"Winner of the sweep {sweep.name}: trial {best.name}, {sweep.objective.replace('_', ' ')} of {sweep.metric} "
        f"on held-out parts {best.last.objective:.2f} at step {best.last.step} ({scores})",
        *(f"  {key} = {value}" for key, value in best.values.items()),
        f"Start:   glscl train --config {storage.join(sweep.directory, BEST)}",
    ]
    text = "".join(f"# {line}\n" for line in lines) + to_yaml(config)
    storage.write_bytes(storage.join(sweep.directory, BEST), text.encode())
    if sweep.objective == "leave_one_domain_out":
        source = _train_on_all(setup, best.values, owner)
    else:
        source = storage.join(trials_folder(sweep), best.name, ALL)
    for name in storage.list_names(storage.join(source, FOLDER)):
        data = storage.read_bytes(storage.join(source, FOLDER, name))
        storage.write_bytes(storage.join(sweep.directory, FOLDER, name), data)


def read_best(sweep: SweepConfig) -> str:
    """Read the text of the winner's configuration file; empty while there is none."""
    where = storage.join(sweep.directory, BEST)
    return storage.read_bytes(where).decode() if storage.exists(where) else ""


def _train_on_all(setup: Setup, values: Values, owner: Owner) -> str:
    """Train the winner's values on all domains, where trials always left one out; returns the run directory."""
    sweep = setup.sweep
    config = build_run_on_all(sweep, setup.sets, storage.join(sweep.directory, "best"), ALL, values)
    cells = build_cells(sweep, {ALL: config}, WINNER, "best", sweep.seed)
    run_cells(cells, owner, kind=sweep.kind, keep_models=True)
    return config.run_directory


def confirm(setup: Setup, values: Values, owner: Owner) -> None:
    """Train the winner of these values and the default with every seed, unless that is done, and write their scores.

    Ray must be running.

    Raises:
        UserError: trainings failed; the same command goes on.
    """
    sweep = setup.sweep
    if not sweep.confirm_seeds:
        return
    cells: list[Cell] = []
    configs: dict[tuple[str, int], dict[str, RunConfig]] = {}
    for seed in range(sweep.seed + 1, sweep.seed + 1 + sweep.confirm_seeds):
        for variant, of_variant in ((WINNER, values), (DEFAULT, {})):
            folder = storage.join(sweep.directory, "confirmation", f"{variant}.s{seed}")
            configs[variant, seed] = build_runs(sweep, setup.sets, folder, of_variant, seed)
            cells += build_cells(sweep, configs[variant, seed], variant, "confirmation", seed)
    run_cells(cells, owner, kind=sweep.kind, concurrent=sweep.concurrent)
    scores: dict[str, list[SeedScore]] = {WINNER: [], DEFAULT: []}
    for (variant, seed), runs in configs.items():
        last = read_history(sweep, runs)[-1]
        scores[variant].append(SeedScore(last.step, last.objective, last.domains, seed))
    owner.fence.check()
    storage.write_json(storage.join(sweep.directory, CONFIRMATION), _SCORES.dump_python(scores))


def read_confirmation(sweep: SweepConfig) -> SeedScores | None:
    """Read the scores of both; None where they do not exist (yet)."""
    where = storage.join(sweep.directory, CONFIRMATION)
    return _SCORES.validate_python(storage.read_json(where)) if storage.exists(where) else None
