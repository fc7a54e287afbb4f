"""How batches pass from loader processes to the one that reads them: through ``/dev/shm``, which may be small.

Docker gives a container 64 MB of it unless told otherwise. What would fill it is refused before anything is read; what
fills it all the same, and any other error of the thread that sends a batch, reaches the process that waits for it
(Python's own way is to print a traceback and drop the batch).
"""

from __future__ import annotations

import errno
import multiprocessing.queues
import os
import re
import socket
from typing import Any

from glscl.data.video import FrameSampling
from glscl.errors import UserError

FOLDER = "/dev/shm"
GALLERY_PREFETCH = 2
"""Batches that a loader process of an evaluation decodes ahead."""
LARGER = "give the machine more shared memory (--shm-size of docker run; on Kubernetes an emptyDir of medium Memory)"
_FULL = re.compile("shared memory|/shm|No space left|unable to mmap|bus error", re.IGNORECASE)


def pair_bytes(sampling: FrameSampling) -> int:
    """What one video of a batch takes at most."""
    return int(sampling.max_frames * 3 * sampling.size**2)


def stream_bytes(pairs: int, sampling: FrameSampling, prefetch: int) -> int:
    """The most that a training stream has in shared memory: what is decoded ahead, and the batch being read.

    Args:
        pairs: of one batch.
        sampling: frames per video.
        prefetch: batches decoded ahead.
    """
    return pairs * pair_bytes(sampling) * (prefetch + 1)


def gallery_bytes(videos: int, batch_size: int, loader_workers: int, sampling: FrameSampling) -> int:
    """The same for an evaluation of so many videos."""
    ahead = batch_size * loader_workers * (GALLERY_PREFETCH + 1)
    return min(videos, ahead) * pair_bytes(sampling) if loader_workers else 0


def free_bytes() -> int | None:
    """Shared memory that is left on this machine; None where it is not a file system."""
    try:
        there = os.statvfs(FOLDER)
    except OSError:
        return None
    return there.f_bavail * there.f_frsize


def check_room(needed: int, what: str, knobs: str) -> None:
    """Refuse what does not fit.

    Args:
        needed: bytes.
        what: whose they are, for the message.
        knobs: options that lower them.

    Raises:
        UserError: less is free on this machine.
    """
    free = free_bytes()
    if free is not None and needed > free:
        raise UserError(
            f"{FOLDER} of {socket.gethostname()} has {free >> 20} MiB free, and {what} need up to "
            f"{(needed >> 20) + 1} MiB of it for batches on their way from loader processes: lower {knobs}, set "
            f"data.loader_workers to 0, or {LARGER}"
        )


def report_lost_batches() -> None:
    """In a loader process: what its sending thread cannot send reaches the reader as an error in the batch's place."""
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def _send_error(queue: Any, error: Exception, item: Any) -> None:
    """Of `multiprocessing.queues.Queue`: called with the item that could not be sent, torch's number and batch."""
    if not isinstance(error, BrokenPipeError) and not isinstance(item[1], UserError):  # else nobody reads any more
        queue.put((item[0], handover_error(error)))


def handover_error(error: Exception) -> UserError:
    """What a batch that does not arrive means, in a line."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if getattr(error, "errno", None) == errno.EMFILE or "Too many open files" in reason:
        knobs = "raise the limit of open files (ulimit -n), or lower data.loader_workers or data.prefetch"
    elif getattr(error, "errno", None) == errno.ENOSPC or _FULL.search(reason):
        knobs = f"lower data.prefetch or the batch, set data.loader_workers to 0, or {LARGER}"
        reason = f"{FOLDER} of {socket.gethostname()} is full; {reason}"
    else:
        knobs = "set data.loader_workers to 0 to see where it comes from"
    return UserError(f"a batch could not pass from its loader process ({reason}): {knobs}")
