"""Standard streams that take any text, and secrets replaced in everything that this process prints or writes.

Secrets are the values of variables whose name says secret, token, password or key, those of the AWS credentials file
and of Ray's token file, and text that has the form of a credential. A command prints through `redacted_output`. Text of
others goes through `redact` before it is written to a file.
"""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from glscl.errors import BrokenRunError, RunStoppedError, UserError
from glscl.system.environment import read_aws_file, token_in_file

HIDDEN = "[secret]"
_NAMES = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|AUTH_?KEY", re.IGNORECASE)
_SHORTEST = 8  # a shorter value is no secret, and replacing it would tear words apart
_FORMS = (
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)"),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?i)(?<=[?&]X-Amz-Signature=)[^&\s]+"),
    re.compile(r"(?i)(?<=[?&]X-Amz-Credential=)[^&\s]+"),
    re.compile(r"(?i)(?<=[?&]X-Amz-Security-Token=)[^&\s]+"),
)


def prepare_streams() -> None:
    """Open the standard streams that a service has closed, and let output escape letters that the terminal lacks."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout, sys.stderr = (
        stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") for stream in (sys.stdout, sys.stderr)
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def redact(text: str) -> str:
    """Replace every secret in a text."""
    for value in _known_secrets():
        text = text.replace(value, HIDDEN)
    for form in _FORMS:
        text = form.sub(HIDDEN, text)
    return text


def has_secret(text: str) -> bool:
    """Whether `redact` would change it."""
    return redact(text) != text


def _known_secrets() -> list[str]:
    """Every known secret, the longest first: one may be part of another."""
    profiles = read_aws_file("AWS_SHARED_CREDENTIALS_FILE")
    secrets = {token_in_file()}
    secrets |= {value for name, value in os.environ.items() if _NAMES.search(name) and value[:1] not in "/~."}  # a file
    secrets |= {value for profile in profiles.values() for name, value in profile.items() if _NAMES.search(name)}
    return sorted((value for value in secrets if len(value) >= _SHORTEST), key=len, reverse=True)


class OutputClosedError(Exception):
    """The reader of the pipe that this process prints into has ended."""


class _Redacted:
    """A text stream that writes without secrets."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _reader_may_leave():
            self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        with _reader_may_leave():
            self._stream.flush()

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # of a pipe, not of a connection to storage or to Ray
        raise OutputClosedError from None


@contextmanager
def redacted_output() -> Iterator[None]:
    """Redact everything that is printed in this block, also by libraries, tracebacks and Ray's workers."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Redacted(sys.stdout), _Redacted(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def redacted_errors() -> Iterator[None]:
    """Redact prints and exceptions (into RuntimeErrors, if need be) of a Ray worker, which Ray writes into its logs."""
    with redacted_output():
        try:
            yield
        except (RunStoppedError, UserError, BrokenRunError) as error:
            if has_secret(str(error)):
                raise type(error)(redact(str(error))) from None
            raise
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            if has_secret(text):
                raise RuntimeError(redact(text)) from None
            raise
