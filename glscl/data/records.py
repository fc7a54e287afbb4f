"""The record, one video with its captions, and the checks of whatever strangers write about it."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from glscl.errors import printable

MOST_SECONDS = 1e9  # largest start, end or duration
MTEB_SPLIT = "mteb_"  # begins the name of a split that `glscl shards mteb` wrote
MAX_ID = 4096  # characters of the longest video id; an id may be a path


def id_problem(video_id: str) -> str | None:
    """Say what is wrong with a video's id, or None. Ids are printed in logs and reports, and name files."""
    if not video_id.strip():
        return "an empty id"
    if len(video_id) > MAX_ID:
        return f"an id of {len(video_id):,} characters"
    if not printable(video_id):
        return f"an id with a character that cannot be printed ({video_id[:80]!a})"
    return None


def compose_accents(name: str) -> str:
    """Return a name in Unicode's form NFC: accents composed or apart (as macOS writes files) are the same name."""
    return unicodedata.normalize("NFC", name)


def describe_share(videos: int, total: int) -> str:
    """Write ``16 of 19``, or ``19`` where none is missing."""
    return f"{total:,}" if videos == total else f"{videos:,} of {total:,}"


def list_some(names: Sequence[str], most: int = 20, between: str = ", ") -> str:
    """Write the first names, and count the rest: ``a, b and 3 more``."""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True, slots=True)
class Record:
    """One video of a domain with every caption that describes it; each (caption, video) is one pair."""

    video_id: str  # the data set's own id; also the name by which the video file is located
    captions: tuple[str, ...]
    start: float | None = None  # first second of the video file that the captions describe; None is its beginning
    end: float | None = None  # last second that they describe; None is the file's end
    duration: float | None = None  # seconds of what they describe, where the annotations say so
    attributes: dict[str, object] = field(default_factory=dict)
    """Ground-truth facts of a synthetic video (toy domains); empty for real data."""


def parse_strict_json(text: str) -> object:
    """Parse JSON text of strangers; refuse what the standard lets pass and nobody means.

    Raises:
        ValueError: not JSON, a key twice in one object (Python keeps the last, silently), a number that is none (NaN,
            Infinity, 1e999) or has thousands of digits, or nesting deeper than Python can follow.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_number, parse_float=_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value: dict[str, object] = {}
    for key, member in pairs:
        if key in value:
            raise ValueError(f"key {key[:80]!r} is given twice")
        value[key] = member
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a number")
    return value
