"""Charts of a sweep's page; the template calls these functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from glscl.reporting.formats import number, short_key, tick
from glscl.reporting.plots import (
    INK,
    MUTED,
    NEUTRAL,
    SERIES,
    Chart,
    LegendEntry,
    Plot,
    Points,
    line_chart,
    round_numbers,
)
from tune.results import Parameter, SweepResults
from tune.space import Value
from tune.trials import Trial

BEST, FINISHED = SERIES[0], SERIES[2]
LEGEND = (
    LegendEntry("winner", BEST, width=3),
    LegendEntry("finished", FINISHED),
    LegendEntry("stopped early", NEUTRAL),
)
AXIS_GAP = 118
"""Width between two axes of the parallel coordinates."""
MOST_LABELS = 5
"""On the horizontal axis of a parameter's plot."""


def progress_charts(results: SweepResults) -> list[Chart]:
    """The best finished trial over the trials that have ended, and the objective of every trial over its steps."""
    states = {trial.name: trial.state for trial in results.trials}
    scored = {
        trial.name: [(float(step.step), step.objective) for step in trial.history]
        for trial in results.trials
        if trial.history
    }

    def draw(plot: Plot, name: str, points: Points) -> None:
        state = "best" if name in (results.best, "") else states[name]
        _draw_trial(plot, points, state, name)

    charts = [
        line_chart("best of the finished trials, over trials ended", {"": best_so_far(results)}, draw=draw),
        line_chart("objective of every trial, over steps", scored, draw=draw),
    ]
    return [chart for chart in charts if chart is not None]


def best_so_far(results: SweepResults) -> list[tuple[float, float]]:
    """``(trials ended, best objective of a finished one)``."""
    points: list[tuple[float, float]] = []
    best = -math.inf
    ended = [trial for trial in results.trials if trial.state in ("finished", "stopped", "failed")]
    for count, trial in enumerate(ended, start=1):
        if trial.state == "finished":
            best = max(best, trial.history[-1].objective)
        if math.isfinite(best):
            points.append((float(count), best))
    return points


def parallel_chart(results: SweepResults) -> Chart | None:
    """Parallel coordinates of every scored trial: an axis per key, then the objective; None if no trial was scored.

    The winner is drawn last, over the others.
    """
    trials = [trial for trial in results.trials if trial.history]
    if not trials:
        return None
    scores = [trial.history[-1].objective for trial in trials]
    low, high = min(scores), max(scores)
    if high == low:
        low, high = low - 1, high + 1
    order = {"failed": 0, "running": 0, "stopped": 1, "finished": 2}
    with Plot(140 + len(results.parameters) * AXIS_GAP, 292, left=70, right=70, top=54, bottom=18) as plot:
        plot.axes.set_xlim(0, len(results.parameters))
        plot.axes.set_ylim(0, 1)
        plot.axes.grid(visible=False)
        plot.axes.set_xticks([])
        plot.axes.set_yticks([])
        for place, parameter in enumerate(results.parameters):
            section, _, name = parameter.key.rpartition(".")
            _draw_axis(plot, place, section.rpartition(".")[2], name, labels(parameter))
        marks = [((value - low) / (high - low), tick(value)) for value in round_numbers(low, high, 4)]
        _draw_axis(plot, len(results.parameters), "held-out", "objective", marks)
        for trial in sorted(trials, key=lambda trial: (trial.name == results.best, order[trial.state])):
            heights = [share(parameter, trial.values.get(parameter.key)) or 0.0 for parameter in results.parameters]
            last = trial.history[-1]
            heights.append((last.objective - low) / (high - low))
            title = f"{trial.name}, {trial.state}: {number(last.objective, 2)} at step {last.step}"
            state = "best" if trial.name == results.best else trial.state
            _draw_trial(plot, list(enumerate(heights)), state, title)
        label = f"Parallel coordinates: {len(trials)} trials over {len(results.parameters)} keys and the objective"
        return plot.chart(label, legend=LEGEND)


def parameter_charts(results: SweepResults) -> list[Chart]:
    """Scores of each domain over each key: hollow, every trial at the first scoring; filled, finished ones at the last.

    A dashed line is the default value, a solid one the winner's.
    """
    scores = [score for trial in results.trials for _, domains in _shown(results, trial) for score in domains.values()]
    if not scores:
        return []
    low, high = min(scores), max(scores)
    limits = (low, high) if low < high else (low - 1, high + 1)
    return [_parameter_chart(results, parameter, limits) for parameter in results.parameters]


def _parameter_chart(results: SweepResults, parameter: Parameter, limits: tuple[float, float]) -> Chart:
    best = next((trial for trial in results.trials if trial.name == results.best), None)
    with Plot(right=18) as plot:
        plot.axes.set_xlim(-0.022, 1.022)
        plot.axes.set_ylim(*limits)
        plot.ticks()
        marks = labels(parameter, 3)
        plot.x_ticks_at(marks[:: -(-len(marks) // MOST_LABELS)])  # labels that do not run into one another
        if (default := share(parameter, parameter.default)) is not None:
            plot.axes.axvline(default, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        if best and (winner := share(parameter, best.values.get(parameter.key))) is not None:
            plot.axes.axvline(winner, color=BEST, linewidth=2)
        for index, domain in enumerate(results.domains):
            colour = SERIES[index % len(SERIES)]
            for last in (False, True):
                points = [
                    (place, domains[domain])
                    for trial in results.trials
                    if (place := share(parameter, trial.values.get(parameter.key))) is not None
                    for step, domains in _shown(results, trial)
                    if (step == results.steps) is last
                ]
                plot.axes.plot(*np.reshape(points, (-1, 2)).T, "o", color=colour, markersize=6, markeredgewidth=1.25,
                               markerfacecolor=colour if last else "none", zorder=3)  # fmt: skip
        label = f"Held-out scores of each domain over {parameter.key}; the table of trials has the numbers"
        return plot.chart(short_key(parameter.key), description=label)


def share(parameter: Parameter, value: Value) -> float | None:
    """Where a value lies on its parameter's axis, from 0 to 1; None where it is not on it."""
    if parameter.choices is not None:
        last = max(1, len(parameter.choices) - 1)
        return parameter.choices.index(str(value)) / last if str(value) in parameter.choices else None
    low, high = parameter.low, parameter.high
    if low is None or high is None or not isinstance(value, int | float) or not low <= value <= high:
        return None
    if parameter.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def labels(parameter: Parameter, count: int = 4) -> list[tuple[float, str]]:
    """Ticks of a parameter's axis: share and text."""
    if parameter.choices is not None:
        return [(share(parameter, choice) or 0.0, choice) for choice in parameter.choices]
    low, high = parameter.low or 0.0, parameter.high or 0.0
    if not parameter.log:
        return [((value - low) / (high - low), tick(value)) for value in round_numbers(low, high, count)]
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    values = [10.0**power for power in powers] if len(powers) > 1 else [low, high]
    return [(share(parameter, min(max(value, low), high)) or 0.0, tick(value)) for value in values]


def _shown(results: SweepResults, trial: Trial) -> list[tuple[int, dict[str, float]]]:
    """Step and scores by domain of a trial's first and last scoring."""
    return [(step.step, step.domains) for step in trial.history if step.step in (results.first, results.steps)]


def _draw_trial(plot: Plot, points: Sequence[tuple[float, float]], state: str, title: str) -> None:
    """A trial's line, in the look of its state."""
    colour, width, opacity = {"best": (BEST, 3, 1), "finished": (FINISHED, 1.75, 0.9)}.get(state, (NEUTRAL, 1.25, 0.6))
    dashes = (0, (2, 3)) if state == "failed" else "-"
    x, y = zip(*points, strict=True)
    (line,) = plot.axes.plot(x, y, color=colour, linewidth=width, alpha=opacity, linestyle=dashes)
    plot.name(line, state, title)


def _draw_axis(plot: Plot, place: int, section: str, name: str, marks: Sequence[tuple[float, str]]) -> None:
    """A vertical axis of the parallel coordinates: its name in two lines above, labels to its left."""
    axes = plot.axes
    axes.plot([place, place], [0, 1], color=MUTED, linewidth=1)
    for lift, text, colour, weight in ((31, section, MUTED, "normal"), (15, name, INK, "bold")):
        axes.annotate(text, (place, 1), (0, lift), textcoords="offset points", ha="center", color=colour, weight=weight)
    for height, text in marks:
        label = axes.annotate(text, (place, height), (-6, 0), textcoords="offset points", ha="right", va="center",
                              color=MUTED, zorder=5)  # fmt: skip
        plot.name(label, "halo")
