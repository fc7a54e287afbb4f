"""Filters on metadata: which videos may be found."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence

from glscl.errors import UserError
from glscl.index.records import Value

Where = Mapping[str, Value | Sequence[Value]]
"""Key to the value that a video must have, or to several of which it must have one; ``"<60"``, ``">=2020"`` and
``"!=en"`` compare. ``id`` and ``duration`` are keys of every video."""

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_WORDS = re.compile(r"^\s*([^<>=!]+?)\s*(<=|>=|!=|<|>|=)\s*(.*?)\s*$")
Test = Callable[[Value | None], bool]


def parse_where(words: Sequence[str]) -> dict[str, Value | list[Value]]:
    """Conditions as a command line has them: ``lang=en``, ``duration<60``; two of one key and ``=`` are either.

    Raises `UserError`: one is no condition.
    """
    found: dict[str, Value | list[Value]] = {}
    for word in words:
        match = _WORDS.match(word)
        if not match:
            raise UserError(
                f"--where: '{word}' is no condition: write key=value, key!=value, key<number or key>=number"
            )
        key, sign, value = match.groups()
        if sign != "=":
            if key in found:
                raise UserError(f"--where: '{key}' has two conditions; only = may be repeated")
            found[key] = f"{sign}{value}"
            continue
        before = found.get(key, [])
        if not isinstance(before, list):
            raise UserError(f"--where: '{key}' has two conditions; only = may be repeated")
        found[key] = [*before, value]
    return found


def compile_where(where: Where) -> dict[str, Test]:
    """A test of the value of each key. Raises `UserError`: a comparison with something that is no number."""
    return {key: _compile(key, value) for key, value in where.items()}


def _compile(key: str, wanted: Value | Sequence[Value]) -> Test:
    if isinstance(wanted, str):
        for sign, compare in _COMPARE.items():
            if wanted.startswith(sign):
                return _comparison(key, sign, compare, wanted[len(sign) :].strip())
    values = [wanted] if isinstance(wanted, str | float | int | bool) else list(wanted)
    return lambda value: value is not None and any(_equal(value, one) for one in values)


def _comparison(key: str, sign: str, compare: Callable[[float, float], bool], text: str) -> Test:
    if sign == "!=":
        return lambda value: value is None or not _equal(value, text)
    try:
        bound = float(text)
    except ValueError:
        raise UserError(
            f"where {key}{sign}{text}: '{text}' is no number; texts are compared by = and != only"
        ) from None
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and compare(float(value), bound)


def _equal(value: Value, wanted: Value) -> bool:
    """Whether two values are the same; a command line's words are those of numbers and of true and false, too."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return str(value).lower() == str(wanted).lower()
    if isinstance(value, int | float) and isinstance(wanted, str):
        try:
            return float(value) == float(wanted)
        except ValueError:
            return False
    return value == wanted
