"""Geometry and colours of the study's figures; the template draws them as HTML tables and inline SVG.

Horizontal positions of rows (`Axis`) are in per cent of the row's own picture, so that those figures fit any width
with text at its natural size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from glscl.reporting.charts import ticks

STEPS = 16
LIGHT_STOPS = ("#eff5fa", "#9fc9e4", "#2f86bd", "#06305f")
DARK_STOPS = ("#1c242c", "#1d4d75", "#3d8dc6", "#c4e5fb")

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 34.0, 414.0, 10.0, 256.0
MARKER = 5.5
CHARACTER = 6.6
"""Width of a character of a label, generously."""
LINE = 14

Box = tuple[float, float, float, float]


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
class Mark:
    """A variant's cost and accuracy."""

    name: str
    group: str
    cost: float
    accuracy: float


@dataclass(frozen=True)
class Placed:
    """A `Mark` in SVG units, with its label where no other label or marker is."""

    mark: Mark
    x: float
    y: float
    label: tuple[float, float]
    leader: tuple[float, float, float, float] | None
    """From the marker to a label that had to go elsewhere than beside it."""


@dataclass(frozen=True)
class Scatter:
    """A scatter plot with a logarithmic horizontal axis."""

    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    points: list[Placed]
    reference: float | None
    """Height of the line of the zero-shot towers."""
    below: float | None
    """Their accuracy, where it is so far below the others that the line is left out."""


def shades(stops: Sequence[str]) -> list[Shade]:
    """`STEPS` colours from the first of ``stops`` to the last, each with black or white text, whichever contrasts more.

    The better of the two has a contrast of 4.58 to 1 or more on any colour.
    """
    colours = [_between(stops, step / (STEPS - 1)) for step in range(STEPS)]
    return [Shade(_hex(colour), "#000" if _luminance(colour) > 0.179 else "#fff") for colour in colours]


def scale_top(values: Iterable[float]) -> float:
    """End of the colour scale, which starts at 0: the largest value, rounded up to a multiple of 5."""
    return max(5.0, 5.0 * math.ceil(max((value for value in values if math.isfinite(value)), default=0.0) / 5 - 1e-9))


def scale_step(value: float, top: float) -> int:
    """Number of a value's colour on a scale from 0 to ``top``."""
    return min(STEPS - 1, max(0, int(STEPS * value / top))) if math.isfinite(value) else 0


def row_axis(values: Iterable[float | None], *, count: int = 6) -> Axis:
    """An axis that holds 0 and every finite value, with a margin at both ends."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    margin = 0.04 * (high - low) or 1.0
    axis = Axis(low - margin if low < 0 else 0.0, high + margin, [])
    return Axis(axis.low, axis.high, [(axis.at(tick), tick_label(tick)) for tick in ticks(axis.low, axis.high, count)])


def tick_label(value: float) -> str:
    """A short number with a true minus sign."""
    return f"{value:.6g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def power_label(exponent: int) -> str:
    """``4`` -> ``10 k``."""
    whole = max(exponent, 0)
    return f"{10 ** (whole % 3)} {('', 'k', 'M', 'G', 'T')[whole // 3]}".strip()


def si(value: float) -> str:
    """``16900`` -> ``16.9 k``: three significant digits and a prefix; a whole number below 1000 as it is."""
    if not math.isfinite(value):
        return "–"
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power * 0.9995:
            scaled = value / 10**power
            return f"{scaled:.{max(0, 3 - len(str(int(scaled + 0.0005))))}f} {prefix}"
    return f"{value:.3g}"


def scatter(marks: Sequence[Mark], reference: float | None) -> Scatter | None:
    """Lay out accuracy against cost; None if there is nothing to draw.

    Args:
        marks: one per variant.
        reference: accuracy of the towers before any training.
    """
    marks = sorted((mark for mark in marks if math.isfinite(mark.accuracy)), key=lambda mark: mark.cost)
    if not marks:
        return None
    costs = [math.log10(max(mark.cost, 1.0)) for mark in marks]
    heights = [mark.accuracy for mark in marks]
    below = None
    if reference is not None and min(heights) - reference > max(max(heights) - min(heights), 1.0):
        below, reference = reference, None  # on the axis it would press the variants together
    if reference is not None:
        heights.append(reference)
    x_low, x_high = min(costs) - 0.3, max(costs) + 0.6  # labels stand to the right
    margin = 0.12 * (max(heights) - min(heights)) or 1.0
    y_low, y_high = max(0.0, min(heights) - margin), max(heights) + margin

    def across(exponent: float) -> float:
        return round(LEFT + (exponent - x_low) / (x_high - x_low) * (RIGHT - LEFT), 2)

    def up(value: float) -> float:
        return round(BOTTOM - (value - y_low) / (y_high - y_low) * (BOTTOM - TOP), 2)

    places = [(mark, across(cost), up(mark.accuracy)) for mark, cost in zip(marks, costs, strict=True)]
    taken = [(x - MARKER - 2, y - MARKER - 2, x + MARKER + 2, y + MARKER + 2) for _, x, y in places]
    points = []
    for mark, x, y in places:
        box, leader = _free_box(mark.name, x, y, taken)
        taken.append(box)
        points.append(Placed(mark, x, y, (box[0], box[3] - 3.5), leader))
    exponents = range(math.ceil(x_low), math.floor(x_high) + 1)
    return Scatter(
        [(across(exponent), power_label(exponent)) for exponent in exponents],
        [(up(tick), tick_label(tick)) for tick in ticks(y_low, y_high, 5)],
        points,
        None if reference is None else up(reference),
        below,
    )


def _free_box(
    name: str, x: float, y: float, taken: Sequence[Box]
) -> tuple[Box, tuple[float, float, float, float] | None]:
    """The place around a marker where its label covers the least, the nearer the better; the right side first."""
    width = CHARACTER * len(name)
    best: tuple[float, Box, tuple[float, float, float, float] | None] | None = None
    for distance in (0.0, 12.0, 24.0, 38.0, 54.0):
        gap = MARKER + 3 + distance
        for horizontal, vertical in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            slack = 0.6 if horizontal and vertical else 1.0  # a corner is farther off than a side
            centre_x = x + horizontal * (gap * slack + width / 2)
            centre_y = y + vertical * (gap * slack + LINE / 2)
            box = (centre_x - width / 2, centre_y - LINE / 2, centre_x + width / 2, centre_y + LINE / 2)
            outside = width * LINE - _overlap(box, (LEFT, TOP, WIDTH, BOTTOM))
            covered = sum(_overlap(box, other) for other in taken) + outside
            cost = 20 * covered + distance + 2 * (horizontal != 1) + 2 * (vertical != 0)
            if best is None or cost < best[0]:
                edge = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
                best = cost, box, (x, y, *edge) if distance else None
    assert best is not None
    return best[1], best[2]


def _overlap(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def _between(stops: Sequence[str], share: float) -> tuple[float, ...]:
    position = share * (len(stops) - 1)
    index = min(int(position), len(stops) - 2)
    rest = position - index
    first, second = (_channels(stop) for stop in stops[index : index + 2])
    return tuple(a + (b - a) * rest for a, b in zip(first, second, strict=True))


def _channels(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour)


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance (WCAG 2)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
