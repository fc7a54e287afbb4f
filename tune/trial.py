"""One trial: its trainings, as `glscl train` does them, and a report to Ray Tune at every scored step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence, Set
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from typing import Any

from glscl.errors import UserError, one_line
from glscl.runs.execution import run_cell
from glscl.system import storage
from tune.objective import Score, Setup, build_cells, build_runs, count_multiply_adds, read_history, trials_folder
from tune.space import Values
from tune.trials import read_record, write_record

_POLL_S = 1.0
_REMOTE_POLL_S = 5.0


def run_trial(setup: Setup, name: str, values: Values, report: Callable[[dict[str, Any]], object]) -> None:
    """Do a trial, or go on with it; one that has ended only reports how.

    The last step is reported once everything of the trial is on disk: the schedulers may end it then. ``report`` takes
    a scored step as plain values.

    Raises:
        UserError: a training cannot be done with these values, or stopped (a loss that is no number, for one).
    """
    began = time.monotonic()
    sweep = setup.sweep
    folder = storage.join(trials_folder(sweep), name)
    configs = build_runs(sweep, setup.sets, folder, values, sweep.seed)
    cost = {} if sweep.cost == "none" else {"cost": count_multiply_adds(next(iter(configs.values())))}
    if record := read_record(sweep, name):
        if record.error:
            raise UserError(record.error)
        _report_new(record.history, set(), cost, report)
        return
    # The resources of stopped trials come back a little after they end; Ray Train by itself waits one minute.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
    keep_models = sweep.objective != "leave_one_domain_out"
    reported: set[int] = set()
    pool = ThreadPoolExecutor(len(configs))
    try:
        cells = build_cells(sweep, configs, name, "trial", sweep.seed)
        trainings = {pool.submit(run_cell, cell, keep_models) for cell in cells}
        while trainings:
            poll_s = _REMOTE_POLL_S if storage.is_remote(folder) else _POLL_S
            ended, trainings = wait(trainings, poll_s, return_when=FIRST_EXCEPTION)
            for training in ended:
                training.result()
            scores = read_history(sweep, configs)
            reported |= _report_new([score for score in scores if score.step < setup.steps], reported, cost, report)
    except UserError as error:
        write_record(sweep, name, values, read_history(sweep, configs), time.monotonic() - began, one_line(error))
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    scores = read_history(sweep, configs)
    write_record(sweep, name, values, scores, time.monotonic() - began, "")
    _report_new(scores, reported, cost, report)


def _report_new(
    scores: Sequence[Score], reported: Set[int], cost: dict[str, int], report: Callable[[dict[str, Any]], object]
) -> set[int]:
    """Report the scores of steps that were not reported before; return these steps."""
    new = [score for score in scores if score.step not in reported]
    for score in new:
        report(asdict(score) | cost)
    return {score.step for score in new}
