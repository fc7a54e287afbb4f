"""One index in this process, as the service uses it: questions in, answers of the API out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from glscl.data.video import VideoError
from glscl.errors import UserError
from glscl.index.where import Where, parse_where
from glscl.service.decoding import ClipDecoder, ClipLimits, explain
from glscl.service.recent import Recent
from glscl.service.schemas import Result, Text, Value, Video

if TYPE_CHECKING:
    from glscl.index import Entry, Found, VideoIndex

HINTED = 2000
"""Videos whose metadata is looked at for the hints of the filter."""
VALUES = 12  # of one key, in these hints
EXAMPLES = 6
CAPTIONED = 10_000
"""Videos up to which a library's captions are searched: all are encoded when they are first asked for."""
MEDIA_TYPES = ("video/", "image/gif")
"""Beginnings of types as which a file of the library is sent; any other is sent as bytes without a type."""


@dataclass(frozen=True, slots=True)
class TextQuestion:
    """A text to search for."""

    text: str
    k: int
    where: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a question has no answer, and the HTTP status that says so."""

    reason: str
    status: int = 422


@dataclass(frozen=True, slots=True)
class Media:
    """The file of a video: its size in bytes and its type."""

    size: int
    type: str


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """What is known of a partition and its model."""

    videos: int
    segments: int
    head: str
    towers: str
    run: str
    step: int
    train_domains: tuple[str, ...]
    metadata: dict[str, list[Value]]
    examples: tuple[str, ...]


class Partition:
    """One index: the whole library or one part of it. Every method may be called from several threads.

    Args:
        index: opened.
        name: under which the service has the library.
        limits: of a clip to search by.
    """

    def __init__(self, index: VideoIndex, name: str, limits: ClipLimits) -> None:
        self._index, self._name, self._limits = index, name, limits
        self._files: Recent[tuple[bytes, str]] = Recent(256 << 20)

    def facts(self) -> PartitionFacts:
        """Describe the index; hints of the filter are those of its first videos."""
        card, stats = self._index.model.card, self._index.stats
        values: dict[str, dict[Value, None]] = {}
        examples: dict[str, None] = {}
        for entry in itertools.islice(self._index.videos(), HINTED):
            for key, value in entry.metadata.items():
                known = values.setdefault(key, {})
                if len(known) < VALUES:
                    known[value] = None
            if entry.captions and len(examples) < EXAMPLES:
                examples[entry.captions[0]] = None
        return PartitionFacts(
            videos=stats.videos,
            segments=stats.segments,
            head=card.model.head,
            towers=os.path.basename(card.model.clip),
            run=card.run,
            step=card.step,
            train_domains=tuple(card.train_domains),
            metadata={key: list(known) for key, known in sorted(values.items())},
            examples=tuple(examples),
        )

    def search_texts(self, questions: Sequence[TextQuestion]) -> list[list[Result] | Refused]:
        """Answer several texts; those with the same conditions are encoded at once."""
        alike: dict[tuple[str, ...], list[int]] = {}
        for number, question in enumerate(questions):
            alike.setdefault(question.where, []).append(number)
        answers: dict[int, list[Result] | Refused] = {}
        for where, numbers in alike.items():
            most = max(questions[number].k for number in numbers)
            try:
                texts = [questions[number].text for number in numbers]
                lists = self._index.search_texts(texts, most, parse_conditions(where))
            except UserError as error:
                answers |= dict.fromkeys(numbers, Refused(str(error)))
                continue
            for number, found in zip(numbers, lists, strict=True):
                answers[number] = [self._result(one) for one in found[: questions[number].k]]
        return [answers[number] for number in range(len(questions))]

    def search_clip(self, data: bytes, k: int, where: tuple[str, ...] = ()) -> list[Result] | Refused:
        """Find videos like a clip, which a process of its own decodes."""
        try:
            conditions = parse_conditions(where)
        except UserError as error:
            return Refused(str(error))
        try:
            with ClipDecoder(data, self._index.model.retriever.frame_size, self._limits) as clip:
                return [self._result(found) for found in self._index.search_video(clip, k, conditions)]
        except (VideoError, UserError) as error:
            return Refused(explain(error))

    def find_texts(self, data: bytes, k: int) -> list[Text] | Refused:
        """The library's captions that describe a video best."""
        if self._index.stats.videos > CAPTIONED:
            return Refused(f"captions of a library are searched up to {CAPTIONED} videos")
        try:
            with ClipDecoder(data, self._index.model.retriever.frame_size, self._limits) as clip:
                found = self._index.find_texts(clip, k=k)
        except (VideoError, UserError) as error:
            return Refused(explain(error))
        return [Text(text=one.text, score=one.score, id=one.id) for one in found]

    def videos(self, first: int, count: int) -> list[Video]:
        """Some videos, in the order of the index."""
        return [self._video(entry) for entry in itertools.islice(self._index.videos(), first, first + count)]

    def entry(self, video_id: str) -> Video | None:
        """A video; None if there is none of that id."""
        entry = self._find(video_id)
        return None if entry is None else self._video(entry)

    def media(self, video_id: str) -> Media | Refused:
        """Size and type of a video's file. Only what is in the index can be asked for."""
        if self._find(video_id) is None:
            return Refused("no such video in this index", 404)
        try:
            held, kind = self._open(video_id)
            size = len(held) if isinstance(held, bytes) else os.path.getsize(held)
        except (UserError, OSError):
            return Refused("the file of this video can no longer be read", 404)
        return Media(size, kind if kind.startswith(MEDIA_TYPES) else "application/octet-stream")

    def read(self, video_id: str, first: int, last: int) -> bytes:
        """Bytes of a video's file, ``last`` not among them. Raises `OSError`, `UserError`: it can no longer be read."""
        held, _ = self._open(video_id)
        if isinstance(held, bytes):
            return held[first:last]
        with open(held, "rb") as file:
            file.seek(first)
            return file.read(last - first)

    def _open(self, video_id: str) -> tuple[bytes | str, str]:
        """The path of a file on this machine, or the bytes of another, and its type."""
        kept = self._files.get(video_id)
        if kept is not None:
            return kept
        held, kind = self._index.open_media(video_id)
        if isinstance(held, bytes):
            self._files.put(video_id, (held, kind), len(held))
        return held, kind

    def _find(self, video_id: str) -> Entry | None:
        try:
            return self._index.entry(video_id)
        except (KeyError, UserError):
            return None

    def _video(self, entry: Entry) -> Video:
        return Video(
            id=entry.id,
            duration=entry.duration,
            captions=list(entry.captions),
            metadata=entry.metadata,
            media="api/media?" + urlencode({"index": self._name, "id": entry.id}),
        )

    def _result(self, found: Found) -> Result:
        return Result(
            **self._video(found.entry).model_dump(),
            score=found.score,
            start=found.start,
            end=found.end,
            segment=found.segment,
            times=list(found.times),
            weights=list(found.weights),
            concepts=list(found.concepts),
        )


def parse_conditions(where: Sequence[str]) -> Where | None:
    """Conditions as the index takes them. Raises `UserError`: one is no condition."""
    try:
        return parse_where(where) if where else None
    except UserError as error:
        raise UserError(str(error).removeprefix("--")) from None
