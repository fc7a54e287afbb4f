"""What the processes that read videos are doing, in memory that the training process sees even when they hang.

Python code of a process that hangs in a decoder or in a storage client cannot say where it is; what it noted before
can be read by another process.
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
_SLOT = 1024


@dataclass(frozen=True, slots=True)
class Activity:
    """What one reading process does.

    Attributes:
        worker: number of the loader worker; 0 also where the training process reads.
        pid: its process id, 0 before its first note.
        busy: false while it waits for its batch to be taken.
        what: in words; the last thing it did, while it waits.
        seconds: since when.
    """

    worker: int
    pid: int
    busy: bool
    what: str
    seconds: float

    def __str__(self) -> str:
        who = f"loader worker {self.worker} (pid {self.pid})"
        if not self.pid:
            return f"loader worker {self.worker} has not begun"
        return f"{who} {self.what}" if self.busy else f"{who} at rest after {self.what}"


class ActivityTable:
    """One note per reading process. It travels to loader processes by fork, and by pickling where they are spawned.

    Args:
        workers: loader workers (0: the training process reads).
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.awaited = 0
        """Loader worker whose part of a batch the training process takes next (known to that process)."""
        self._memory = multiprocessing.RawArray("c", max(1, workers) * _SLOT)  # unnamed: nothing is left behind

    def note(self, worker: int, what: str) -> None:
        """Say what this process does from now on; empty: it waits for its batch to be taken."""
        view = memoryview(self._memory).cast("B")[worker * _SLOT : (worker + 1) * _SLOT]
        if not what:
            length = _HEADER.unpack_from(view)[2]
            _HEADER.pack_into(view, 0, os.getpid(), time.monotonic(), length, False)
            return
        text = what.encode()[: _SLOT - _HEADER.size]
        _HEADER.pack_into(view, 0, os.getpid(), time.monotonic(), 0, True)  # a reader sees no text rather than a mix
        view[_HEADER.size : _HEADER.size + len(text)] = text
        _HEADER.pack_into(view, 0, os.getpid(), time.monotonic(), len(text), True)

    def read(self) -> list[Activity]:
        """Every process's note (the clock is that of the machine, the same for all its processes)."""
        view = memoryview(self._memory).cast("B")
        found = []
        for worker in range(max(1, self.workers)):
            slot = bytes(view[worker * _SLOT : (worker + 1) * _SLOT])
            pid, since, length, busy = _HEADER.unpack_from(slot)
            text = slot[_HEADER.size : _HEADER.size + length].decode(errors="replace")
            found.append(Activity(worker, pid, busy, text, time.monotonic() - since if pid else 0.0))
        return found

    def longest(self) -> Activity | None:
        """The note of the process that has been busy with one thing for the longest; None while all wait."""
        return max((one for one in self.read() if one.busy), key=lambda one: one.seconds, default=None)


def activity_writer(board: ActivityTable | None, worker: int) -> Callable[[str], None]:
    """How a reading process notes what it does; without a board nobody asks."""
    return partial(board.note, worker) if board else lambda _: None
