"""A table in shared memory that says what each video-reading process is doing.

A process that hangs in a decoder or a storage client cannot say where. The training process reads what it wrote before.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

_ROW = np.dtype([("pid", "i8"), ("since", "f8"), ("busy", "?"), ("what", "S1000")])


@dataclass(frozen=True, slots=True)
class Activity:
    """What one reading process is doing."""

    worker: int  # number of the loader worker; 0 also where the training process reads
    pid: int  # 0 before its first note
    busy: bool  # false while it waits for its batch to be taken
    what: str  # the current task in words; while it waits, the last one
    seconds: float  # time since the task began

    def __str__(self) -> str:
        who = f"loader worker {self.worker} (pid {self.pid})"
        if not self.pid:
            return f"loader worker {self.worker} has not begun"
        return f"{who} {self.what}" if self.busy else f"{who} at rest after {self.what}"


class ActivityTable:
    """One row per loader worker, or one for the training process; travels by fork, and by pickling where they spawn."""

    def __init__(self, workers: int) -> None:
        self.awaited = 0
        """Loader worker whose share of a batch the training process takes next (known to that process)."""
        self._memory = multiprocessing.RawArray("c", max(1, workers) * _ROW.itemsize)  # unnamed: nothing is left behind

    def _rows(self) -> npt.NDArray[np.void]:
        return np.frombuffer(self._memory, _ROW)

    def note(self, worker: int, what: str) -> None:
        """Write what this process does from now on; empty: it waits for its batch to be taken."""
        row = self._rows()[worker : worker + 1]
        row["pid"], row["since"], row["busy"] = os.getpid(), time.monotonic(), bool(what)
        if what:
            row["what"] = b""  # a reader sees the beginning of a text rather than a mix of two
            row["what"] = what.encode()

    def read(self) -> list[Activity]:
        """Read every row (the clock is that of the machine, the same for all its processes)."""
        activities = []
        for worker, (pid, since, busy, what) in enumerate(self._rows().tolist()):
            seconds = time.monotonic() - since if pid else 0.0
            activities.append(Activity(worker, pid, busy, what.decode(errors="replace"), seconds))
        return activities

    def longest(self) -> Activity | None:
        """The process that has been busy with one task for the longest; None while all wait."""
        return max((one for one in self.read() if one.busy), key=lambda one: one.seconds, default=None)


def activity_writer(table: ActivityTable | None, worker: int) -> Callable[[str], None]:
    """Return the function by which a reading process notes what it does; without a table it does nothing."""
    return partial(table.note, worker) if table else lambda _: None
