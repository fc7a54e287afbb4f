"""Standard streams that exist and take any text."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Open the standard streams that are closed, and let output escape letters that the terminal lacks.

    A service may start a command with some of its streams closed.
    """
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
