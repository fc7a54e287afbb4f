"""Colours of the study's heat maps and axes of its rows of intervals, which are HTML.

Positions on an axis are in per cent of the row's own picture, so the rows fit any width with text at its natural size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from glscl.reporting.formats import tick
from glscl.reporting.plots import round_numbers

STEPS = 16
LIGHT_STOPS = ("#eff5fa", "#9fc9e4", "#2f86bd", "#06305f")
DARK_STOPS = ("#1c242c", "#1d4d75", "#3d8dc6", "#c4e5fb")


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


def row_axis(values: Iterable[float | None], *, count: int = 8) -> Axis:
    """An axis that holds 0 and every finite value, with a margin at both ends."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    margin = 0.04 * (high - low) or 1.0
    axis = Axis(low - margin if low < 0 else 0.0, high + margin, [])
    marks = [(axis.at(value), tick(value)) for value in round_numbers(axis.low, axis.high, count)]
    return Axis(axis.low, axis.high, marks)


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
