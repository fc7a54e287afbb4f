"""Numbers and dates as the pages write them."""

from __future__ import annotations

import math
from datetime import datetime


def number(value: float | None, digits: int = 1) -> str:
    """A number of fixed decimals with thousands separated; a dash if there is none."""
    return f"{value:,.{digits}f}" if value is not None and math.isfinite(value) else "–"


def when(iso: str) -> str:
    """``2025-06-01T12:30:00+00:00`` -> ``1 June 2025, 12:30 UTC``; any other text as it is."""
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()
