"""Find the samples of a tar by its headers: in this project's layout, strictly, and in those of other programs.

This project's: ``<key>.json`` (everything), ``<key>.mp4`` and ``<key>.txt`` (the first caption; not read here, absent
from older sets). Others' (video2dataset, img2dataset's form, clip-video-encode): members that share a name up to its
first dot are a sample, with a video of any extension, a caption in ``.txt`` or ``.json``, and whatever else.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TypeGuard, cast

from glscl.data.benchmarks.base import MAX_CAPTION
from glscl.data.locate import VIDEO_EXTENSIONS
from glscl.data.records import MOST_SECONDS, id_problem, parse_strict_json
from glscl.errors import UserError

MANIFEST = "manifest.json"
MAX_ANNOTATION_BYTES = 8 << 20
MAX_EXTENSION_BYTES = 64 << 10
"""Longest extended header of a tar (for a long name, say); other tools write a few hundred bytes."""
PICTURES = ("jpg", "jpeg", "png", "webp")
_VIDEO_RANK = {extension: rank for rank, extension in enumerate(VIDEO_EXTENSIONS) if extension not in ("", "null")}
_NAME = re.compile(r"((?:.*/|)[^./][^.]*)\.([^/]*)", re.DOTALL)  # WebDataset's: the key ends at the first dot
_ID_KEYS = ("video_id", "videoid", "key")
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(frozen=True, slots=True)
class Sample:
    """One video with its captions inside an open shard."""

    key: str
    video_id: str
    captions: tuple[str, ...]
    start: float | None
    end: float | None
    attributes: dict[str, object]


@dataclass(slots=True)
class TarIndex:
    """What a tar holds, in file order."""

    samples: list[Sample]  # the usable ones
    videos: list[tuple[int, int]]  # offset and size of the video of each of them
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


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
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


def _read(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)


def _check_new(member: tarfile.TarInfo, key: str, extension: str, seen: set[tuple[str, str]]) -> None:
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
    annotations: dict[str, Sample] = {}
    videos: dict[str, tuple[int, int]] = {}
    seen: set[tuple[str, str]] = set()
    for member in _members(file):
        key, extension = _native_name(member)
        _check_new(member, key, extension, seen)
        if len(seen) > 3 * samples or len(annotations) > samples or len(videos) > samples:
            raise tarfile.TarError(f"more than the {samples} samples that {MANIFEST} says")
        if extension == "json":
            if member.size > MAX_ANNOTATION_BYTES:
                raise tarfile.TarError(f"member {member.name!r} has {member.size} bytes")
            annotations[key], written = _parse_annotation(_read(file, member), key, f"{uri}: {member.name}")
            if written != domain:
                raise tarfile.TarError(f"{member.name} is of domain {written!r} where {MANIFEST} says {domain!r}")
        elif extension == "mp4":
            videos[key] = (member.offset_data, member.size)
    if odd := sorted({key for key, _ in seen} - (annotations.keys() & videos.keys())):
        raise tarfile.TarError(f"sample {odd[0]!r} lacks its video or its annotation")
    return TarIndex(list(annotations.values()), [videos[key] for key in annotations], {})


def _native_name(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and extension of a member in this project's layout."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        raise tarfile.TarError(f"member {member.name!r} is not a plain file")
    key, _, extension = member.name.partition(".")
    if "/" in member.name or not key:
        raise tarfile.TarError(f"member {member.name!r} is not a plain name")
    if extension not in ("json", "mp4", "txt"):
        raise tarfile.TarError(
            f"member {member.name!r} is neither .json, .mp4 nor .txt; `glscl shards index` reads other layouts"
        )
    return key, extension


def _parse_annotation(data: bytes, key: str, where: str) -> tuple[Sample, object]:
    """Read a ``.json`` member of this project's layout, or raise a `UserError`: the sample of that key, its domain."""
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
    return Sample(key, video_id, tuple(captions), *times, attributes), facts.get("domain")


def _parse_times(facts: Mapping[str, object], where: str) -> tuple[float | None, float | None]:
    start, end = facts.get("start"), facts.get("end")
    if not (_is_time(start) and _is_time(end)) or (end is not None and end <= (start or 0)):
        raise UserError(f"{where}: start and end must be seconds, one after the other; build the shards again")
    return start, end


def _is_time(value: object) -> TypeGuard[float | None]:
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS


@dataclass(slots=True)
class _ForeignSample:
    """What the members of one sample of another program's tar hold, as far as they are read."""

    video: tuple[int, int, int] | None = None  # rank of its extension, offset, size
    native: Sample | None = None
    video_id: str | None = None
    captions: tuple[str, ...] | None = None  # a list in the metadata
    caption: str | None = None  # one in the metadata
    txt: str | None = None
    problem: str | None = None
    picture: bool = False

    def add(self, file: IO[bytes], member: tarfile.TarInfo, key: str, extension: str) -> None:
        """Take what is needed of one member."""
        if extension in _VIDEO_RANK:
            video = (_VIDEO_RANK[extension], member.offset_data, member.size)
            self.video = min(video, self.video or video)
        elif extension in ("txt", "json") and member.size > MAX_ANNOTATION_BYTES:
            self.problem = f".{extension} of {member.size:,} bytes"
        elif extension == "txt":
            try:
                self.txt = _read(file, member).decode("utf-8-sig")
            except UnicodeDecodeError:
                self.problem = "a caption that is not UTF-8"
        elif extension == "json":
            self._read_json(key, _read(file, member))
        self.picture |= extension in PICTURES

    def _read_json(self, key: str, data: bytes) -> None:
        with suppress(UserError):  # a tar of this project whose manifest is lost
            self.native, _ = _parse_annotation(data, key, "")
        try:
            value = json.loads(data, parse_constant=lambda _: None)  # other programs: NaN stands for what is not known
        except (ValueError, RecursionError):
            value = None
        facts = value if isinstance(value, dict) else {}
        several, one = facts.get("captions"), facts.get("caption")
        if isinstance(several, list) and all(isinstance(text, str) for text in several):
            self.captions = tuple(several)
        self.caption = one if isinstance(one, str) else None
        names = [facts[name] for name in _ID_KEYS if isinstance(facts.get(name), str | int)]
        self.video_id = str(names[0]) if names else None

    def sample(self, key: str) -> Sample | str:
        """The sample, or why it cannot be one."""
        if self.video is None:
            return "a picture and no video" if self.picture else "no video"
        if self.native is not None:
            return self.native
        texts = self.captions or next(((text,) for text in (self.txt, self.caption) if text and text.strip()), ())
        captions = tuple(text.strip() for text in texts if text.strip())
        video_id = self.video_id or key
        problem = self._caption_problem(captions) or id_problem(video_id)
        return problem or Sample(key, video_id, captions, None, None, {})

    def _caption_problem(self, captions: tuple[str, ...]) -> str | None:
        if not captions:
            return self.problem or "no caption"
        if (longest := max(map(len, captions))) > MAX_CAPTION:
            return f"a caption of {longest:,} characters"
        if any("\ud800" <= character <= "\udfff" for text in captions for character in text):
            return "a caption with half of a surrogate pair"
        return None


def index_foreign(file: IO[bytes]) -> TarIndex:
    """Group the members of a tar that another program wrote, as WebDataset does.

    A caption is the metadata's list ``captions``, else the text of ``.txt``, else the metadata's ``caption``; the id is
    the metadata's ``video_id``, ``videoid`` or ``key``, else the name of the members.

    Raises:
        tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError: no tar, or no usable sample in it.
    """
    samples: dict[str, _ForeignSample] = {}
    seen: set[tuple[str, str]] = set()
    for member in _members(file):
        name = _NAME.fullmatch(member.name)
        if not member.isreg() or member.sparse is not None or name is None or _META.match(member.name):
            continue  # folders, links and notes about the set
        key, extension = name[1].removeprefix("./"), name[2].lower()
        _check_new(member, key, extension, seen)
        samples.setdefault(key, _ForeignSample()).add(file, member, key, extension)
    index = TarIndex([], [], {})
    for key, foreign in samples.items():
        sample = foreign.sample(key)
        if isinstance(sample, str):
            index.rejected[key] = sample
        elif foreign.video:
            index.samples.append(sample)
            index.videos.append(foreign.video[1:])
    if not index.samples:
        raise tarfile.TarError(_explain_empty(samples, seen, index.rejected))
    return index


def _explain_empty(samples: Mapping[str, _ForeignSample], seen: set[tuple[str, str]], rejected: dict[str, str]) -> str:
    if usable := [key for key, sample in samples.items() if sample.video]:
        return f"no usable sample: {usable[0]} has {rejected[usable[0]]}"
    extensions = ", ".join(f".{extension}" for extension in sorted({extension for _, extension in seen})[:8])
    if any(sample.picture for sample in samples.values()):
        return f"pictures, not videos ({extensions}); sets of pictures are not read"
    return f"no video in it ({extensions or 'no members with an extension'})"
