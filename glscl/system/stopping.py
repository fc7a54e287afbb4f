"""Handlers of SIGTERM and Ctrl-C: a command ends with a verdict, and training saves first.

Within `ends_by_signal`, SIGTERM (of `ray job stop`, Kubernetes, a reclaimed machine) ends the command by an exception,
as Ctrl-C does. Within `deferred` the first signal is only noted, so that what runs can end in order.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from glscl.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_installed = False  # by a command; never in a Ray worker or in a program that imports glscl


def _end(signum: int, _: FrameType | None) -> None:
    raise Stopped(signum)


@contextmanager
def ends_by_signal() -> Iterator[None]:
    """Let SIGTERM and SIGINT raise `Stopped` in this block (in the main thread; elsewhere nothing is changed)."""
    global _installed
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _end) for number in _SIGNALS}
    _installed = True
    try:
        yield
    finally:
        _installed = False
        for number, handler in before.items():
            signal.signal(number, handler)


def reinstall_handlers() -> None:
    """Handle the signals again after ``ray.init``, whose handler ends the process without a verdict."""
    if _installed and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, _end)


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Only note the first signal in this block, whose number the function tells (0 before it); the second raises."""
    received: list[int] = []
    if not _installed or threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(signum: int, _: FrameType | None) -> None:
        received.append(signum)
        if len(received) > 1:
            raise Stopped(signum, " at once, without saving")

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield lambda: received[0] if received else 0
    finally:
        reinstall_handlers()
