"""Progress of a command: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

QUIET_S = 10.0  # seconds before the first line: what is done by then needs no progress
EVERY_S = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """Counts how much of an activity (``embedding msrvtt/test``) is done, in units (``videos``); a context manager."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._began = self._last_line = time.monotonic()
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn(self.unit),
                progress.TimeRemainingColumn(elapsed_when_finished=True),
            )
            self._bar = progress.Progress(*columns, console=Console(file=sys.stdout), transient=True)
            self._bar.start()
            self._bar.add_task(self.what, total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Count so many more units as done."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """Set the number of units that are done, and show it."""
        self.done = min(done, self.total)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done)
            return
        now = time.monotonic()
        if self.done < self.total and now - self._began >= QUIET_S and now - self._last_line >= EVERY_S:
            self._last_line = now
            left = time_left(now - self._began, self.done, self.total)
            print(f"{self.what}: {self.done:,} of {self.total:,} {self.unit}{left}", flush=True)


def time_left(elapsed_s: float, done: int, total: int) -> str:
    """``", about 3 min left"``; empty while nothing is done."""
    if not done:
        return ""
    seconds = elapsed_s / done * (total - done)
    return f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"
