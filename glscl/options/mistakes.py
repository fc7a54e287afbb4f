"""Pydantic's first error as one line, and the known key that a misspelt one means."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal, get_args

from pydantic import BaseModel, ValidationError

LONGEST_VALUE = 80
"""Characters of a wrong value that a message repeats."""
LEAST_LIKENESS = 0.6
"""Below it, a known key is no suggestion for an unknown one (0: nothing in common, 1: the same)."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """The dotted key of a wrong value, empty for the outermost value itself, and pydantic's message."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


def first_mistake(error: ValidationError, outermost: str = "") -> Mistake:
    """The first error of a validation; ``outermost`` names the key where the outermost value itself is wrong."""
    first = error.errors(include_url=False)[0]
    return Mistake(".".join(map(str, first["loc"])) or outermost, first["msg"])


def describe_mistake(error: ValidationError, kind: type[BaseModel], prefix: str = "") -> str:
    """The first wrong option of a class in one line: its full key, value, message, and the number of further mistakes.

    ``prefix`` is the key of the section that was validated, if it was not the whole.
    """
    several = {name for name, annotation in annotated_keys(kind) if Literal["auto"] in get_args(annotation)}

    def key_of(location: tuple[int | str, ...]) -> str:
        """Dotted, without the name that pydantic adds for each of several types that a value may have."""
        words = [*filter(None, [prefix]), *map(str, location)]
        shorter = ".".join(words[:-1])
        return shorter if shorter in several else ".".join(words)

    mistakes = {key_of(each["loc"]): each for each in reversed(error.errors())}
    first = error.errors()[0]
    key = key_of(first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest_key(key, keys_of(kind))}"
    try:
        given = repr(first["input"])
    except ValueError:  # of thousands of digits: Python does not print it
        given = "an enormous integer"
    more = f" ({len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{key} = {given if len(given) <= LONGEST_VALUE else given[:LONGEST_VALUE] + '...'}: {first['msg']}{more}"


def nearest_key(name: str, known: Iterable[str], least: float = LEAST_LIKENESS) -> str:
    """``", did you mean 'a.b'?"`` for the closest dotted key, or nothing; the last word counts as much as the whole."""

    def likeness(key: str) -> float:
        given, other = name.lstrip("-"), key.lstrip("-")
        whole = SequenceMatcher(None, given, other).ratio()
        return (whole + SequenceMatcher(None, given.rpartition(".")[2], other.rpartition(".")[2]).ratio()) / 2

    best = max(known, key=likeness, default="")
    return f", did you mean '{best}'?" if best and likeness(best) >= least else ""


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every configuration key, dotted."""
    return (name for name, _ in annotated_keys(model, prefix))


def annotated_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every configuration key with its type."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from annotated_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind
