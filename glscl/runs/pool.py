"""Doing many cells side by side as Ray tasks, no more at once than all their workers fit on the cluster."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from glscl.data.quarantine import describe_incomplete
from glscl.errors import UserError, one_line
from glscl.evaluation.metrics import MAIN_METRIC
from glscl.runs.cell import Cell, is_finished
from glscl.runs.execution import fits_one_process, run_cell
from glscl.system.nodes import Share, alive_nodes, capacity_of_nodes, check_resources
from glscl.system.ownership import Owner
from glscl.system.progress import Progress, time_left
from glscl.training.checkpoint.format import SELECTION_METRIC
from glscl.training.config import RunConfig
from glscl.training.driver.machines import with_machines
from glscl.training.options import TrainingConfig

_POLL_S = 5.0
_PROGRESS_EVERY_S = 60.0
_MOST_FAILURES = 5  # cells that may fail before no other is started


def concurrent_runs(training: TrainingConfig) -> int:
    """Trainings whose workers all fit on the nodes there are."""
    return capacity_of_nodes(alive_nodes(), training.cpus, training.on_gpu) // training.most_workers


def run_cells(
    cells: Sequence[Cell], owner: Owner, *, kind: str, concurrent: int | None = None, keep_models: bool = False
) -> None:
    """Do every cell that is not finished, as many at once as there is room for, and ``concurrent`` at most.

    Each is a Ray task that starts its own worker group. No more of them run than all their workers fit, so that none
    waits with half of its workers for another's to end. Cells on features have one worker and are done by their task
    itself, which starts none (`fits_one_process`). Nodes that join later are used from then on. Nothing is started
    once the directory that they lie in has another owner. Every line that is printed begins with ``kind``.

    Raises:
        UserError: cells failed of bad input; names the first and says how to go on.
        RuntimeError: cells failed of something else.
        TakenOverError: another command owns the directory now.
    """
    pending = deque(cell for cell in cells if not is_finished(cell))
    finished = len(cells) - len(pending)
    print(f"{kind}: {finished} of {len(cells)} cells are finished, {len(pending)} to do", flush=True)
    if not pending:
        return
    config = with_machines(pending[0].config, alive_nodes, alone=False)
    training = config.training
    pool = _Pool(pending, len(cells), config, concurrent or len(cells), kind, keep_models)
    share = Share(training.most_workers, training.on_gpu, training.cpus, config.data.loaders)
    print(f"{kind}: workers of a cell: {share}; {pool.capacity()} cells at once", flush=True)
    check_resources(training.most_workers, training.cpus, training.on_gpu, training.wait_for_nodes_s)
    pool.run(owner)


class _Pool:
    """Cells under way, ``total`` with the finished ones; ``config`` is any one's, all have equally many workers."""

    def __init__(
        self, pending: deque[Cell], total: int, config: RunConfig, most: int, kind: str, keep_models: bool
    ) -> None:
        import ray

        training = config.training
        self._here = fits_one_process(config)
        own = {"num_cpus": training.cpus, "num_gpus": int(training.on_gpu)} if self._here else {"num_cpus": 0}
        self._task = ray.remote(**own, max_retries=2, scheduling_strategy="SPREAD")(_run_task)
        self._pending, self._total, self._training = pending, total, training
        self._most, self._keep_models, self._kind = most, keep_models, kind
        self._before = self._finished = total - len(pending)
        self._seconds = 0.0
        self._running: dict[Any, Cell] = {}
        self._failures: list[tuple[Cell, BaseException]] = []
        self._began = self._last_progress = time.monotonic()

    def capacity(self) -> int:
        """Cells that may run at once now."""
        return max(1, min(concurrent_runs(self._training), self._most))

    def run(self, owner: Owner) -> None:
        """Do them all; raises as `run_cells`."""
        import ray

        with Progress(self._kind, self._total, "cells", done=self._finished, lines=False) as progress:
            while self._pending or self._running:
                owner.check()
                self._start()
                if not self._running:
                    break
                ended, _ = ray.wait(list(self._running), num_returns=1, timeout=_POLL_S)
                self._print_progress()
                for reference in ended:
                    self._collect(reference)
                progress.reach(self._finished)
        self._raise_failures()

    def _start(self) -> None:
        while self._pending and len(self._running) < self.capacity() and len(self._failures) < _MOST_FAILURES:
            cell = self._pending.popleft()
            self._running[self._task.remote(cell, self._keep_models, self._here)] = cell

    def _collect(self, reference: Any) -> None:
        import ray

        cell = self._running.pop(reference)
        try:
            seconds, scores = ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            self._failures.append((cell, cause if isinstance(cause, BaseException) else error))
            self._print(f"FAILED {cell.label}: {one_line(self._failures[-1][1])}")
            return
        self._finished += 1
        self._seconds += seconds
        mean = self._seconds / (self._finished - self._before)
        left = mean * (len(self._pending) + len(self._running)) / self.capacity()
        self._print(
            f"{self._finished}/{self._total} {cell.label}: {scores} "
            f"({seconds:.0f} s, about {max(1, round(left / 60))} min left)"
        )

    def _print_progress(self) -> None:
        now = time.monotonic()
        if now - self._last_progress >= _PROGRESS_EVERY_S:
            self._last_progress = now
            left = time_left(now - self._began, self._finished - self._before, self._total - self._before)
            self._print(f"{self._finished}/{self._total} cells, {len(self._running)} running{left}")

    def _raise_failures(self) -> None:
        if not self._failures:
            return
        first, reason = self._failures[0]
        bad_input = all(isinstance(error, UserError) for _, error in self._failures)
        raise (UserError if bad_input else RuntimeError)(
            f"{len(self._failures)} cells failed and {len(self._pending)} were not started; the first was "
            f"{first.label} ({first.directory}): {one_line(reason)}. The same command goes on with what is not finished"
        )

    def _print(self, text: str) -> None:
        print(f"{self._kind}: {text}", flush=True)


def _run_task(cell: Cell, keep_model: bool, here: bool) -> tuple[float, str]:
    """Do a cell in a process of the cluster; returns its seconds and scores, everything else is in ``cell.json``."""
    result = run_cell(cell, keep_model, here=here)
    tests = ", ".join(f"{test.domain} {MAIN_METRIC}={test.text_to_video[MAIN_METRIC]:.1f}" for test in result.tests)
    scores = tests or f"held-out {MAIN_METRIC}={result.validation[SELECTION_METRIC]:.1f}"
    missing = describe_incomplete(result.incomplete)
    return result.seconds, f"{scores}; incomplete: {missing}" if missing else scores
