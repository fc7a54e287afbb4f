"""Shared memory (``/dev/shm``), through which batches pass from loader processes to the one that reads them.

What would fill it is refused before anything is read. What fills it all the same, and any other error of the thread
that sends a batch, reaches the process that waits for it (Python's own way is to print a traceback and drop the batch).
"""

from __future__ import annotations

import errno
import math
import multiprocessing.queues
import os
import re
import socket
from multiprocessing.queues import Queue

from glscl.data.clips import Sampling
from glscl.errors import UserError

FOLDER = "/dev/shm"
GALLERY_PREFETCH = 2  # batches that a loader process of an evaluation decodes ahead
LARGER = "give the machine more shared memory (--shm-size of docker run; on Kubernetes an emptyDir of medium Memory)"
_FULL = re.compile("shared memory|/shm|No space left|unable to mmap|bus error", re.IGNORECASE)


def _bytes(sampling: Sampling, captions: float) -> int:
    """Bytes of one video and of the features of so many captions of it."""
    frames = math.prod((sampling.max_frames, *sampling.frame_shape))
    return math.ceil((frames + captions * math.prod(sampling.text_shape)) * sampling.dtype.itemsize)


def stream_bytes(pairs: int, sampling: Sampling, prefetch: int) -> int:
    """Most bytes that a training stream has in shared memory: ``prefetch`` batches, and the one being read."""
    return pairs * _bytes(sampling, 1) * (prefetch + 1)


def gallery_bytes(videos: int, batch_size: int, loader_workers: int, sampling: Sampling, captions: float) -> int:
    """Most bytes that an evaluation of so many videos, with so many captions each, has in shared memory."""
    ahead = batch_size * loader_workers * (GALLERY_PREFETCH + 1)
    return min(videos, ahead) * _bytes(sampling, captions) if loader_workers else 0


def free_bytes() -> int | None:
    """Shared memory that is left on this machine; None where it is not a file system."""
    try:
        system = os.statvfs(FOLDER)
    except OSError:
        return None
    return system.f_bavail * system.f_frsize


def check_room(needed: int, what: str, knobs: str) -> None:
    """Check that the ``needed`` bytes are free; a `UserError` says what needs them, and which knobs lower the need."""
    free = free_bytes()
    if free is not None and needed > free:
        raise UserError(
            f"{FOLDER} of {socket.gethostname()} has {free >> 20} MiB free, and {what} need up to "
            f"{(needed >> 20) + 1} MiB of it for batches on their way from loader processes: lower {knobs}, set "
            f"data.loader_workers to 0, or {LARGER}"
        )


def report_lost_batches() -> None:
    """In a loader process, have batches that cannot be sent replaced by an error that reaches the reader."""
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def _send_error(queue: Queue[object], error: Exception, item: tuple[int, object]) -> None:
    """Called by `multiprocessing.queues.Queue` with the item that could not be sent: torch's number and the batch."""
    if not isinstance(error, BrokenPipeError) and not isinstance(item[1], UserError):  # else nobody reads any more
        queue.put((item[0], handover_error(error)))


def handover_error(error: Exception) -> UserError:
    """Build the error for a batch that does not arrive, with its likely cause."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if getattr(error, "errno", None) == errno.EMFILE or "Too many open files" in reason:
        knobs = "raise the limit of open files (ulimit -n), or lower data.loader_workers or data.prefetch"
    elif getattr(error, "errno", None) == errno.ENOSPC or _FULL.search(reason):
        knobs = f"lower data.prefetch or the batch, set data.loader_workers to 0, or {LARGER}"
        reason = f"{FOLDER} of {socket.gethostname()} is full; {reason}"
    else:
        knobs = "set data.loader_workers to 0 to see where it comes from"
    return UserError(f"a batch could not pass from its loader process ({reason}): {knobs}")
