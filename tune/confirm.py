"""The winner against the default configuration: trained anew with seeds that the search did not use, same budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glscl.study.grid import Cell
from glscl.study.run import run_cells
from glscl.system import storage
from glscl.system.ownership import Owner
from tune.objective import ALL, cells, history, run_on, runs
from tune.options import SweepConfig
from tune.trial import Setup

FILE = "confirmation.json"
FOLDER = "confirmation"
WINNER, DEFAULT = "winner", "default"


def confirm(setup: Setup, values: Mapping[str, Any], owner: Owner) -> None:
    """Train both with every seed, unless that is done, and write their scores; Ray must be running.

    Args:
        setup: the sweep's.
        values: the winner's.
        owner: of the sweep's directory.

    Raises:
        UserError: trainings failed; the same command goes on.
    """
    sweep = setup.sweep
    if not sweep.confirm_seeds:
        return
    seeds = [sweep.seed + 1 + number for number in range(sweep.confirm_seeds)]
    found: list[Cell] = []
    scores: dict[str, list[dict[str, Any]]] = {WINNER: [], DEFAULT: []}
    configs = {}
    for seed in seeds:
        for variant, own in ((WINNER, values), (DEFAULT, {})):
            folder = storage.join(sweep.directory, FOLDER, f"{variant}.s{seed}")
            configs[variant, seed] = runs(sweep, setup.sets, folder, own, seed)
            found += cells(sweep, configs[variant, seed], variant, "confirmation", seed)
    run_cells(found, owner, concurrent=sweep.concurrent, kind=sweep.kind)
    for (variant, seed), own_runs in configs.items():
        scores[variant].append(history(sweep, own_runs)[-1].row() | {"seed": seed})
    owner.fence.check()
    storage.write_json(storage.join(sweep.directory, FILE), scores)


def read_confirmation(sweep: SweepConfig) -> dict[str, list[dict[str, Any]]] | None:
    """Scores of both, by seed; None where they are not there (yet)."""
    where = storage.join(sweep.directory, FILE)
    return storage.read_json(where) if storage.exists(where) else None


def train_on_all(setup: Setup, values: Mapping[str, Any], owner: Owner) -> str:
    """Train the winner's values on all domains, where trials always left one out; returns the run directory."""
    sweep, every = setup.sweep, tuple(setup.sweep.domains)
    folder = storage.join(sweep.directory, "best")
    config = run_on(sweep, setup.sets, folder, ALL, values, sweep.seed, every, every)
    run_cells(cells(sweep, {ALL: config}, WINNER, "best", sweep.seed), owner, keep_models=True, kind=sweep.kind)
    return config.run_directory
