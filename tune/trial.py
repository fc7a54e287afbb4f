"""What one trial does: its trainings, as `glscl train` does them, and a report to Ray Tune at every scored step."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from glscl.errors import UserError, one_line
from glscl.study.grid import Sets
from glscl.system import storage
from tune.objective import Score, cells, folds, history, multiply_adds, runs, trials_folder
from tune.options import SweepConfig

RESULT = "trial.json"
_POLL_S = 1.0
_REMOTE_POLL_S = 5.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What every trial of a sweep is given.

    Attributes:
        sweep: the sweep.
        sets: shard sets of its domains.
        steps: length of a training.
        first: step of a training's first scoring.
    """

    sweep: SweepConfig
    sets: Mapping[str, Sets]
    steps: int
    first: int


def read_trial(sweep: SweepConfig, name: str) -> dict[str, Any] | None:
    """What a trial left when it ended (``values``, ``history``, ``seconds``, ``error``), or None."""
    where = storage.join(trials_folder(sweep), name, RESULT)
    return storage.read_json(where) if storage.exists(where) else None


def run_trial(setup: Setup, name: str, values: Mapping[str, Any], report: Any) -> None:
    """Do a trial, or go on with it; one that has ended only reports how.

    The last step is reported once everything of the trial is on disk: the schedulers may end it then.

    Args:
        setup: the sweep's.
        name: of the trial, and of its folder.
        values: of the searched keys.
        report: takes a scored step as a mapping.

    Raises:
        UserError: a training cannot be done with these values, or stopped (a loss that is no number, for one).
    """
    from glscl.study.cell import run_cell

    began = time.monotonic()
    sweep = setup.sweep
    folder = storage.join(trials_folder(sweep), name)
    configs = runs(sweep, setup.sets, folder, values, sweep.seed)
    cost = {} if sweep.cost == "none" else {"cost": multiply_adds(next(iter(configs.values())))}
    done = read_trial(sweep, name)
    if done is not None:
        if done["error"]:
            raise UserError(done["error"])
        for row in done["history"]:
            report(row | cost)
        return
    # What stopped trials held comes back a little later than they end, and Ray Train's own patience is a minute.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
    keep = sweep.objective != "leave_one_domain_out"
    reported: set[int] = set()
    pool = ThreadPoolExecutor(len(configs))
    try:
        trainings = {pool.submit(run_cell, cell, keep) for cell in cells(sweep, configs, name, "trial", sweep.seed)}
        waiting = trainings
        while waiting:
            ended, waiting = wait(
                waiting,
                _REMOTE_POLL_S if storage.is_remote(folder) else _POLL_S,
                return_when=FIRST_EXCEPTION,
            )
            for training in ended:
                training.result()
            for score in history(sweep, configs):
                if score.step < setup.steps and score.step not in reported:
                    reported.add(score.step)
                    report(score.row() | cost)
    except UserError as error:
        write_trial(sweep, name, values, history(sweep, configs), time.monotonic() - began, one_line(error))
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    scores = history(sweep, configs)
    write_trial(sweep, name, values, scores, time.monotonic() - began, "")
    for score in scores:
        if score.step not in reported:
            report(score.row() | cost)


def write_trial(
    sweep: SweepConfig, name: str, values: Mapping[str, Any], scores: Sequence[Score], seconds: float | None, error: str
) -> None:
    """Mark a trial as ended: finished, stopped or, with an ``error``, failed for good."""
    storage.write_json(
        storage.join(trials_folder(sweep), name, RESULT),
        {
            "values": dict(values),
            "history": [score.row() for score in scores],
            "seconds": None if seconds is None else round(seconds, 2),
            "error": error,
        },
    )


def run_directories(sweep: SweepConfig, name: str) -> list[str]:
    """Run directories of a trial's trainings."""
    return [storage.join(trials_folder(sweep), name, fold) for fold in folds(sweep)]
