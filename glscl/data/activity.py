"""A table in shared memory that says what each video-reading process is doing.

A process that hangs in a decoder or a storage client cannot say where. The training process reads what it wrote before.
"""

from __future__ import annotations

import multiprocessing
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

_HEADER = struct.Struct("=qdi?")  # pid, since when, length of the text, busy
_ROW_BYTES = 1024


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
        self._rows = max(1, workers)
        self.awaited = 0
        """Loader worker whose share of a batch the training process takes next (known to that process)."""
        self._memory = multiprocessing.RawArray("c", self._rows * _ROW_BYTES)  # unnamed: nothing is left behind

    def note(self, worker: int, what: str) -> None:
        """Write what this process does from now on; empty: it waits for its batch to be taken."""
        view = memoryview(self._memory).cast("B")[worker * _ROW_BYTES : (worker + 1) * _ROW_BYTES]
        if not what:
            length = _HEADER.unpack_from(view)[2]
            _HEADER.pack_into(view, 0, os.getpid(), time.monotonic(), length, False)
            return
        text = what.encode()[: _ROW_BYTES - _HEADER.size]
        _HEADER.pack_into(view, 0, os.getpid(), time.monotonic(), 0, True)  # a reader sees no text rather than a mix
        view[_HEADER.size : _HEADER.size + len(text)] = text
        _HEADER.pack_into(view, 0, os.getpid(), time.monotonic(), len(text), True)

    def read(self) -> list[Activity]:
        """Read every row (the clock is that of the machine, the same for all its processes)."""
        view = memoryview(self._memory).cast("B")
        activities = []
        for worker in range(self._rows):
            row = bytes(view[worker * _ROW_BYTES : (worker + 1) * _ROW_BYTES])
            pid, since, length, busy = _HEADER.unpack_from(row)
            text = row[_HEADER.size : _HEADER.size + length].decode(errors="replace")
            activities.append(Activity(worker, pid, busy, text, time.monotonic() - since if pid else 0.0))
        return activities

    def longest(self) -> Activity | None:
        """The process that has been busy with one task for the longest; None while all wait."""
        return max((one for one in self.read() if one.busy), key=lambda one: one.seconds, default=None)


def activity_writer(table: ActivityTable | None, worker: int) -> Callable[[str], None]:
    """Return the function by which a reading process notes what it does; without a table it does nothing."""
    return partial(table.note, worker) if table else lambda _: None
