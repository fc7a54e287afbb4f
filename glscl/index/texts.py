"""Texts from a file, one a line."""

from glscl.errors import UserError
from glscl.system import storage


def read_texts(file: str) -> tuple[str, ...]:
    """The lines of a UTF-8 file that are not empty. Raises `UserError`: no such file, or no text in it."""
    try:
        text = storage.read_bytes(storage.resolve(file)).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8") from None
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise UserError(f"{file}: no text in it")
    return lines
