"""Bounds of what one video may cost in CPU time, pixels and memory; above them it is refused with `VideoError`."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import av

from glscl.data.limits import VideoError as VideoError
from glscl.data.video import limits


class Budget:
    """What one video may still cost; raises `VideoError` as soon as it is spent."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.thread_time() + seconds  # CPU time of this thread, so that a busy machine refuses no video
        self._look = time.monotonic() + seconds  # no thread has more CPU time than time passes; this clock is cheap
        self._pixels = seconds * limits.MAX_PIXELS_PER_SECOND

    def check(self) -> None:
        """Refuse a video that has taken too long."""
        if time.monotonic() > self._look:
            left = self._end - time.thread_time()
            if left < 0:
                raise VideoError(f"takes more than {self._seconds:g} s of CPU time")
            self._look = time.monotonic() + left

    def picture(self, width: int, height: int, count: int = 1) -> None:
        """Refuse a picture's size, or one picture too many."""
        check_size(width, height)
        self._pixels -= width * height * count
        if self._pixels < 0:
            raise VideoError(f"more pixels than {self._seconds:g} s of CPU time are for")
        self.check()


def check_size(width: int, height: int) -> None:
    """Refuse a picture that is too large, too narrow or empty."""
    if min(width, height) < 1:
        raise VideoError("picture without size")
    check_area(width, height)
    if max(width, height) > limits.MAX_ASPECT * min(width, height):
        raise VideoError(f"picture too narrow ({width} x {height})")


def check_area(width: int, height: int) -> None:
    """Refuse a picture that is too large."""
    if width * height > limits.MAX_PIXELS:
        raise VideoError(f"picture too large ({width} x {height})")


@contextmanager
def decoding() -> Iterator[None]:
    """Bound a decoder's memory, and turn all that it may raise into `VideoError`."""
    try:
        with _bounded_memory(), _recorded_words():
            yield
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError, RuntimeError) as error:
        raise VideoError(f"undecodable ({describe_error(error)})") from error  # torch: no memory


def describe_error(error: Exception) -> str:
    """FFmpeg's message, cut short; without one, the name of the error.

    Numbers become ``#``, so that reasons can be counted; what no terminal should obey becomes ``?``.
    """
    text = ""
    if isinstance(error, av.error.FFmpegError):
        text = (error.log[2] if error.log else "") or error.strerror or ""
    text = re.sub(r"0x[0-9a-fA-F]+|\d+", "#", " ".join(text.split()))
    text = re.sub(r"[^\x20-\x7e]", "?", text).strip(" .")[: limits.MAX_WORDS]
    return text or type(error).__name__


@contextmanager
def _recorded_words() -> Iterator[None]:
    """Have PyAV keep the last error that FFmpeg logged; by default it drops them. Nothing is printed."""
    if av.logging.get_level() is not None:
        yield
        return
    av.logging.set_level(av.logging.PANIC)
    try:
        yield
    finally:
        av.logging.set_level(None)


_ADDRESS_SPACE = resource.getrlimit(resource.RLIMIT_AS)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let the process grow by `MAX_MEMORY`: a header of a few bytes can make FFmpeg take any amount for its tables."""
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # only Linux says how large a process is
        yield
        return
    soft, hard = _ADDRESS_SPACE
    limit = min([now + limits.MAX_MEMORY, *(edge for edge in (soft, hard) if edge != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, _ADDRESS_SPACE)
