"""Rows and figures of the study's page, section by section, with the axes and colours of those that are HTML.

Positions on an axis are in per cent of the row's own picture, so the rows fit any width with text at its natural size.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, Direction
from glscl.reporting.formats import tick
from glscl.reporting.plots import round_numbers
from glscl.runs.options import ZERO_SHOT
from glscl.study.results import Column, Comparison, Cost, Relation, Result, StudyResults, TestSet, Training, Variant

STEPS = 16
LIGHT_STOPS = ("#eff5fa", "#9fc9e4", "#2f86bd", "#06305f")
DARK_STOPS = ("#1c242c", "#1d4d75", "#3d8dc6", "#c4e5fb")
HeatRow = tuple[Training, list[Result | None]]  # a training and its results by test set; None: unfinished
Scopes = list[tuple[str, list[Comparison]]]
HubRow = tuple[Variant, dict[Relation, list[float]]]  # a variant's skewness by relation, a value per cell
Normalised = tuple[Result, list[float | None]]  # R@1 beside its normalised forms by label; None: not had


@dataclass(frozen=True)
class Shade:
    """A cell's colour and the colour of the text on it."""

    paper: str
    ink: str


@dataclass(frozen=True)
class Axis:
    """A linear axis; positions are in per cent of its length."""

    low: float
    high: float
    ticks: list[tuple[float, str]]

    def at(self, value: float | None, *, otherwise: float = 0.0) -> float:
        """Position of ``value``, held within the axis; that of an interval without bound is ``otherwise``."""
        if value is None or not math.isfinite(value):
            return otherwise
        return round(min(100.0, max(0.0, 100.0 * (value - self.low) / (self.high - self.low))), 3)


@dataclass(frozen=True)
class Forest:
    """Differences of one direction, by scope: the means over cells, then the single cells."""

    axis: Axis
    blocks: list[tuple[str, Scopes]]


@dataclass(frozen=True)
class NormalisedTable:
    """The normalised scores of one condition and direction."""

    labels: list[str]
    saw: list[str]  # what each looked at, beyond the query at hand; empty where that differs from cell to cell
    cells: list[tuple[list[Normalised], list[tuple[list[int], str]]]]
    """Of one training and test set each: the results, and what the labels of these numbers looked at in that cell."""


@dataclass(frozen=True)
class Condition:
    """All that is shown of one condition."""

    name: str
    maps: list[tuple[Variant, list[HeatRow]]]
    forests: dict[Direction, Forest]
    relevant_comparisons: list[Comparison]
    transfers: list[tuple[Training, TestSet, list[Result | None]]]
    costs: list[Cost]
    hubness: list[HubRow]
    hub_axis: Axis
    normalised: dict[Direction, NormalisedTable]
    ties: list[tuple[Result, Direction]]
    results: list[Result]

    @property
    def has_further_scores(self) -> bool:
        """Whether it has normalised scores, visible ties, or figures without leaked or with all relevant videos."""
        others = any(result.without_leaked or result.several_relevant for result in self.results)
        return bool(self.normalised or self.ties or others)


def build_condition(study: StudyResults, name: str) -> Condition:
    """Build the rows and figures of one condition."""
    results = [result for result in study.results if result.condition == name]
    comparisons = [row for row in study.comparisons if row.condition == name]
    hubness = _build_hub_rows(study, results)
    tables = {direction: _build_normalised_table(study, results, direction) for direction in DIRECTIONS}
    return Condition(
        name=name,
        maps=_build_heat_maps(study, results),
        forests=_build_forests(comparisons),
        relevant_comparisons=[row for row in study.relevant_comparisons if row.condition == name],
        transfers=_list_transfers(study, results),
        costs=[cost for cost in study.costs if cost.condition == name],
        hubness=hubness,
        hub_axis=_build_hub_axis(hubness),
        normalised={direction: table for direction, table in tables.items() if table is not None},
        ties=_list_ties(results),
        results=results,
    )


def _build_heat_maps(study: StudyResults, results: Sequence[Result]) -> list[tuple[Variant, list[HeatRow]]]:
    """Build one map per trained variant; the row of no training is the same in all."""
    by_cell = _index_by_cell(results)
    zero_shot = {result.test: result for result in results if result.training == ZERO_SHOT}

    def result_of(variant: Variant, training: Training, test: TestSet) -> Result | None:
        result = by_cell.get((variant.name, training.name, test.name))
        return zero_shot.get(test.name) if result is None and training.name == ZERO_SHOT else result

    trained = [variant for variant in study.variants if variant.name != ZERO_SHOT] or study.variants
    return [
        (variant, [(row, [result_of(variant, row, test) for test in study.tests]) for row in study.trainings])
        for variant in trained
    ]


def _build_forests(comparisons: Sequence[Comparison]) -> dict[Direction, Forest]:
    """Sort differences of the main metric by direction, on one axis; a direction without comparisons is left out."""
    rows = [row for row in comparisons if row.metric == MAIN_METRIC and math.isfinite(row.estimate)]
    axis = row_axis(value for row in rows for value in (row.low, row.estimate, row.high))
    blocks = {direction: _build_blocks([row for row in rows if row.direction == direction]) for direction in DIRECTIONS}
    return {direction: Forest(axis, of_direction) for direction, of_direction in blocks.items() if of_direction}


def _build_blocks(rows: Sequence[Comparison]) -> list[tuple[str, Scopes]]:
    """Return the title and scopes of the means, then of the single cells."""
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
            finite = math.isfinite(result.hubness.estimate)
            if result.variant == variant.name and finite and result.relation != "union":
                by_relation.setdefault(result.relation, []).append(result.hubness.estimate)
        if by_relation:
            rows.append((variant, by_relation))
    return rows


def _build_hub_axis(rows: Sequence[HubRow]) -> Axis:
    return row_axis(value for _, by_relation in rows for values in by_relation.values() for value in values)


def _list_ties(results: Sequence[Result]) -> list[tuple[Result, Direction]]:
    """List the results, with direction, in which ties make a difference that is visible."""
    return [
        (result, direction)
        for direction in DIRECTIONS
        for result in results
        if f"{result.ties[direction][0]:.1f}" != f"{result.ties[direction][1]:.1f}"
    ]


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
) -> tuple[list[Normalised], list[tuple[list[int], str]]]:
    """Build the rows of one training and test set, with notes on the labels that saw something else in other cells."""
    rows = []
    notes: dict[str, set[int]] = {}
    for result in results:
        columns = _columns_by_label(result, direction)
        rows.append((result, [columns[label].recall(1) if label in columns else None for label in saw]))
        for index, label in enumerate(saw, start=1):
            if label in columns and len(saw[label]) > 1:
                notes.setdefault(columns[label].saw, set()).add(index)
    return rows, [(sorted(labels), text) for text, labels in notes.items()]


def _columns_by_label(result: Result, direction: Direction) -> dict[str, Column]:
    return {column.label: column for column in result.columns if column.direction == direction}


def _index_by_cell(results: Sequence[Result]) -> dict[tuple[str, str, str], Result]:
    return {(result.variant, result.training, result.test): result for result in results}


def shades(stops: Sequence[str]) -> list[Shade]:
    """`STEPS` colours along ``stops``, each with black or white text: a contrast of 4.58 to 1 or more on any colour."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    colours = LinearSegmentedColormap.from_list("shades", stops, STEPS)(range(STEPS))
    return [Shade(to_hex(colour), "#000" if _luminance(colour[:3]) > 0.179 else "#fff") for colour in colours]


def scale_top(values: Iterable[float]) -> float:
    """End of the colour scale, which starts at 0: the largest value, rounded up to a multiple of 5."""
    return max(5.0, 5.0 * math.ceil(max((value for value in values if math.isfinite(value)), default=0.0) / 5 - 1e-9))


def scale_step(value: float, top: float) -> int:
    """Number of a value's colour on a scale from 0 to ``top``."""
    return min(STEPS - 1, max(0, int(STEPS * value / top))) if math.isfinite(value) else 0


def row_axis(values: Iterable[float | None], *, count: int = 8) -> Axis:
    """An axis that holds 0 and every finite value, with a margin at both ends."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    margin = 0.04 * (high - low) or 1.0
    axis = Axis(low - margin if low < 0 else 0.0, high + margin, [])
    marks = [(axis.at(value), tick(value)) for value in round_numbers(axis.low, axis.high, count)]
    return Axis(axis.low, axis.high, marks)


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance (WCAG 2)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
