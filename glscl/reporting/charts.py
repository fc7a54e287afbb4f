"""Geometry of the report's line charts; the template draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 320, 176
LEFT, RIGHT, TOP, BOTTOM = 38, 308, 10, 150
MAX_POINTS = 300

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A polyline in SVG units, and its name and last value."""

    name: str
    points: str
    end: tuple[float, float]
    last: float


@dataclass(frozen=True)
class Chart:
    """Lines with ticks ``(position, label)`` on both axes."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within ``[low, high]``, about ``count`` of them."""
    if high <= low:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * magnitude for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def line_chart(title: str, series: Mapping[str, Points], *, y_range: tuple[float, float] | None = None) -> Chart | None:
    """Lay out lines over a common horizontal axis; None if there is nothing finite to draw."""
    series = {name: finite for name, points in series.items() if (finite := _finite(points))}
    if not series:
        return None
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = y_range or (min(ys), max(ys))
    if y_high == y_low:
        margin = abs(y_low) * 0.1 or 1.0
        y_low, y_high = y_low - margin, y_high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return LEFT + across * (RIGHT - LEFT), BOTTOM - (y - y_low) / (y_high - y_low) * (BOTTOM - TOP)

    lines = []
    for name, points in series.items():
        placed = [place(x, y) for x, y in _thin(points)]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        lines.append(Line(name, text, placed[-1], points[-1][1]))
    return Chart(
        title,
        lines,
        [(place(x, y_low)[0], _label(x)) for x in ticks(x_low, x_high, 3)],
        [(place(x_low, y)[1], _label(y)) for y in ticks(y_low, y_high)],
    )


def training_charts(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Held-out R@1 first, then every number logged over the steps, the total loss before its terms."""
    held_out: dict[str, Points] = {}
    logged: dict[str, Points] = {"loss": []}
    for entry in history:
        step = float(entry["step"])
        for name, value in (entry.get("validation") or {}).items():
            if name.endswith("R@1") and _is_number(value):
                label = name.removesuffix("R@1").strip().replace("_", " ") or "R@1"
                held_out.setdefault(label, []).append((step, float(value)))
        for name, value in entry.items():
            if name not in ("step", "epoch") and _is_number(value):
                logged.setdefault(name, []).append((step, float(value)))
    charts = [line_chart("held-out R@1 (%)", held_out, y_range=(0, 100))]
    charts += [line_chart(name, {name: points}) for name, points in logged.items()]
    return [chart for chart in charts if chart is not None]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(points: Points) -> Points:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thin(points: Points) -> Points:
    """At most ``MAX_POINTS`` points: the means of equal runs of them."""
    size = -(-len(points) // MAX_POINTS)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(math.fsum(x for x, _ in run) / len(run), math.fsum(y for _, y in run) / len(run)) for run in runs]


def _label(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"
