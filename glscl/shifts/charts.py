"""Charts of the page of shifts: recall and hubness over the strengths of one kind of shift."""

from __future__ import annotations

from collections.abc import Sequence

from glscl.data.shifts import STRENGTHS
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, SHORT_DIRECTIONS, Direction
from glscl.reporting.formats import interval, number, significant
from glscl.reporting.plots import DASHES, SERIES, Chart, LegendEntry, Plot, line_chart
from glscl.shifts.results import ShiftedTest, Strength

_APART = 0.06  # of a strength, between the two directions' intervals


def recall_chart(test: ShiftedTest, kind: str) -> Chart:
    """R@1 of both directions with 95 % intervals, from the frames as they are (0) to the greatest strength."""
    steps = test.of_kind(kind)
    with Plot() as plot:
        for index, direction in enumerate(DIRECTIONS):
            _draw(plot, steps, direction, index)
        plot.axes.set_xlim(-0.2, max(STRENGTHS) + 0.2)
        plot.axes.set_ylim(0, max(1.0, *(one.recall[d].high or 0.0 for one in steps for d in DIRECTIONS)))
        plot.ticks(whole=True)
        plot.x_ticks_at([(float(strength), str(strength)) for strength in (0, *STRENGTHS)])
        legend = [
            LegendEntry(f"{SHORT_DIRECTIONS[direction]} {MAIN_METRIC}", SERIES[index], DASHES[index])
            for index, direction in enumerate(DIRECTIONS)
        ]
        last = steps[-1].recall["text_to_video"].estimate
        return plot.chart(
            kind, note=f"{significant(steps[0].recall['text_to_video'].estimate)} → {significant(last)}", legend=legend
        )


def _draw(plot: Plot, steps: Sequence[Strength], direction: Direction, index: int) -> None:
    """One direction's line, and an interval at every strength."""
    colour, dashes = SERIES[index], tuple(map(float, DASHES[index].split()))
    places = [one.strength + (2 * index - 1) * _APART for one in steps]
    values = [one.recall[direction] for one in steps]
    heights = [value.estimate for value in values]
    plot.axes.plot(places, heights, color=colour, linewidth=1.75, linestyle=(0, dashes) if dashes else "-")
    for place, value in zip(places, values, strict=True):
        ends = [value.estimate if end is None else end for end in (value.low, value.high)]
        plot.axes.plot([place, place], ends, color=colour, linewidth=1.5)
        (mark,) = plot.axes.plot([place], [value.estimate], "o", color=colour, markersize=5, markeredgewidth=0)
        plot.name(mark, title=f"{DIRECTIONS[direction]}: {number(value.estimate)} ({interval(value)})")


def hubness_chart(test: ShiftedTest, kind: str) -> Chart | None:
    """Skewness of the 10-occurrence over the strengths."""
    points = [(float(one.strength), one.hubness_skewness) for one in test.of_kind(kind)]
    values = [value for _, value in points]
    return line_chart(f"{kind}: hubness", {kind: points}, y_range=(min(0.0, *values), max(1.0, *values)))
