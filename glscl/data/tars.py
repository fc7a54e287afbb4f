"""Find the samples of a tar by its headers, in this project's layout.

It is ``<key>.json`` (everything), ``<key>.mp4`` or pictures (``<key>.000000.jpg`` and so on) or features
(``<key>.safetensors``; of frames alone ``<key>.npy``), and, for stock WebDataset readers, ``<key>.txt`` (the first
caption; not read here, and absent from older sets).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, NamedTuple, TypeGuard, TypeVar, cast

from pydantic import ValidationError

from glscl.data.feature_facts import FeatureNote
from glscl.data.frame_times import FrameTimes
from glscl.data.locate import VIDEO_EXTENSIONS
from glscl.data.records import MOST_SECONDS, id_problem, parse_strict_json
from glscl.errors import UserError
from glscl.options import Options
from glscl.options.mistakes import first_mistake

MANIFEST = "manifest.json"
MAX_ANNOTATION_BYTES = 8 << 20
MAX_EXTENSION_BYTES = 64 << 10
"""Longest extended header of a tar (for a long name, say); other tools write a few hundred bytes."""
PICTURES = ("jpg", "jpeg", "png", "webp")
FEATURES, ARRAY = "safetensors", "npy"
_PICTURE = re.compile(r"\d{6}\.jpg")
_Section = TypeVar("_Section", bound=Options)
_VIDEO_RANK = {extension: rank for rank, extension in enumerate(VIDEO_EXTENSIONS) if extension not in ("", "null")}


@dataclass(frozen=True, slots=True)
class Sample:
    """One video with its captions inside an open shard."""

    key: str
    video_id: str
    captions: tuple[str, ...]
    start: float | None
    end: float | None
    attributes: dict[str, object]


Part = tuple[int, int]
"""Offset and size of a member's bytes."""


@dataclass(frozen=True, slots=True)
class Media:
    """Where a sample's video lies in its tar, or what stands for it: pictures, features, an array of frame features."""

    parts: tuple[Part, ...]  # the one member; or each picture, in the order of time
    frames: FrameTimes | None = None  # when each picture is shown; None for all else
    features: FeatureNote | None = None  # what is known of the features; None for all else
    is_array: bool = False

    @property
    def holds_pixels(self) -> bool:
        """Whether it is a video or pictures."""
        return self.features is None and not self.is_array


@dataclass(slots=True)
class MediaMembers:
    """The members of one sample that show something."""

    video: tuple[int, Part] | None = None  # rank of its extension
    still: tuple[int, Part] | None = None
    array: Part | None = None
    features: Part | None = None
    pictures: dict[str, Part] = field(default_factory=dict)

    def add(self, member: tarfile.TarInfo, extension: str) -> None:
        """Note a member if it is a video, a picture or features."""
        part = member.offset_data, member.size
        if _PICTURE.fullmatch(extension):
            self.pictures[extension] = part
        elif extension == FEATURES:
            self.features = part
        elif extension == ARRAY:
            self.array = part
        elif extension in PICTURES:
            self.still = min((PICTURES.index(extension), part), self.still or (len(PICTURES), part))
        elif extension in _VIDEO_RANK:
            self.video = min((_VIDEO_RANK[extension], part), self.video or (len(_VIDEO_RANK), part))

    def media(self, frames: FrameTimes | None, features: FeatureNote | None = None) -> Media | None:
        """Where to read; None if what ``frames`` or ``features`` names, or else the video, is not there."""
        if features is not None:
            parts = () if self.features is None else (self.features,)
            return Media(parts, features=features) if bool(parts) != bool(features.problem) else None
        if frames is not None:
            pictures = [self.pictures.get(picture_name(number)) for number in range(len(frames.times))]
            whole = tuple(part for part in pictures if part is not None)
            return Media(whole, frames) if len(whole) == len(pictures) == len(self.pictures) else None
        return Media((self.video[1],)) if self.video else None

    def array_media(self) -> Media | None:
        """Where an array of frame features lies; None if there is none."""
        return Media((self.array,), is_array=True) if self.array else None


def picture_name(number: int) -> str:
    """Extension of a picture that stands, with others, for a video: WebDataset takes it for a JPEG of the sample."""
    return f"{number:06d}.jpg"


@dataclass(slots=True)
class TarIndex:
    """What a tar holds, in file order."""

    samples: list[Sample]  # the usable ones
    media: list[Media]  # where the video of each of them lies, or its pictures
    rejected: dict[str, str]  # keys of samples that lack something, with the reason (other programs' layouts only)


class _Headers:
    """A file of which `tarfile` can read headers only, so that an extended one of gigabytes is never held in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_EXTENSION_BYTES:
            raise tarfile.ReadError(f"an extended header of {size} bytes")
        return self._file.read(size)


def members_of(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar, in one direction; the file's position may be moved between two."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    last = -1
    with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as tar:
        for member in tar:
            if member.offset <= last or member.size < 0:  # a negative size would lead back, for ever
                raise tarfile.TarError(f"member {member.name!r} does not follow the one before")
            last = member.offset
            if member.isreg() and member.offset_data + member.size > end:
                raise tarfile.TarError(f"member {member.name!r} is cut short")
            here = file.tell()
            yield member
            file.seek(here)


def read_member(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    """Bytes of a member."""
    file.seek(member.offset_data)
    return file.read(member.size)


def check_new(member: tarfile.TarInfo, key: str, extension: str, seen: set[tuple[str, str]]) -> None:
    """Note a member; refuse one that is there twice."""
    if (key, extension) in seen:
        raise tarfile.TarError(f"member {member.name!r} is there twice")
    seen.add((key, extension))


def index_native(file: IO[bytes], uri: str, domain: str, samples: int) -> TarIndex:
    """Pair up the members of a tar in this project's layout: of ``domain``, with as many samples as the manifest lists.

    Raises:
        tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError: a tar in another layout.
        UserError: an annotation in another form.
    """
    annotations: dict[str, Annotation] = {}
    members: defaultdict[str, MediaMembers] = defaultdict(MediaMembers)
    seen: set[tuple[str, str]] = set()
    for member in members_of(file):
        key, extension = _native_name(member)
        check_new(member, key, extension, seen)
        members[key].add(member, extension)
        if len(annotations) > samples or len(members) > samples + 1:  # of one too many, what it lacks is said below
            raise tarfile.TarError(f"more than the {samples} samples that {MANIFEST} says")
        if extension == "json":
            if member.size > MAX_ANNOTATION_BYTES:
                raise tarfile.TarError(f"member {member.name!r} has {member.size} bytes")
            annotations[key] = annotation = parse_annotation(read_member(file, member), key, f"{uri}: {member.name}")
            if annotation.domain != domain:
                raise tarfile.TarError(
                    f"{member.name} is of domain {annotation.domain!r} where {MANIFEST} says {domain!r}"
                )
    index = TarIndex([], [], {})
    for key in dict.fromkeys((*annotations, *members)):
        found = annotations.get(key)
        media = members[key].media(found.frames, found.features) or members[key].array_media() if found else None
        if found is None or media is None:
            raise tarfile.TarError(f"sample {key!r} lacks its video or its annotation")
        index.samples.append(found.sample)
        index.media.append(media)
    return index


def _native_name(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and extension of a member in this project's layout."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        raise tarfile.TarError(f"member {member.name!r} is not a plain file")
    key, _, extension = member.name.partition(".")
    if "/" in member.name or not key:
        raise tarfile.TarError(f"member {member.name!r} is not a plain name")
    if extension not in ("json", "mp4", "txt", FEATURES, ARRAY) and not _PICTURE.fullmatch(extension):
        raise tarfile.TarError(
            f"member {member.name!r} is neither .json, .mp4, .txt, .{FEATURES}, .{ARRAY} nor a numbered .jpg; "
            f"`glscl shards index` reads other layouts"
        )
    return key, extension


class Annotation(NamedTuple):
    """What the ``.json`` member of this project's layout holds."""

    sample: Sample
    domain: object
    frames: FrameTimes | None
    features: FeatureNote | None


def parse_annotation(data: bytes, key: str, where: str) -> Annotation:
    """Read a ``.json`` member of this project's layout, or raise a `UserError`."""
    try:
        value = parse_strict_json(data.decode())  # UnicodeDecodeError is a ValueError
    except ValueError as error:
        raise UserError(f"{where} is not UTF-8 JSON ({error}); build the shards again") from None
    facts = value if isinstance(value, dict) else {}
    captions, video_id = facts.get("captions"), facts.get("video_id")
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        raise UserError(f"{where} has no list of captions; build the shards again")
    if not isinstance(video_id, str):
        raise UserError(f"{where} has no video_id; build the shards again")
    if problem := id_problem(video_id):
        raise UserError(f"{where} has {problem}; build the shards again")
    times = _parse_times(facts, where)
    attributes = facts.get("attributes", {})
    if not isinstance(attributes, dict):
        raise UserError(f"{where}: attributes must be an object; build the shards again")
    frames = _parse_section(FrameTimes, facts, "frames", where)
    features = _parse_section(FeatureNote, facts, "features", where)
    sample = Sample(key, video_id, tuple(captions), *times, attributes)
    return Annotation(sample, facts.get("domain"), frames, features)


def _parse_section(kind: type[_Section], facts: Mapping[str, object], name: str, where: str) -> _Section | None:
    try:
        return kind.model_validate(facts[name]) if name in facts else None
    except ValidationError as error:
        raise UserError(f"{where}: {name}: {first_mistake(error).message}; build the shards again") from None


def _parse_times(facts: Mapping[str, object], where: str) -> tuple[float | None, float | None]:
    start, end = facts.get("start"), facts.get("end")
    if not (_is_time(start) and _is_time(end)) or (end is not None and end <= (start or 0)):
        raise UserError(f"{where}: start and end must be seconds, one after the other; build the shards again")
    return start, end


def _is_time(value: object) -> TypeGuard[float | None]:
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS
