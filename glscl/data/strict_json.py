"""Parse JSON from strangers; refuse what the standard lets pass and nobody means."""

from __future__ import annotations

import json
import math


def loads(text: str) -> object:
    """Parse JSON text.

    Raises:
        ValueError: not JSON, a key twice in one object (Python keeps the last, silently), a number that is none (NaN,
            Infinity, 1e999) or has thousands of digits, or nesting deeper than Python can follow.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_number, parse_float=_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value: dict[str, object] = {}
    for key, member in pairs:
        if key in value:
            raise ValueError(f"key {key[:80]!r} is given twice")
        value[key] = member
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a number")
    return value
