"""The record: one video with its captions, as annotation files describe it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

from glscl.errors import printable

MOST_SECONDS = 1e9
"""Largest start, end or duration."""
MAX_ID = 4096
"""Characters of the longest video id; an id may be a path."""


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


@dataclass(frozen=True, slots=True)
class Record:
    """One video of a domain with every caption that describes it.

    Attributes:
        video_id: the data set's own id; also the name by which the video file is located.
        captions: one or more texts. Each (caption, video) is one pair.
        start: first second of the video file that the captions describe, or None for its beginning.
        end: last second that they describe, or None for the file's end.
        duration: length of what they describe, in seconds, where the annotations say so.
        attributes: ground-truth facts of a synthetic video (toy domains); empty for real data.
    """

    video_id: str
    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    duration: float | None = None
    attributes: dict[str, object] = field(default_factory=dict)
