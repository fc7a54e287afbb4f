"""Console output: rich panels and tables on a terminal, plain lines anywhere else (logs, pipes, CI)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from glscl.data.repairs import describe_repairs
from glscl.evaluation.results import Results, parse_results

RESULT_COLUMNS = ("test set", "relation", "direction", "R@1", "R@5", "R@10", "MdR", "MnR", "queries", "videos")
TEXT_COLUMNS = 3
NORMALISED_COLUMNS = ("test set", "direction", "normalisation", "saw", "R@1", "R@5", "R@10")
DIRECTIONS = {"text_to_video": "text to video", "video_to_text": "video to text"}


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


def results_table(results: Mapping[str, Any] | Results, *, file: IO[str] | None = None) -> None:
    """Print one row per test set and direction, recalls in per cent; below it, which videos play only in part.

    Raises:
        UserError: ``results`` lack something.
    """
    rows = []
    tests = parse_results(results).tests
    for test in tests:
        for direction, name in DIRECTIONS.items():
            metrics: dict[str, float] = getattr(test, direction)
            numbers = [f"{metrics[name]:.1f}" for name in RESULT_COLUMNS[TEXT_COLUMNS:-2]]
            rows.append([test.name, test.relation, name, *numbers, f"{int(metrics['queries'])}", test.share])
    print_table(RESULT_COLUMNS, rows, text_columns=TEXT_COLUMNS, file=file)
    for test in tests:
        if test.repaired:
            what = f"test set {test.name}"
            console(file).print(Text(describe_repairs(what, test.videos, test.repaired)))


def normalised_table(results: Mapping[str, Any] | Results, *, file: IO[str] | None = None) -> None:
    """Print one row per normalised column, recalls in per cent; nothing if there is none.

    Raises:
        UserError: ``results`` lack something.
    """
    rows = []
    for test in parse_results(results).tests:
        for column in test.normalised:
            saw = column.saw.partition(":")[0]  # the whole sentence is in the report
            numbers = [f"{column.metrics[name]:.1f}" for name in NORMALISED_COLUMNS[4:]]
            rows.append([test.name, DIRECTIONS[column.direction], column.label, saw, *numbers])
    if rows:
        print_table(NORMALISED_COLUMNS, rows, text_columns=4, file=file)


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1, file: IO[str] | None = None
) -> None:
    """Print a table whose first ``text_columns`` columns are flush left and the others, numbers, flush right."""
    out = console(file)
    if not out.is_terminal:
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        for row in [header, *rows]:
            cells = [
                cell.ljust(width) if column < text_columns else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            out.print("  ".join(cells).rstrip())
        return
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column, name in enumerate(header):
        table.add_column(
            Text(name), justify="left" if column < text_columns else "right", no_wrap=column >= text_columns
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


def verdict(ok: bool, text: str, *, file: IO[str] | None = None) -> None:
    """Print the last line of a command, ``glscl: OK ...`` or ``glscl: FAILED ...``, for people and scripts alike."""
    word, style = ("OK", "bold green") if ok else ("FAILED", "bold red")
    console(file).print(Text.assemble("glscl: ", (word, style), " " + " ".join(text.split())))
