"""Progress of a command: a bar with the time left on a terminal, a line every half minute elsewhere."""

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

QUIET_S = 10.0  # seconds before the first line: what is done by then needs no progress
EVERY_S = 30.0  # seconds between two lines where there is no terminal


class Progress:
    """Counts how much of an activity (``embedding msrvtt/test``) is done, in units (``videos``); a context manager.

    ``done`` units were done before, which the time left does not count on; None: as many as `reach` says first, from
    when on the time counts. Without ``lines`` there is only the bar: where the activity has a log of its own.
    """

    def __init__(self, what: str, total: int, unit: str, *, done: int | None = 0, lines: bool = True) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = done or 0
        self._before = done
        self._lines = lines
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
                progress.TextColumn("{task.fields[unit]}"),
                progress.TimeElapsedColumn(),
            )
            self._bar = progress.Progress(*columns, console=Console(file=sys.stdout), transient=True)
            self._bar.start()
            self._bar.add_task(self.what, total=self.total, completed=self.done, unit=self.unit)
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
        now = time.monotonic()
        if self._before is None:
            self._before, self._began = self.done, now
        left = time_left(now - self._began, self.done - self._before, self.total - self._before)
        if self._bar is not None:
            # Not rich's own estimate, which knows the last half minute: a unit may take longer.
            self._bar.update(self._bar.task_ids[0], completed=self.done, unit=f"{self.unit}{left}")
            return
        due = now - self._began >= QUIET_S and now - self._last_line >= EVERY_S
        if self._lines and self.done < self.total and due:
            self._last_line = now
            print(f"{self.what}: {self.done:,} of {self.total:,} {self.unit}{left}", flush=True)


def time_left(elapsed_s: float, done: int, total: int) -> str:
    """``", about 3 min left"``; empty while nothing is done, and at the end."""
    if not 0 < done < total:
        return ""
    seconds = elapsed_s / done * (total - done)
    return f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"
