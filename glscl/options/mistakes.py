"""What pydantic found wrong, in one line, and the known key that a misspelt one means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError

LONGEST_VALUE = 80
"""Characters of a wrong value that a message repeats."""
LEAST_LIKENESS = 0.6
"""Below it, a known key is no suggestion for an unknown one (0: nothing in common, 1: the same)."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong with a value: where it is, as a dotted key, and pydantic's message.

    ``str()`` gives ``key: message``; the key is empty where the outermost value itself is wrong.
    """

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


def first_mistake(error: ValidationError, outermost: str = "") -> Mistake:
    """The first thing that is wrong.

    Args:
        error: pydantic's.
        outermost: what the key is called where the outermost value itself is wrong.
    """
    first = error.errors(include_url=False)[0]
    return Mistake(".".join(map(str, first["loc"])) or outermost, first["msg"])


def describe_mistake(error: ValidationError, kind: type[BaseModel], prefix: str = "") -> str:
    """The first option that is wrong, in one line: its full key, the value, the message, and how many more there are.

    Args:
        error: pydantic's.
        kind: class of the options.
        prefix: key of the section that was validated, if it was not the whole.
    """
    several = {name for name, annotation in annotations(kind) if Literal["auto"] in get_args(annotation)}

    def key_of(place: Mapping[str, Any]) -> str:
        """Without what pydantic adds for each of several types that a value may have."""
        words = [*filter(None, [prefix]), *map(str, place["loc"])]
        shorter = ".".join(words[:-1])
        return shorter if shorter in several else ".".join(words)

    mistakes = {key_of(each): each for each in reversed(error.errors())}
    first = error.errors()[0]
    key = key_of(first)
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest_key(key, keys_of(kind))}"
    try:
        given = repr(first["input"])
    except ValueError:  # of thousands of digits: Python does not print it
        given = "an enormous integer"
    more = f" ({len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{key} = {given if len(given) <= LONGEST_VALUE else given[:LONGEST_VALUE] + '...'}: {first['msg']}{more}"


def nearest_key(name: str, known: Iterable[str], least: float = LEAST_LIKENESS) -> str:
    """Return ``", did you mean 'a.b'?"`` for the closest dotted key, or an empty string.

    The last word counts as much as the whole, so that ``tau`` finds ``model.heads.glscl.tau``.
    """

    def likeness(key: str) -> float:
        given, other = name.lstrip("-"), key.lstrip("-")
        whole = SequenceMatcher(None, given, other).ratio()
        return (whole + SequenceMatcher(None, given.rpartition(".")[2], other.rpartition(".")[2]).ratio()) / 2

    best = max(known, key=likeness, default="")
    return f", did you mean '{best}'?" if best and likeness(best) >= least else ""


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every configuration key, dotted."""
    for name, _ in annotations(model, prefix):
        yield name


def annotations(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every configuration key with its type."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from annotations(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind
