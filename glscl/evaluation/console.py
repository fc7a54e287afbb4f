"""The tables of an evaluation that a command prints at its end."""

from collections.abc import Iterable, Mapping
from typing import IO

from rich.text import Text

from glscl.data.quarantine import describe_repairs
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, RECALLS, RELEVANT_SUMMARY, SUMMARY
from glscl.evaluation.results import Results
from glscl.reporting.console import console, print_table
from glscl.reporting.formats import number


def print_results(results: Results) -> None:
    """Print every table that there is something for."""
    if results.tests:
        results_table(results)
        relevant_table(results)
        normalised_table(results)
        oracle_tables(results)


def results_table(results: Results, *, file: IO[str] | None = None) -> None:
    """Print one row per test set and direction, recalls in per cent; below it, which videos play only in part."""
    rows = []
    for test in results.tests:
        for direction, title in DIRECTIONS.items():
            metrics = test.metrics(direction)
            numbers = _numbers(metrics, SUMMARY)
            rows.append([test.name, test.relation, title.lower(), *numbers, f"{int(metrics['queries'])}", test.share])
    header = ("test set", "relation", "direction", *SUMMARY, "queries", "videos")
    print_table(header, rows, text_columns=3, file=file)
    for test in results.tests:
        if test.repaired:
            console(file).print(Text(describe_repairs(f"test set {test.name}", test.videos, test.repaired)))


def relevant_table(results: Results, *, file: IO[str] | None = None) -> None:
    """Print one row per test set in which captions have several relevant videos, in per cent; nothing without one."""
    rows = []
    for test in results.tests:
        if several := test.several_relevant:
            numbers = _numbers(several.text_to_video, RELEVANT_SUMMARY)
            rows.append([test.name, *numbers, f"{several.captions}", f"{several.relevant:.2f}"])
    if rows:
        header = ("all relevant videos", *RELEVANT_SUMMARY, "captions with several", "per caption")
        print_table(header, rows, text_columns=1, file=file)


def normalised_table(results: Results, *, file: IO[str] | None = None) -> None:
    """Print one row per normalised column, recalls in per cent; nothing if there is none."""
    rows = []
    for test in results.tests:
        for column in test.normalised:
            saw = column.saw.partition(":")[0]  # the whole sentence is in the report
            numbers = _numbers(column.metrics, RECALLS)
            rows.append([test.name, DIRECTIONS[column.direction].lower(), column.label, saw, *numbers])
    if rows:
        print_table(("test set", "direction", "normalisation", "saw", *RECALLS), rows, text_columns=4, file=file)


def oracle_tables(results: Results) -> None:
    """Print, for toy domains, what knowing attributes alone would score, and which attributes the model knows."""
    for test in results.tests:
        if not test.oracles:
            continue
        (single, single_recall), (pair, pair_recall) = (
            max(scores.items(), key=lambda item: item[1]) for scores in (test.oracles.single, test.oracles.pair)
        )
        print(
            f"{test.name}: {MAIN_METRIC} {test.text_to_video[MAIN_METRIC]:.1f}, chance {100 / test.videos:.1f}; an "
            f"oracle that knows one attribute: at best {single_recall:.1f} ({single}); two attributes: at best "
            f"{pair_recall:.1f} ({pair})"
        )
        rows = []
        for attribute, known in (test.attribute_accuracy or {}).items():
            shares = (known.accuracy, known.ignoring, known.chance, test.oracles.single[attribute])
            rows.append([attribute, *(number(share) for share in shares)])
        header = [f"{test.name} attribute", "right in top-1 %", "if ignored %", "chance %", f"oracle {MAIN_METRIC} %"]
        print_table(header, rows)


def _numbers(metrics: Mapping[str, float], names: Iterable[str]) -> list[str]:
    return [f"{metrics[name]:.1f}" if name in metrics else number(None) for name in names]
