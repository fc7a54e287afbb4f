"""The record: one video with its captions, before any pixel is touched."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Any

from glscl.errors import printable

MOST_SECONDS = 1e9
"""Of a start, an end or a duration."""
MAX_ID = 4096
"""Characters of the longest video id: it may be a path."""


def id_problem(video_id: str) -> str | None:
    """What is wrong with a video's id, or None: it is printed in logs and reports, and it names a file."""
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
    """``16 of 19``, or ``19`` where none is missing."""
    return f"{total:,}" if videos == total else f"{videos:,} of {total:,}"


@dataclass(frozen=True, slots=True)
class Record:
    """One video of a domain with every caption that describes it.

    Attributes:
        video_id: the data set's own id; also the stem by which the video file is found.
        captions: one or more texts. Each (caption, video) is one pair.
        start: first second of the described part of the video file, or None for its beginning.
        end: last second of the described part, or None for its end.
        duration: length of the described part in seconds where the annotations say so.
        attributes: ground-truth facts of a synthetic video (toy domains); empty for real data.
    """

    video_id: str
    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    duration: float | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
