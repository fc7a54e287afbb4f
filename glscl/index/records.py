"""What an index gives: its videos, what was found, and its figures."""

from __future__ import annotations

from dataclasses import dataclass, field

Value = str | float | int | bool
"""What is known of a video under one key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A video of the library.

    Attributes:
        id: its name in the library: the path below the folder, or the id that a shard set gives it.
        source: path, s3:// address, or address in a shard (``shard.tar#3``) of its file.
        duration: seconds.
        captions: what the library says of it.
        metadata: what else it says, by key.
    """

    id: str
    source: str
    duration: float
    captions: tuple[str, ...] = ()
    metadata: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """A video that was found, and the moment in it.

    Attributes:
        id: the video's, in the library.
        score: the head's similarity of the text and the segment, before the logit scale; of a video as the query, see
            `VideoIndex.search_video`.
        start: first second of the moment.
        end: last second of the moment.
        segment: the seconds that were scored.
        times: second of every frame of that segment.
        weights: what the text attended to, one per frame, sum 1; empty where the head keeps no frames, and for videos.
        concepts: similarity of every concept of the head `glscl`; else empty.
        entry: the video.
    """

    id: str
    score: float
    start: float
    end: float
    segment: tuple[float, float]
    times: tuple[float, ...]
    weights: tuple[float, ...]
    concepts: tuple[float, ...]
    entry: Entry


@dataclass(frozen=True, slots=True)
class TextFound:
    """A text that describes a video.

    Attributes:
        text: as it was given, or as the library has it.
        score: the head's similarity, before the logit scale.
        id: of the video whose caption it is; None for texts that were given.
    """

    text: str
    score: float
    id: str | None


@dataclass(frozen=True, slots=True)
class IndexStats:
    """Figures of an index.

    Attributes:
        videos: that can be found.
        segments: that are searched.
        unusable: videos of the library that could not be read, with the reason.
        deleted: segments on disk that are no longer part of the index, until it is compacted.
        seconds: of all videos together.
        bytes: on disk, the model included.
        candidates: segments that the first stage hands to the head; 0 where the head scores all of them.
    """

    videos: int
    segments: int
    unusable: dict[str, str]
    deleted: int
    seconds: float
    bytes: int
    candidates: int
