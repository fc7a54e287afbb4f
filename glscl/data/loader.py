"""Data loader processes: their start, how their errors reach the reader, and the message when one dies.

Torch packs an error of a loader process into a message with a traceback, and knows only that a process was killed.
Here errors travel as items in the place of a batch, and the message of a dead process names what it was doing.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch.utils.data import get_worker_info

from glscl.data.activity import ActivityTable
from glscl.data.shared_memory import handover_error, report_lost_batches
from glscl.errors import BrokenRunError, UserError

_Item = TypeVar("_Item")
_DEAD = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*)", re.DOTALL)
_HANDOVER = re.compile("Too many open files|unable to mmap|shared memory|No space left")


def errors_as_items(items: Iterator[_Item]) -> Iterator[_Item | UserError]:
    """In a loader process, end with the error as the last item instead of raising it."""
    try:
        yield from items
    except UserError as error:
        if get_worker_info() is None:
            raise
        yield error


def raise_items(items: Iterable[_Item | UserError]) -> Iterator[_Item]:
    """Undo `errors_as_items` in the process that reads the loader."""
    for item in items:
        if isinstance(item, UserError):
            try:
                raise item
            finally:
                del item  # or error and frame hold each other, and the loader's processes live until they are collected
        yield item


def explain_dead_loaders(items: Iterable[_Item], activity: ActivityTable | None) -> Iterator[_Item]:
    """Pass the items on; where a loader process died, say what it was doing.

    Raises:
        BrokenRunError: a loader process was killed (by the kernel for its memory, or by a fault in native code).
        UserError: there is no room for a batch on its way, or too many files are open.
    """
    try:
        yield from items
    except RuntimeError as error:
        # One error or two, whether or not torch was waiting: "is killed by signal: ..." and "exited unexpectedly".
        causes = [match for one in (error.__cause__, error) if (match := _DEAD.match(str(one)))]
        if not causes:
            if not _HANDOVER.search(str(error)) or str(error).startswith("Caught "):  # the data set raised it
                raise
            raise handover_error(error) from error
        dead = causes[0]
        if "Bus error" in dead[2]:
            raise handover_error(RuntimeError(dead[0])) from error
        pids = {int(pid) for pid in dead[1].split(",")}
        doing = "; ".join(str(one) for one in (activity.read() if activity else []) if one.pid in pids)
        how = dead[2].split(". ")[0].rstrip(".")
        raise BrokenRunError(
            f"a loader process (pid {dead[1]}) {how}; last it noted: {doing or 'nothing'}. If memory ran out, lower "
            f"data.loader_workers or data.prefetch; if it is always the same video, take it out of the shards"
        ) from error


def start_loader_worker(_: int) -> None:
    """Set up a loader process: one thread, errors of its sending thread are passed on, it dies with its parent."""
    torch.set_num_threads(1)
    report_lost_batches()
    if sys.platform == "linux":  # torch checks between batches, so never in a process that hangs
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
