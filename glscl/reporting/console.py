"""Console output: rich panels and tables on a terminal, plain lines anywhere else (logs, pipes, CI)."""

import sys
from collections.abc import Mapping, Sequence
from typing import IO

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


def console(file: IO[str] | None = None) -> Console:
    """A console on ``file`` (standard output by default) that marks nothing up by itself."""
    return Console(file=file or sys.stdout, highlight=False, markup=False, soft_wrap=True)


def start_panel(title: str, facts: Mapping[str, object], *, file: IO[str] | None = None) -> None:
    """Print what is about to run: a panel on a terminal, else ``key: value`` lines."""
    out = console(file)
    if not out.is_terminal:
        out.print(title)
        for key, value in facts.items():
            out.print(f"{key}: {value}")
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for key, value in facts.items():
        grid.add_row(Text(key), Text(str(value)))
    out.print(Panel(grid, title=Text(title, style="bold"), title_align="left", border_style="dim", expand=False))


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1, file: IO[str] | None = None
) -> None:
    """Print a table whose first ``text_columns`` columns are flush left and the others, numbers, flush right."""
    out = console(file)
    if not out.is_terminal:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in [header, *rows]:
            texts = map(str.ljust, row[:text_columns], widths)
            numbers = map(str.rjust, row[text_columns:], widths[text_columns:])
            out.print("  ".join([*texts, *numbers]).rstrip())
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column, name in enumerate(header):
        number = column >= text_columns
        table.add_column(Text(name), justify="right" if number else "left", no_wrap=number)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


def verdict(ok: bool, text: str, *, file: IO[str] | None = None) -> None:
    """Print the last line of a command, ``glscl: OK ...`` or ``glscl: FAILED ...``, for people and scripts alike."""
    word, style = ("OK", "bold green") if ok else ("FAILED", "bold red")
    console(file).print(Text.assemble("glscl: ", (word, style), " " + " ".join(text.split())))
