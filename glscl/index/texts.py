"""Texts from a file, one a line."""

from glscl.errors import UserError
from glscl.evaluation.lists import read_text
from glscl.system import storage


def read_texts(file: str) -> tuple[str, ...]:
    """The lines of a UTF-8 file that are not empty. Raises `UserError`: no such file, not UTF-8, or no text in it."""
    text = read_text(storage.resolve(file))
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise UserError(f"{file}: no text in it")
    return lines
