"""Geometry of a sweep's figures; the template draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from glscl.reporting.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, ticks
from glscl.study.charts import tick_label
from tune.results import Parameter, SweepResults, SweepTrial, Value

AXIS = 118.0
"""Width between two axes of the parallel coordinates."""
PLOT_TOP, PLOT_BOTTOM = 54.0, 274.0
MARGIN = 70.0


@dataclass(frozen=True)
class ParallelAxis:
    """A vertical axis: its name in two lines, and labels at heights."""

    x: float
    section: str
    name: str
    labels: list[tuple[float, str]]


@dataclass(frozen=True)
class ParallelLine:
    """A trial's way through the axes."""

    trial: SweepTrial
    kind: str
    points: str


@dataclass(frozen=True)
class Parallel:
    """Parallel coordinates: an axis per key, then the objective."""

    width: float
    axes: list[ParallelAxis]
    lines: list[ParallelLine]


@dataclass(frozen=True)
class Dot:
    """A trial's score on one domain."""

    x: float
    y: float
    domain: int
    finished: bool


@dataclass(frozen=True)
class ParameterPlot:
    """Scores of each domain over the values of a key."""

    parameter: Parameter
    dots: list[Dot]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    default: float | None
    """Position of the default value, if it is within the range."""
    best: float | None


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
        return [((tick - low) / (high - low), tick_label(tick)) for tick in ticks(low, high, count)]
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    values = [10.0**power for power in powers] if len(powers) > 1 else [low, high]
    return [(share(parameter, min(max(value, low), high)) or 0.0, f"{value:g}") for value in values]


def parallel(results: SweepResults) -> Parallel | None:
    """Every trial that was scored; None if there is none. The winner is drawn last, over the others."""
    trials = [trial for trial in results.trials if trial.history]
    if not trials:
        return None
    scores = [trial.history[-1].objective for trial in trials]
    low, high = min(scores), max(scores)
    if high == low:
        low, high = low - 1, high + 1

    def up(part: float) -> float:
        return round(PLOT_BOTTOM - part * (PLOT_BOTTOM - PLOT_TOP), 1)

    axes = []
    for number, parameter in enumerate(results.parameters):
        section, _, name = parameter.key.rpartition(".")
        marks = [(up(part), text) for part, text in labels(parameter)]
        axes.append(ParallelAxis(MARGIN + number * AXIS, section.rpartition(".")[2], name, marks))
    marks = [(up((tick - low) / (high - low)), tick_label(tick)) for tick in ticks(low, high)]
    axes.append(ParallelAxis(MARGIN + len(axes) * AXIS, "held-out", "objective", marks))
    order = {"failed": 0, "running": 0, "stopped": 1, "finished": 2}
    lines = []
    for trial in sorted(trials, key=lambda trial: (trial.name == results.best, order[trial.state])):
        parts = [share(parameter, trial.values.get(parameter.key)) or 0.0 for parameter in results.parameters]
        parts.append((trial.history[-1].objective - low) / (high - low))
        points = " ".join(f"{axis.x:.1f},{up(part)}" for axis, part in zip(axes, parts, strict=True))
        lines.append(ParallelLine(trial, "best" if trial.name == results.best else trial.state, points))
    return Parallel(2 * MARGIN + (len(axes) - 1) * AXIS, axes, lines)


def parameter_plots(results: SweepResults) -> list[ParameterPlot]:
    """A plot per key: hollow, every trial at the first scoring; filled, those that finished, at their last."""
    scores = [
        score
        for trial in results.trials
        for step in trial.history
        if step.step == results.first or step.step == results.steps
        for score in step.domains.values()
    ]
    if not scores:
        return []
    low, high = min(scores), max(scores)
    if low == high:
        low, high = low - 1, high + 1

    def across(part: float) -> float:
        return round(LEFT + 6 + part * (RIGHT - LEFT - 12), 1)

    def up(score: float) -> float:
        return round(BOTTOM - (score - low) / (high - low) * (BOTTOM - TOP), 1)

    best = next((trial for trial in results.trials if trial.name == results.best), None)
    plots = []
    for parameter in results.parameters:
        dots = []
        for trial in results.trials:
            part = share(parameter, trial.values.get(parameter.key))
            for step in trial.history if part is not None else ():
                if step.step in (results.first, results.steps):
                    dots += [
                        Dot(across(part or 0.0), up(step.domains[name]), number, step.step == results.steps)
                        for number, name in enumerate(results.domains)
                    ]
        default = share(parameter, parameter.default)
        own = share(parameter, best.values.get(parameter.key)) if best else None
        plots.append(
            ParameterPlot(
                parameter,
                dots,
                [(across(part), text) for part, text in _apart(labels(parameter, 3))],
                [(up(tick), tick_label(tick)) for tick in ticks(low, high)],
                None if default is None else across(default),
                None if own is None else across(own),
            )
        )
    return plots


def _apart(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Labels that do not run into one another."""
    step = -(-len(marks) // 5)
    return list(marks[::step])


def best_so_far(results: SweepResults) -> list[tuple[float, float]]:
    """``(trials ended, best objective of a finished one)``."""
    points: list[tuple[float, float]] = []
    best = -math.inf
    ended = [trial for trial in results.trials if trial.state in ("finished", "stopped", "failed")]
    for number, trial in enumerate(ended, start=1):
        if trial.state == "finished":
            best = max(best, trial.history[-1].objective)
        if math.isfinite(best):
            points.append((float(number), best))
    return points


FRAME = {"width": 320, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
