"""The one exception type that a user is meant to read."""

import difflib
import errno
import os
import signal
import unicodedata
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: says what is wrong, where, and which knob mends it.

    The command line prints the message on one line and exits with status 2; no traceback. Names in it may be
    strangers': what a terminal would obey is written as an escape sequence.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if printable(line) else "".join(c if printable(c) else ascii(c)[1:-1] for c in line))


def printable(text: str) -> bool:
    """False for text that a terminal obeys: control characters, line ends, changes of direction, half a character."""
    return text.isprintable() or not any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in _TURNS for c in text
    )


_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class RunStoppedError(UserError):
    """A reason to end a training run that every rank finds at the same step: a restart would only find it again."""


class StorageError(UserError):
    """Storage that did not do what it was asked; its ``__cause__`` is the client's own exception."""


class BrokenRunError(Exception):
    """What ended a run whose input is sound: a process that died or hangs. Says who, where, since when, which knob.

    The command line prints the message on one line and exits with status 1; no traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class CommandFailed(Exception):  # noqa: N818  # the command failed, not the program
    """What ran elsewhere has failed: its exit status and its verdict become this command's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end: no error, and passed on by `except Exception`, as KeyboardInterrupt is.

    The command line prints the message on one line and exits with 128 and the signal's number.
    """

    def __init__(self, signum: int, rest: str = "") -> None:
        name = signal.Signals(signum).name
        super().__init__(signum, rest)
        self.signum = signum
        self.text = f"stopped by {name}{rest}"

    def __str__(self) -> str:
        return self.text


def full_disk(error: BaseException | None, where: str) -> UserError | None:
    """What to tell the user, if the reason for an error is a disk that takes no more; else None.

    ``where`` is what is said to be full if the error names no file.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(
                f"{error.filename or where}: {os.strerror(error.errno)}: free space there, then start the same command "
                f"again; what was complete still is"
            )
        error = error.__cause__ or getattr(error, "cause", None)
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""


def one_line(error: BaseException) -> str:
    """An exception in one line, with its type unless it is meant for the user."""
    return " ".join(f"{'' if isinstance(error, UserError) else type(error).__name__ + ': '}{error}".split())[:500]
