"""The one exception type that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: says what is wrong, where, and which knob mends it.

    The command line prints the message on one line and exits with status 2; no traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class RunStoppedError(UserError):
    """A reason to end a training run that every rank finds at the same step: a restart would only find it again."""


class StorageError(UserError):
    """Storage that did not do what it was asked; its ``__cause__`` is the client's own exception."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""
