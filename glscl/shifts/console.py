"""The table of an evaluation under shifts that a command prints at its end."""

from __future__ import annotations

from typing import IO

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, MEAN_RANK, SHORT_DIRECTIONS
from glscl.reporting.console import print_table
from glscl.reporting.formats import interval, number, signed
from glscl.shifts.results import ShiftResults


def print_shifts(results: ShiftResults, *, file: IO[str] | None = None) -> None:
    """Print one row per test set, shift and strength: R@1 with its interval and change, mean rank, hubness."""
    columns = [
        f"{SHORT_DIRECTIONS[direction]} {name}"
        for direction in DIRECTIONS
        for name in (MAIN_METRIC, "95 %", "change", MEAN_RANK)
    ]
    rows = []
    for test in results.tests:
        for one in test.passes:
            figures: list[str] = []
            for direction in DIRECTIONS:
                recall, change = one.recall[direction], one.change[direction]
                shown = signed(change.estimate) if one.shift else ""
                rank = number(one.metrics[direction][MEAN_RANK])
                figures += [number(recall.estimate), interval(recall), shown, rank]
            value = "" if one.value is None else f"{one.value:g}"
            rows.append(
                [test.name, one.shift or "none", str(one.strength), value, *figures, number(one.hubness_skewness, 2)]
            )
    print_table(("test set", "shift", "strength", "value", *columns, "hubness"), rows, text_columns=2, file=file)
