"""The tables of an evaluation that a command prints at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, Any

from rich.text import Text

from glscl.data.repairs import describe_repairs
from glscl.evaluation.metrics import DIRECTIONS, RECALLS, SUMMARY
from glscl.evaluation.results import Results, parse_results
from glscl.reporting.console import console, print_table


def results_table(results: Mapping[str, Any] | Results, *, file: IO[str] | None = None) -> None:
    """Print one row per test set and direction, recalls in per cent; below it, which videos play only in part.

    Raises:
        UserError: ``results`` lack something.
    """
    header = ("test set", "relation", "direction", *SUMMARY, "queries", "videos")
    rows = []
    tests = parse_results(results).tests
    for test in tests:
        for direction, title in DIRECTIONS.items():
            metrics: dict[str, float] = getattr(test, direction)
            numbers = _numbers(metrics, SUMMARY)
            rows.append([test.name, test.relation, title.lower(), *numbers, f"{int(metrics['queries'])}", test.share])
    print_table(header, rows, text_columns=3, file=file)
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
            numbers = _numbers(column.metrics, RECALLS)
            rows.append([test.name, DIRECTIONS[column.direction].lower(), column.label, saw, *numbers])
    if rows:
        print_table(("test set", "direction", "normalisation", "saw", *RECALLS), rows, text_columns=4, file=file)


def _numbers(metrics: Mapping[str, float], names: Iterable[str]) -> list[str]:
    return [f"{metrics[name]:.1f}" if name in metrics else "–" for name in names]
