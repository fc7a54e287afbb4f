"""Shared by the commands of an index: words that come before the options."""

import warnings
from collections.abc import Sequence

from glscl.errors import UserError


def take_words(words: Sequence[str], program: str, names: Sequence[str], most: int | None = None) -> tuple[str, ...]:
    """The words before the first option: one for each name, or up to ``most``; none where the help is asked for.

    Raises `UserError`: there are fewer or more.
    """
    if "--help" in words or "-h" in words:
        return ("",) * len(names)
    count = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
    if not len(names) <= count <= (len(names) if most is None else most):
        raise UserError(f"`{program} {' '.join(names)}` takes these words first, then options; see `{program} --help`")
    return tuple(words[:count])


def rest_of(words: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The words behind those that were taken, or all where the help is asked for."""
    return list(words) if "--help" in words or "-h" in words else list(words[len(taken) :])


def name_an_option_json() -> None:
    """Silence pydantic, whose models have a method ``json``, long deprecated, where an option has that name."""
    warnings.filterwarnings("ignore", message='Field name "json"')
