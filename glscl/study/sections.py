"""Rows and figures of the study's page, section by section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, Direction
from glscl.runs.options import ZERO_SHOT
from glscl.study.results import (
    Column,
    Comparison,
    Cost,
    PaperCount,
    Relation,
    Result,
    StudyResults,
    TestSet,
    Training,
    Variant,
)
from glscl.study.scales import Axis, row_axis

REFERENCE_METHOD = "GLSCL"
"""The row of the paper's cost table that the ratios are over."""


@dataclass(frozen=True)
class HeatRow:
    """A training, and its result on every test set; None where it has not finished."""

    training: Training
    cells: list[Result | None]


@dataclass(frozen=True)
class Forest:
    """Differences of one direction, by scope: the means over cells, then the single cells."""

    axis: Axis
    blocks: list[tuple[str, list[tuple[str, list[Comparison]]]]]


@dataclass(frozen=True)
class HubRow:
    """A variant's skewness by relation to the training, one value per cell."""

    name: str
    group: str
    by_relation: dict[Relation, list[float]]


@dataclass(frozen=True)
class Normalised:
    """R@1 of one result beside its normalised forms, in the order of the labels (None: not had here)."""

    result: Result
    normalised: list[float | None]


NormalisedCell = tuple[list[Normalised], list[tuple[list[int], str]]]


@dataclass(frozen=True)
class NormalisedTable:
    """The normalised scores of one condition and direction."""

    labels: list[str]
    saw: list[str]
    """What each looked at, beyond the query at hand; empty where that differs from cell to cell."""
    cells: list[NormalisedCell]
    """Of one training and test set each: the results, and what the labels of these numbers looked at in that cell."""


@dataclass(frozen=True)
class Condition:
    """All that is shown of one condition."""

    name: str
    maps: list[tuple[Variant, list[HeatRow]]]
    forests: dict[Direction, Forest]
    other_metrics: list[Comparison]
    transfers: list[tuple[Training, TestSet, list[Result | None]]]
    costs: list[Cost]
    hubness: list[HubRow]
    hub_axis: Axis
    normalised: dict[Direction, NormalisedTable]
    ties: list[tuple[Result, Direction]]
    results: list[Result]


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's cost table: its counts, and each over that of GLSCL."""

    count: PaperCount
    paper_ratio: float | None
    fair_ratio: float | None
    base: bool


def build_condition(study: StudyResults, name: str) -> Condition:
    """Build the rows and figures of one condition."""
    results = [result for result in study.results if result.condition == name]
    comparisons = [row for row in study.comparisons if row.condition == name]
    hubness = _build_hub_rows(study, results)
    return Condition(
        name,
        _build_heat_maps(study, results),
        _build_forests(comparisons),
        [row for row in comparisons if row.metric != MAIN_METRIC],
        _list_transfers(study, results),
        [cost for cost in study.costs if cost.condition == name],
        hubness,
        _build_hub_axis(hubness),
        _build_normalised_tables(study, results),
        _list_ties(results),
        results,
    )


def has_further_scores(condition: Condition) -> bool:
    """Whether a condition has normalised scores, visible ties or figures without leaked videos."""
    without_leaked = any(result.without_leaked for result in condition.results)
    return bool(condition.normalised or condition.ties or without_leaked)


def build_paper_rows(study: StudyResults) -> list[PaperRow]:
    """List the counts of the paper's table, each over GLSCL: as the paper counts, and with everything counted."""
    base = next((row for row in study.paper_counts if row.method.upper() == REFERENCE_METHOD), None)
    return [
        PaperRow(
            row,
            row.paper / base.paper if base and base.paper > 0 else None,
            row.fair / base.fair if base and base.fair > 0 else None,
            row is base,
        )
        for row in study.paper_counts
    ]


def _build_heat_maps(study: StudyResults, results: Sequence[Result]) -> list[tuple[Variant, list[HeatRow]]]:
    """Build one map per trained variant; the row of no training is the same in all."""
    by_cell = _index_by_cell(results)
    zero_shot = {result.test: result for result in results if result.training == ZERO_SHOT}

    def result_of(variant: Variant, training: Training, test: TestSet) -> Result | None:
        result = by_cell.get((variant.name, training.name, test.name))
        return zero_shot.get(test.name) if result is None and training.name == ZERO_SHOT else result

    trained = [variant for variant in study.variants if variant.name != ZERO_SHOT] or study.variants
    return [
        (
            variant,
            [HeatRow(row, [result_of(variant, row, test) for test in study.tests]) for row in study.trainings],
        )
        for variant in trained
    ]


def _build_forests(comparisons: Sequence[Comparison]) -> dict[Direction, Forest]:
    """Sort differences of the main metric by direction, on one axis; a direction without comparisons is left out."""
    rows = [row for row in comparisons if row.metric == MAIN_METRIC and math.isfinite(row.estimate)]
    axis = row_axis(value for row in rows for value in (row.low, row.estimate, row.high))
    blocks = {direction: _build_blocks([row for row in rows if row.direction == direction]) for direction in DIRECTIONS}
    return {direction: Forest(axis, of_direction) for direction, of_direction in blocks.items() if of_direction}


def _build_blocks(rows: Sequence[Comparison]) -> list[tuple[str, list[tuple[str, list[Comparison]]]]]:
    """Return ``(title, [(scope, comparisons)])`` of the means, then of the single cells."""
    blocks = []
    for title, of_means in (("Means over cells", True), ("Single cells", False)):
        scopes: dict[str, list[Comparison]] = {}
        for row in rows:
            if row.scope.endswith(" mean") is of_means:
                scopes.setdefault(row.scope, []).append(row)
        if scopes:
            blocks.append((title, list(scopes.items())))
    return blocks


def _list_transfers(
    study: StudyResults, results: Sequence[Result]
) -> list[tuple[Training, TestSet, list[Result | None]]]:
    """List every training and test set with a retention or lift, and the trained variants' results on it."""
    by_cell = _index_by_cell(results)
    names = [variant.name for variant in study.variants if variant.name != ZERO_SHOT]
    rows = [
        (training, test, [by_cell.get((name, training.name, test.name)) for name in names])
        for training in study.trainings
        for test in study.tests
        if training.name != ZERO_SHOT
    ]
    return [row for row in rows if any(result and (result.retention or result.lift) for result in row[2])]


def _build_hub_rows(study: StudyResults, results: Sequence[Result]) -> list[HubRow]:
    rows = []
    for variant in study.variants:
        by_relation: dict[Relation, list[float]] = {}
        for result in results:
            if result.variant == variant.name and math.isfinite(result.hubness.estimate):
                by_relation.setdefault(result.relation, []).append(result.hubness.estimate)
        by_relation.pop("union", None)
        if by_relation:
            rows.append(HubRow(variant.name, variant.group, by_relation))
    return rows


def _build_hub_axis(rows: Sequence[HubRow]) -> Axis:
    return row_axis(value for row in rows for values in row.by_relation.values() for value in values)


def _build_normalised_tables(study: StudyResults, results: Sequence[Result]) -> dict[Direction, NormalisedTable]:
    tables = {direction: _build_normalised_table(study, results, direction) for direction in DIRECTIONS}
    return {direction: table for direction, table in tables.items() if table is not None}


def _build_normalised_table(
    study: StudyResults, results: Sequence[Result], direction: Direction
) -> NormalisedTable | None:
    saw: dict[str, set[str]] = {}
    for result in results:
        for label, column in _columns_by_label(result, direction).items():
            saw.setdefault(label, set()).add(column.saw)
    if not saw:
        return None
    cells = [
        _build_normalised_cell(of_cell, direction, saw)
        for training in study.trainings
        for test in study.tests
        if (of_cell := [result for result in results if (result.training, result.test) == (training.name, test.name)])
    ]
    return NormalisedTable(list(saw), [next(iter(texts)) if len(texts) == 1 else "" for texts in saw.values()], cells)


def _build_normalised_cell(
    results: Sequence[Result], direction: Direction, saw: Mapping[str, set[str]]
) -> NormalisedCell:
    """Build the rows of one training and test set, with notes on the labels that saw something else in other cells."""
    rows = []
    notes: dict[str, set[int]] = {}
    for result in results:
        columns = _columns_by_label(result, direction)
        rows.append(Normalised(result, [columns[label].recall(1) if label in columns else None for label in saw]))
        for index, label in enumerate(saw, start=1):
            if label in columns and len(saw[label]) > 1:
                notes.setdefault(columns[label].saw, set()).add(index)
    return rows, [(sorted(labels), text) for text, labels in notes.items()]


def _list_ties(results: Sequence[Result]) -> list[tuple[Result, Direction]]:
    """List the results, with direction, in which ties make a difference that is visible."""
    return [
        (result, direction)
        for direction in DIRECTIONS
        for result in results
        if f"{result.ties[direction][0]:.1f}" != f"{result.ties[direction][1]:.1f}"
    ]


def _columns_by_label(result: Result, direction: Direction) -> dict[str, Column]:
    return {column.label: column for column in result.columns if column.direction == direction}


def _index_by_cell(results: Sequence[Result]) -> dict[tuple[str, str, str], Result]:
    return {(result.variant, result.training, result.test): result for result in results}
