"""Charts of the study's page; the template calls these functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from glscl.evaluation.metrics import MAIN_METRIC
from glscl.reporting.formats import number, si, tick
from glscl.reporting.plots import MUTED, NEUTRAL, PAPER, SERIES, Chart, Plot
from glscl.runs.options import ZERO_SHOT
from glscl.study.options import Group
from glscl.study.results import Cost, Relation, Result, StudyResults

MARKERS: dict[Group, tuple[str, float, str]] = {
    "consistency": ("o", 10, SERIES[0]),
    "attention": ("s", 10, SERIES[1]),
    "pooling": ("^", 12, SERIES[2]),
    "ablation": ("v", 12, SERIES[3]),
}
"""Group of variants -> marker, its size and its colour."""


@dataclass(frozen=True)
class Mark:
    """A variant's cost and accuracy."""

    name: str
    group: Group
    cost: float
    accuracy: float


def cost_charts(study: StudyResults, results: Sequence[Result], costs: Sequence[Cost]) -> tuple[list[Chart], list[str]]:
    """Draw mean text-to-video R@1 of one condition against multiply-adds per pair, cross-domain and in-domain.

    Returns the charts, and the variants left out for an unfinished cell: a mean over other cells is no comparison.
    """
    charts: list[Chart] = []
    left_out: set[str] = set()
    relations: tuple[Relation, ...] = ("cross-domain", "in-domain")
    for relation in relations:
        of_relation = [result for result in results if result.relation == relation]
        marks, unfinished = _mark_variants(study, of_relation, costs)
        left_out |= unfinished
        reference = _mean_untrained(results, {result.test for result in of_relation})
        title = f"{relation.capitalize()} mean R@1, %"
        if chart := scatter(title, marks, reference, filled=relation == "cross-domain"):
            charts.append(chart)
    return charts, sorted(left_out)


def _mark_variants(
    study: StudyResults, results: Sequence[Result], costs: Sequence[Cost]
) -> tuple[list[Mark], set[str]]:
    """Mark every trained variant that has a cost and all cells of a relation, and name those that lack a cell."""
    declared = {cost.variant: cost.declared for cost in costs}
    cells = {(result.training, result.test) for result in results}
    marks: list[Mark] = []
    unfinished: set[str] = set()
    for variant in study.variants:
        if variant.name not in declared or variant.name == ZERO_SHOT:
            continue
        of_variant = [result for result in results if result.variant == variant.name]
        if len(of_variant) < len(cells):
            unfinished.add(variant.name)
        elif of_variant:
            marks.append(Mark(variant.name, variant.group, declared[variant.name], _mean_recall(of_variant)))
    return marks, unfinished


def _mean_untrained(results: Sequence[Result], tests: set[str]) -> float | None:
    """Average the zero-shot towers over test sets; None unless they were tested on all."""
    untrained = [result for result in results if result.relation == "zero-shot" and result.test in tests]
    return _mean_recall(untrained) if len(untrained) == len(tests) > 0 else None


def scatter(title: str, marks: Sequence[Mark], reference: float | None, *, filled: bool) -> Chart | None:
    """Draw accuracy against cost on a logarithmic axis; None if there is nothing to draw.

    The reference is the accuracy of the towers before any training; where it is far below the variants, and would press
    them together, it is only noted.
    """
    marks = sorted((mark for mark in marks if math.isfinite(mark.accuracy)), key=lambda mark: mark.cost)
    if not marks:
        return None
    costs = [_cost_on_axis(mark) for mark in marks]
    heights = [mark.accuracy for mark in marks]
    note = ""
    if reference is not None and min(heights) - reference > max(max(heights) - min(heights), 1.0):
        note = f"{ZERO_SHOT}: {number(reference)}, below the axis"
        reference = None
    levels = heights if reference is None else [*heights, reference]
    margin = 0.12 * (max(levels) - min(levels)) or 1.0
    with Plot(420, 300, left=34, right=6, bottom=44, font=12) as plot:
        axes = plot.axes
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 2, max(costs) * 4)  # labels stand to the right
        axes.set_ylim(max(0.0, min(levels) - margin), max(levels) + margin)
        plot.ticks(y=6)
        plot.x_ticks_at(_powers_of_ten(*axes.get_xlim()))
        axes.tick_params(axis="x", length=5, color=NEUTRAL, pad=6)
        axes.spines["bottom"].set_visible(True)
        axes.set_xlabel("multiply-adds per pair (log scale)", labelpad=6)
        _draw_reference(plot, reference)
        for mark in marks:
            _draw_mark(plot, mark, filled=filled)
        plot.label_points([(_cost_on_axis(mark), mark.accuracy, mark.name) for mark in marks], radius=5.5, size=12)
        return plot.chart(title, note=note, description="; ".join(_describe_mark(mark) for mark in marks))


def _cost_on_axis(mark: Mark) -> float:
    """Return a cost that a logarithmic axis can show: a head may need no multiply-adds."""
    return max(mark.cost, 1.0)


def _powers_of_ten(low: float, high: float) -> list[tuple[float, str]]:
    """List the powers of ten from low to high, with their labels."""
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [(10.0**power, tick(10.0**power)) for power in powers]


def _draw_reference(plot: Plot, height: float | None) -> None:
    if height is not None:
        plot.axes.axhline(height, color=MUTED, linewidth=1.25, linestyle=(0, (5, 4)))
        plot.axes.annotate(ZERO_SHOT, (1, height), (0, 4), ("axes fraction", "data"), "offset points",
                           ha="right", color=MUTED)  # fmt: skip


def _draw_mark(plot: Plot, mark: Mark, *, filled: bool) -> None:
    shape, size, colour = MARKERS[mark.group]
    (point,) = plot.axes.plot([_cost_on_axis(mark)], [mark.accuracy], shape, color=colour, markersize=size,
                              markeredgewidth=2, markerfacecolor=colour if filled else PAPER, zorder=4)  # fmt: skip
    plot.name(point, title=_describe_mark(mark))


def _describe_mark(mark: Mark) -> str:
    return f"{mark.name}: {number(mark.accuracy)} % at {si(mark.cost)}"


def _mean_recall(results: Sequence[Result]) -> float:
    return fmean(result.text_to_video[MAIN_METRIC].estimate for result in results)
