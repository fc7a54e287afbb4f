"""Finding samples in a tar by its headers: our own layout, strictly, and other people's WebDataset layouts.

Our own: ``<key>.json`` (everything), ``<key>.mp4`` and, for stock WebDataset readers, ``<key>.txt`` (the first caption;
not read here, and absent from older sets). Others' (video2dataset, img2dataset's form, clip-video-encode): members that
share a name up to its first dot are a sample, with a video of any extension, a caption in ``.txt`` or ``.json``, and
whatever else (embeddings, sound, subtitles), which is passed over.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, cast

from glscl.data import strict_json
from glscl.data.benchmarks.base import MAX_CAPTION
from glscl.data.locate import VIDEO_EXTENSIONS
from glscl.data.records import MOST_SECONDS, id_problem
from glscl.errors import UserError

MANIFEST = "manifest.json"
MAX_ANNOTATION_BYTES = 8 << 20
MAX_EXTENSION_BYTES = 64 << 10
"""Longest extended header of a tar (a long name, say); ours need none, other tools write a few hundred bytes."""
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
    attributes: dict[str, Any]


@dataclass(slots=True)
class TarIndex:
    """What a tar holds, in file order.

    Attributes:
        samples: its usable samples.
        videos: offset and size of each one's video.
        rejected: keys of samples that lack something, with the reason (foreign layouts only).
    """

    samples: list[Sample]
    videos: list[tuple[int, int]]
    rejected: dict[str, str]


class _Headers:
    """A tar as `tarfile` may read it: headers only, so that an extended one of gigabytes is never held in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_EXTENSION_BYTES:
            raise tarfile.ReadError(f"an extended header of {size} bytes")
        return self._file.read(size)


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, in one direction; the file's position may be moved between two."""
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


def index_own(file: IO[bytes], uri: str, domain: str, samples: int) -> TarIndex:
    """Pair up the members of one of our own tars.

    Args:
        file: the tar.
        uri: its address, for messages.
        domain: that its annotations must be of.
        samples: that it holds, by the manifest.

    Raises:
        tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError: a tar that is none of ours.
        UserError: an annotation that is none of ours.
    """
    texts: dict[str, dict[str, Any]] = {}
    videos: dict[str, tuple[int, int]] = {}
    seen: set[tuple[str, str]] = set()
    for member in _members(file):
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
            raise tarfile.TarError(f"member {member.name!r} is not a plain file")
        key, _, extension = member.name.partition(".")
        if "/" in member.name or not key:
            raise tarfile.TarError(f"member {member.name!r} is not a plain name")
        if extension not in ("json", "mp4", "txt"):
            raise tarfile.TarError(
                f"member {member.name!r} is neither .json, .mp4 nor .txt; `glscl shards index` reads other layouts"
            )
        if (key, extension) in seen:
            raise tarfile.TarError(f"member {member.name!r} is there twice")
        seen.add((key, extension))
        if len(seen) > 3 * samples or len(texts) > samples or len(videos) > samples:
            raise tarfile.TarError(f"more than the {samples} samples that {MANIFEST} says")
        if extension == "json":
            if member.size > MAX_ANNOTATION_BYTES:
                raise tarfile.TarError(f"member {member.name!r} has {member.size} bytes")
            texts[key] = _annotation(_read(file, member), member.name, uri)
            if (found := texts[key].get("domain")) != domain:
                raise tarfile.TarError(f"{member.name} is of domain {found!r} where {MANIFEST} says {domain!r}")
        elif extension == "mp4":
            videos[key] = (member.offset_data, member.size)
    if odd := sorted({key for key, _ in seen} - (texts.keys() & videos.keys())):
        raise tarfile.TarError(f"sample {odd[0]!r} lacks its video or its annotation")
    return TarIndex([_own_sample(key, text) for key, text in texts.items()], [videos[key] for key in texts], {})


def _own_sample(key: str, text: dict[str, Any]) -> Sample:
    return Sample(
        key,
        text["video_id"],
        tuple(text["captions"]),
        text.get("start"),
        text.get("end"),
        text.get("attributes") or {},
    )


def _annotation(data: bytes, name: str, uri: str) -> dict[str, Any]:
    try:
        value = strict_json.loads(data.decode())  # UnicodeDecodeError is a ValueError
    except ValueError as error:
        raise UserError(f"{uri}: {name} is not UTF-8 JSON ({error}); build the shards again") from None
    captions = value.get("captions") if isinstance(value, dict) else None
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        raise UserError(f"{uri}: {name} has no list of captions; build the shards again")
    if not isinstance(value.get("video_id"), str):
        raise UserError(f"{uri}: {name} has no video_id; build the shards again")
    if problem := id_problem(value["video_id"]):
        raise UserError(f"{uri}: {name} has {problem}; build the shards again")
    start, end = (value.get(edge) for edge in ("start", "end"))
    if not all(edge is None or _is_seconds(edge) for edge in (start, end)) or (end is not None and end <= (start or 0)):
        raise UserError(f"{uri}: {name}: start and end must be seconds, one after the other; build the shards again")
    if not isinstance(value.get("attributes", {}), dict):
        raise UserError(f"{uri}: {name}: attributes must be an object; build the shards again")
    checked: dict[str, Any] = value
    return checked


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS


@dataclass(slots=True)
class _Parts:
    """What a foreign sample has been found to hold."""

    video: tuple[int, int, int] | None = None  # rank of its extension, offset, size
    own: Sample | None = None
    video_id: str | None = None
    captions: tuple[str, ...] | None = None  # a list in the metadata
    caption: str | None = None  # one in the metadata
    txt: str | None = None
    problem: str | None = None
    picture: bool = False

    def read_txt(self, data: bytes) -> None:
        """Take the caption of a ``.txt`` member."""
        try:
            self.txt = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.problem = "a caption that is not UTF-8"

    def read_json(self, key: str, data: bytes) -> None:
        """Take what is needed of a ``.json`` member."""
        with suppress(UserError):  # a tar of ours whose manifest is lost
            self.own = _own_sample(key, _annotation(data, key, ""))
        facts = _lenient_json(data)
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
        if self.own is not None:
            return self.own
        texts = self.captions or next(((text,) for text in (self.txt, self.caption) if text and text.strip()), ())
        captions = tuple(text.strip() for text in texts if text.strip())
        if not captions:
            return self.problem or "no caption"
        if (longest := max(map(len, captions))) > MAX_CAPTION:
            return f"a caption of {longest:,} characters"
        if any("\ud800" <= character <= "\udfff" for text in captions for character in text):
            return "a caption with half of a surrogate pair"
        video_id = self.video_id or key
        return id_problem(video_id) or Sample(key, video_id, captions, None, None, {})


def _lenient_json(data: bytes) -> dict[str, Any]:
    """Metadata as other programs write it: NaN stands for what is not known; empty if it is no object."""
    try:
        value = json.loads(data, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def index_foreign(file: IO[bytes]) -> TarIndex:
    """Group the members of a tar that another program wrote, as WebDataset does.

    A caption is the metadata's list ``captions``, else the text of ``.txt``, else the metadata's ``caption``; the id is
    the metadata's ``video_id``, ``videoid`` or ``key``, else the name of the members.

    Raises:
        tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError: no tar, or no usable sample in it.
    """
    found: dict[str, _Parts] = {}
    seen: set[tuple[str, str]] = set()
    for member in _members(file):
        named = _NAME.fullmatch(member.name)
        if not member.isreg() or member.sparse is not None or named is None or _META.match(member.name):
            continue  # folders, links and notes about the set
        key, extension = named[1].removeprefix("./"), named[2].lower()
        if (key, extension) in seen:
            raise tarfile.TarError(f"member {member.name!r} is there twice")
        seen.add((key, extension))
        parts = found.setdefault(key, _Parts())
        if extension in _VIDEO_RANK:
            video = (_VIDEO_RANK[extension], member.offset_data, member.size)
            parts.video = min(video, parts.video or video)
        elif extension in ("txt", "json") and member.size > MAX_ANNOTATION_BYTES:
            parts.problem = f".{extension} of {member.size:,} bytes"
        elif extension == "txt":
            parts.read_txt(_read(file, member))
        elif extension == "json":
            parts.read_json(key, _read(file, member))
        parts.picture |= extension in PICTURES
    index = TarIndex([], [], {})
    for key, parts in found.items():
        sample = parts.sample(key)
        if isinstance(sample, str):
            index.rejected[key] = sample
        elif parts.video:
            index.samples.append(sample)
            index.videos.append(parts.video[1:])
    if not index.samples:
        raise tarfile.TarError(_nothing(found, seen, index.rejected))
    return index


def _nothing(found: dict[str, _Parts], seen: set[tuple[str, str]], rejected: dict[str, str]) -> str:
    """Why a tar has no usable sample."""
    if usable := [key for key, parts in found.items() if parts.video]:
        return f"no usable sample: {usable[0]} has {rejected[usable[0]]}"
    extensions = ", ".join(f".{extension}" for extension in sorted({extension for _, extension in seen})[:8])
    if any(parts.picture for parts in found.values()):
        return f"pictures, not videos ({extensions}); sets of pictures are not read"
    return f"no video in it ({extensions or 'no members with an extension'})"
