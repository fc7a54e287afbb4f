"""Formats of numbers, dates and keys, for pages, tables and axes of charts."""

import math
from datetime import datetime
from typing import Protocol, TypeGuard

MISSING = "–"
"""Shown where a figure is missing."""
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Bounds(Protocol):
    """An interval; None or an infinity: without bound on that side."""

    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def _shown(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 1) -> str:
    """``−1,234.5``: fixed decimals, thousands separated, a true minus sign, none before what rounds to zero."""
    if not _shown(value):
        return MISSING
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.") else _true_minus(text)


def signed(value: float | None, digits: int = 1) -> str:
    """``+1.2``, ``−0.4``; no sign before what rounds to zero."""
    if not _shown(value):
        return MISSING
    text = f"{value:+,.{digits}f}"
    return text[1:] if not text.strip("+-0.") else _true_minus(text)


def interval(bounds: Bounds, digits: int = 1) -> str:
    """``1.5 to 4.7``; ``≥ 1.5`` where one side is without bound; a dash where both are."""
    low, high = number(bounds.low, digits), number(bounds.high, digits)
    if MISSING not in (low, high):
        return f"{low} to {high}"
    return f"≥ {low}" if low != MISSING else f"≤ {high}" if high != MISSING else MISSING


def p_value(value: float) -> str:
    """``= 0.03``, ``< 0.001``."""
    if not math.isfinite(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"


def ratio(value: float | None) -> str:
    """``14.1 ×``: three significant digits."""
    if not _shown(value):
        return MISSING
    return f"{value:,.0f} ×" if value >= 100 else f"{value:.3g} ×"


def si(value: float) -> str:
    """``16900`` -> ``16.9 k``: three significant digits and a prefix; a whole number below 1000 as it is."""
    if not math.isfinite(value):
        return MISSING
    for unit, prefix in PREFIXES:
        if abs(value) >= unit * 0.9995:
            scaled = value / unit
            return f"{scaled:.{max(0, 3 - len(str(int(scaled + 0.0005))))}f} {prefix}"
    return f"{value:.3g}"


def size(amount: float) -> str:
    """``2048`` -> ``2 KiB``."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if amount >= 1024**power:
            value = amount / 1024**power
            return f"{value:,.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
    return f"{amount:,.0f} B"


def duration(seconds: float | None) -> str:
    """``0.0042`` -> ``4.2 ms``; ``412`` -> ``6.87 min``."""
    if not _shown(seconds):
        return MISSING
    for limit, factor, unit in ((1.0, 1e3, "ms"), (120.0, 1.0, "s"), (7200.0, 1 / 60, "min")):
        if seconds < limit:
            value = seconds * factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{seconds / 3600:,.1f} h"


def short(value: object) -> str:
    """Three significant digits of a number with decimals; anything else as it is."""
    return _true_minus(f"{value:.3g}") if isinstance(value, float) else str(value)


def significant(value: float) -> str:
    """Four significant digits, for the last value of a curve."""
    return f"{value:.4g}"


def tick(value: float) -> str:
    """A short number for an axis: ``20 k``, ``0.5``, ``1e−4``, ``−2``."""
    if abs(value) <= 1e-12:
        return "0"
    for unit, prefix in PREFIXES:
        if abs(value) >= unit:
            return _true_minus(f"{value / unit:.4g} {prefix}")
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return _true_minus(f"{mantissa.removesuffix('.0')}e{int(exponent)}")
    return _true_minus(f"{value:.4g}")


def when(iso: str) -> str:
    """``2025-06-01T12:30:00+00:00`` -> ``1 June 2025, 12:30 UTC``; any other text as it is."""
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def short_key(key: str) -> str:
    """``model.heads.glscl.tau`` -> ``glscl.tau``: a configuration key in its last section."""
    return ".".join(key.split(".")[-2:])


def _true_minus(text: str) -> str:
    return text.replace("-", "−")
