"""The page of a study: one file, nothing loaded from elsewhere, for a screen of any width, light or dark, and paper.

``results`` follows :mod:`glscl.study.results`. As on the page of an evaluation, everything that comes from
data is escaped, and the content security policy forbids whatever is not in the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup, escape

from glscl import __version__
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, METRICS, RECALL_LEVELS, RECALLS, Direction
from glscl.reporting import formats
from glscl.reporting.charts import ticks
from glscl.reporting.formats import when
from glscl.reporting.page import environment, thumbnails
from glscl.reporting.published import PACKAGED, PublishedRow, for_domain, read_published
from glscl.runs.options import ZERO_SHOT
from glscl.study import charts
from glscl.study.results import (
    Comparison,
    Cost,
    Estimate,
    Relation,
    Result,
    StudyResults,
    TestSet,
    Training,
    Variant,
    parse_study,
)
from glscl.system.storage import write_bytes

REFERENCE_METHOD = "GLSCL"
"""The row of the paper's cost table that the ratios are over."""

CITATIONS = (
    (
        "The method",
        """@article{glscl,
  title   = {Global-Local Semantic Consistent Learning for Text-Video Retrieval},
  author  = {Haonan Zhang and Pengpeng Zeng and Lianli Gao and Jingkuan Song and Yihang Duan and Xinyu Lyu and
             Hengtao Shen},
  journal = {IEEE Transactions on Image Processing},
  year    = {2025},
  note    = {arXiv:2405.12710}
}""",
    ),
    (
        "Consistency between granularities (GLCCL)",
        """@inproceedings{glccl,
  author    = {Jing and Yang and Yang},
  booktitle = {CAC},
  year      = {2025},
  doi       = {10.1109/CAC67268.2025.11487249},
  note      = {GLCCL, arXiv:2605.17959}
}""",
    ),
)


@dataclass(frozen=True)
class HeatRow:
    """A training, and its result on every test set; None where it has not finished."""

    training: Training
    cells: list[Result | None]


@dataclass(frozen=True)
class Forest:
    """Differences of one direction, by scope: the means over cells, then the single cells."""

    axis: charts.Axis
    blocks: list[tuple[str, list[tuple[str, list[Comparison]]]]]


@dataclass(frozen=True)
class HubRow:
    """A variant's skewness by relation to the training, one value per cell."""

    name: str
    group: str
    by_relation: dict[Relation, list[float]]


@dataclass(frozen=True)
class CostPlot:
    """Accuracy against cost, across domains and within them."""

    panels: list[tuple[Relation, charts.Scatter]]
    left_out: list[str]
    """Variants with a cell unfinished: a mean over other cells is no comparison."""


@dataclass(frozen=True)
class Normalised:
    """R@1 of one result beside its normalised forms, in the order of the labels (None: not had here)."""

    result: Result
    normalised: list[float | None]


@dataclass(frozen=True)
class NormalisedTable:
    """The normalised scores of one condition and direction."""

    labels: list[str]
    saw: list[str]
    """What each looked at, beyond the query at hand; empty where that differs from cell to cell."""
    cells: list[tuple[list[Normalised], list[tuple[list[int], str]]]]
    """Of one training and test set each: the results, and what the labels of these numbers looked at there."""


@dataclass(frozen=True)
class Condition:
    """All that is shown of one condition."""

    name: str
    maps: list[tuple[Variant, list[HeatRow]]]
    forests: dict[Direction, Forest]
    other_metrics: list[Comparison]
    transfers: list[tuple[Training, TestSet, list[Result | None]]]
    cost_plot: CostPlot
    costs: list[Cost]
    hubness: list[HubRow]
    hub_axis: charts.Axis
    normalised: dict[Direction, NormalisedTable]
    ties: list[tuple[Result, Direction]]
    results: list[Result]


def write_study_report(
    results: Mapping[str, Any] | StudyResults, output_uri: str, *, published: str | None = None
) -> None:
    """Write the page of a study.

    Args:
        results: see :mod:`glscl.study.results`.
        output_uri: the HTML file, local or ``s3://``.
        published: CSV of published figures (:func:`glscl.reporting.published.read_published`); the packaged ones if
            None.

    Raises:
        UserError: ``results`` or the CSV lack something.
    """
    write_bytes(output_uri, render_study(results, read_published(published or PACKAGED)).encode())


def render_study(results: Mapping[str, Any] | StudyResults, published: Sequence[PublishedRow] = ()) -> str:
    """Return the page as :func:`write_study_report` writes it.

    Raises:
        UserError: ``results`` lack something, or a thumbnail is no picture.
    """
    study = parse_study(results)
    templates = environment(
        "glscl.study",
        number=number,
        signed=signed,
        interval=interval,
        p_value=p_value,
        ratio=ratio,
        si=charts.si,
        size=size,
        duration=duration,
        breakable=breakable,
        thumbnails=thumbnails,
        when=when,
    )
    conditions = [_condition(study, name) for name in study.conditions]
    recalls = [result.text_to_video[MAIN_METRIC].estimate for result in study.results]
    top = charts.scale_top([*recalls, *(test.chance for test in study.tests)])
    by_test = [(test, rows) for test in study.tests if (rows := for_domain(list(published), test.name))]
    shown = {row.dataset for _, rows in by_test for row in rows}
    return templates.get_template("study.html.j2").render(
        study=study,
        version=__version__,
        conditions=conditions,
        directions=tuple(DIRECTIONS.items()),
        metrics=METRICS,
        main_metric=MAIN_METRIC,
        recalls=RECALLS,
        recall_levels=RECALL_LEVELS,
        trained=[variant for variant in study.variants if variant.name != ZERO_SHOT],
        zero_shot=ZERO_SHOT,
        light=charts.shades(charts.LIGHT_STOPS),
        dark=charts.shades(charts.DARK_STOPS),
        scale={"top": top, "ticks": ticks(0, top, 5)},
        heat_step=lambda value: charts.scale_step(value, top),
        frame={
            "width": charts.WIDTH,
            "height": charts.HEIGHT,
            "left": charts.LEFT,
            "right": charts.RIGHT,
            "top": charts.TOP,
            "bottom": charts.BOTTOM,
        },
        paper=_paper_rows(study),
        scores=any(
            condition.normalised or condition.ties or any(result.without_leaked for result in condition.results)
            for condition in conditions
        ),
        published=by_test,
        elsewhere=_by_dataset(row for row in published if row.dataset not in shown),
        backbones=sorted({row.backbone for row in published if row.backbone}),
        citations=CITATIONS,
        ours=_in_domain_results,
    )


def number(value: float | None, digits: int = 1) -> str:
    """As on the page of an evaluation, with a true minus sign, and none before what rounds to zero."""
    text = formats.number(value, digits)
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """``+1.2``, ``−0.4``; no sign before what rounds to zero."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+,.{digits}f}"
    return text[1:] if not text.strip("+-0.") else text.replace("-", "−")


def ratio(value: float | None) -> str:
    """``14.1 ×``: three significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f} ×" if value >= 100 else f"{value:.3g} ×"


def interval(bounds: Estimate | Comparison, digits: int = 1) -> str:
    """``1.5 to 4.7``; ``≥ 1.5`` where one side is without bound; a dash where both are."""
    low, high = (value if value is not None and math.isfinite(value) else None for value in (bounds.low, bounds.high))
    if low is None and high is None:
        return "–"
    if low is None or high is None:
        return f"≤ {number(high, digits)}" if low is None else f"≥ {number(low, digits)}"
    return f"{number(low, digits)} to {number(high, digits)}"


def p_value(value: float) -> str:
    """``= 0.03``, ``< 0.001``."""
    if not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"


def size(amount: float) -> str:
    """``2048`` -> ``2 KiB``."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if amount >= 1024**power:
            value = amount / 1024**power
            return f"{value:,.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
    return f"{amount:,.0f} B"


def duration(seconds: float | None) -> str:
    """``0.0042`` -> ``4.2 ms``; ``412`` -> ``6.9 min``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    for limit, factor, unit in ((1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7200.0, 1 / 60, "min")):
        if seconds < limit:
            value = seconds * factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{seconds / 3600:,.1f} h"


def breakable(name: str) -> Markup:
    """A name that may be broken after its underscores, hyphens and slashes."""
    text = escape(name)
    for character in "_-/":
        text = text.replace(character, Markup(f"{character}<wbr>"))
    return text


def _condition(study: StudyResults, name: str) -> Condition:
    results = [result for result in study.results if result.condition == name]
    comparisons = [row for row in study.comparisons if row.condition == name]
    costs = [cost for cost in study.costs if cost.condition == name]
    main = [row for row in comparisons if row.metric == MAIN_METRIC and math.isfinite(row.estimate)]
    axis = charts.row_axis(value for row in main for value in (row.low, row.estimate, row.high))
    hubness = _hub_rows(study, results)
    return Condition(
        name,
        _heat_maps(study, results),
        {
            direction: Forest(axis, blocks)
            for direction in DIRECTIONS
            if (blocks := _blocks([row for row in main if row.direction == direction]))
        },
        [row for row in comparisons if row.metric != MAIN_METRIC],
        _transfers(study, results),
        _cost_plot(study, results, costs),
        costs,
        hubness,
        charts.row_axis(value for row in hubness for values in row.by_relation.values() for value in values),
        {direction: table for direction in DIRECTIONS if (table := _normalised(study, results, direction)) is not None},
        [
            (result, direction)
            for direction in DIRECTIONS
            for result in results
            if f"{result.ties[direction][0]:.1f}" != f"{result.ties[direction][1]:.1f}"
        ],
        results,
    )


def _heat_maps(study: StudyResults, results: Sequence[Result]) -> list[tuple[Variant, list[HeatRow]]]:
    """One map per trained variant; the row of no training is the same in all."""
    found = {(result.variant, result.training, result.test): result for result in results}
    zero_shot = {result.test: result for result in results if result.training == ZERO_SHOT}

    def cell(variant: Variant, training: Training, test: TestSet) -> Result | None:
        own = found.get((variant.name, training.name, test.name))
        return zero_shot.get(test.name) if own is None and training.name == ZERO_SHOT else own

    trained = [variant for variant in study.variants if variant.name != ZERO_SHOT] or study.variants
    return [
        (
            variant,
            [HeatRow(row, [cell(variant, row, test) for test in study.tests]) for row in study.trainings],
        )
        for variant in trained
    ]


def _blocks(rows: Sequence[Comparison]) -> list[tuple[str, list[tuple[str, list[Comparison]]]]]:
    """``(title, [(scope, comparisons)])`` of the means, then of the single cells."""
    blocks = []
    for title, wanted in (("Means over cells", True), ("Single cells", False)):
        scopes: dict[str, list[Comparison]] = {}
        for row in rows:
            if row.scope.endswith(" mean") is wanted:
                scopes.setdefault(row.scope, []).append(row)
        if scopes:
            blocks.append((title, list(scopes.items())))
    return blocks


def _transfers(study: StudyResults, results: Sequence[Result]) -> list[tuple[Training, TestSet, list[Result | None]]]:
    """Every training and test set with a retention or lift, and the trained variants' results there."""
    found = {(result.variant, result.training, result.test): result for result in results}
    names = [variant.name for variant in study.variants if variant.name != ZERO_SHOT]
    rows = [
        (training, test, [found.get((name, training.name, test.name)) for name in names])
        for training in study.trainings
        for test in study.tests
        if training.name != ZERO_SHOT
    ]
    return [row for row in rows if any(result and (result.retention or result.lift) for result in row[2])]


def _cost_plot(study: StudyResults, results: Sequence[Result], costs: Sequence[Cost]) -> CostPlot:
    declared = {cost.variant: cost.declared for cost in costs}
    zero_shot = [result for result in results if result.relation == "zero-shot"]
    panels: list[tuple[Relation, charts.Scatter]] = []
    left_out: set[str] = set()
    relations: tuple[Relation, ...] = ("cross-domain", "in-domain")
    for relation in relations:
        of_relation = [result for result in results if result.relation == relation]
        cells = {(result.training, result.test) for result in of_relation}
        marks = []
        for variant in study.variants:
            own = [result for result in of_relation if result.variant == variant.name]
            if variant.name not in declared or variant.name == ZERO_SHOT:
                continue
            if len(own) < len(cells):
                left_out.add(variant.name)
            elif own:
                marks.append(charts.Mark(variant.name, variant.group, declared[variant.name], _mean_recall(own)))
        tests = {test for _, test in cells}
        reference = [result for result in zero_shot if result.test in tests]
        plot = charts.scatter(marks, _mean_recall(reference) if len(reference) == len(tests) > 0 else None)
        if plot:
            panels.append((relation, plot))
    return CostPlot(panels, sorted(left_out))


def _mean_recall(results: Sequence[Result]) -> float:
    return fmean(result.text_to_video[MAIN_METRIC].estimate for result in results)


def _hub_rows(study: StudyResults, results: Sequence[Result]) -> list[HubRow]:
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


def _normalised(study: StudyResults, results: Sequence[Result], direction: Direction) -> NormalisedTable | None:
    saw: dict[str, set[str]] = {}
    for result in results:
        for column in result.columns:
            if column.direction == direction:
                saw.setdefault(column.label, set()).add(column.saw)
    if not saw:
        return None
    numbers = {label: number for number, label in enumerate(saw, start=1)}
    cells = []
    for training in study.trainings:
        for test in study.tests:
            rows = []
            notes: dict[str, set[int]] = {}
            for result in results:
                if (result.training, result.test) != (training.name, test.name):
                    continue
                own = {column.label: column for column in result.columns if column.direction == direction}
                rows.append(Normalised(result, [own[label].recall(1) if label in own else None for label in saw]))
                for label, column in own.items():
                    if len(saw[label]) > 1:
                        notes.setdefault(column.saw, set()).add(numbers[label])
            if rows:
                cells.append((rows, [(sorted(labels), text) for text, labels in notes.items()]))
    return NormalisedTable(list(saw), [next(iter(texts)) if len(texts) == 1 else "" for texts in saw.values()], cells)


def _paper_rows(study: StudyResults) -> list[dict[str, Any]]:
    """The counts of the paper's table, each over those of GLSCL: as the paper counts, and with everything counted."""
    base = next((row for row in study.paper_counts if row.method.upper() == REFERENCE_METHOD), None)

    def over(value: float, reference: Callable[[Any], float]) -> float | None:
        return value / reference(base) if base and reference(base) > 0 else None

    return [
        {
            "count": row,
            "paper_ratio": over(row.paper, lambda each: float(each.paper)),
            "fair_ratio": over(row.fair, lambda each: float(each.fair)),
            "base": row is base,
        }
        for row in study.paper_counts
    ]


def _by_dataset(rows: Iterable[PublishedRow]) -> list[tuple[str, list[PublishedRow]]]:
    found: dict[str, list[PublishedRow]] = {}
    for row in rows:
        found.setdefault(row.dataset, []).append(row)
    return list(found.items())


def _in_domain_results(study: StudyResults, test: TestSet) -> list[Result]:
    """What stands beside published figures, which are in-domain too."""
    return [result for result in study.results if result.test == test.name and result.relation == "in-domain"]
