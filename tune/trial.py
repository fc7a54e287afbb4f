"""One trial: its trainings, as `glscl train` does them, and a report to Ray Tune at every scored step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from glscl.errors import UserError, one_line
from glscl.runs.execution import run_cell
from glscl.system import storage
from tune.objective import build_cells, build_runs, count_multiply_adds, read_history, trials_folder
from tune.setup import Setup
from tune.space import Values
from tune.trials import read_record, write_record

_POLL_S = 1.0
_REMOTE_POLL_S = 5.0


def run_trial(setup: Setup, name: str, values: Values, report: Callable[[dict[str, Any]], object]) -> None:
    """Do a trial, or go on with it; one that has ended only reports how.

    The last step is reported once everything of the trial is on disk: the schedulers may end it then.

    Args:
        setup: the sweep's.
        name: of the trial, and of its folder.
        values: of the searched keys.
        report: takes a scored step as plain values.

    Raises:
        UserError: a training cannot be done with these values, or stopped (a loss that is no number, for one).
    """
    began = time.monotonic()
    sweep = setup.sweep
    folder = storage.join(trials_folder(sweep), name)
    configs = build_runs(sweep, setup.sets, folder, values, sweep.seed)
    cost = {} if sweep.cost == "none" else {"cost": count_multiply_adds(next(iter(configs.values())))}
    record = read_record(sweep, name)
    if record is not None:
        if record.error:
            raise UserError(record.error)
        for score in record.history:
            report(score.to_row() | cost)
        return
    # What stopped trials held comes back a little later than they end, and Ray Train's own patience is a minute.
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
            for score in read_history(sweep, configs):
                if score.step < setup.steps and score.step not in reported:
                    reported.add(score.step)
                    report(score.to_row() | cost)
    except UserError as error:
        write_record(sweep, name, values, read_history(sweep, configs), time.monotonic() - began, one_line(error))
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    scores = read_history(sweep, configs)
    write_record(sweep, name, values, scores, time.monotonic() - began, "")
    for score in scores:
        if score.step not in reported:
            report(score.to_row() | cost)
