"""Find the samples of tars that other programs wrote: video2dataset, img2dataset, clip-video-encode and the like.

Members that share a name up to its first dot are a sample, with a video of any extension, a picture or an array of
frame features, a caption in ``.txt`` or ``.json``, and whatever else (sound, subtitles), which is passed over.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from glscl.data.benchmarks.base import MAX_CAPTION
from glscl.data.frame_times import STILL
from glscl.data.records import id_problem
from glscl.data.tars import (
    MAX_ANNOTATION_BYTES,
    Annotation,
    Media,
    MediaMembers,
    Sample,
    TarIndex,
    check_new,
    members_of,
    parse_annotation,
    read_member,
)
from glscl.errors import UserError

_NAME = re.compile(r"((?:.*/|)[^./][^.]*)\.([^/]*)", re.DOTALL)  # WebDataset's: the key ends at the first dot
_ID_KEYS = ("video_id", "videoid", "key")
_META = re.compile(r"__[^/]*__($|/)")


@dataclass(slots=True)
class _ForeignSample:
    """What the members of one sample of another program's tar hold, as far as they are read."""

    members: MediaMembers = field(default_factory=MediaMembers)
    native: Annotation | None = None
    video_id: str | None = None
    captions: tuple[str, ...] | None = None  # a list in the metadata
    caption: str | None = None  # one in the metadata
    txt: str | None = None
    problem: str | None = None

    def add(self, file: IO[bytes], member: tarfile.TarInfo, key: str, extension: str) -> None:
        """Take what is needed of one member."""
        self.members.add(member, extension)
        if extension in ("txt", "json") and member.size > MAX_ANNOTATION_BYTES:
            self.problem = f".{extension} of {member.size:,} bytes"
        elif extension == "txt":
            try:
                self.txt = read_member(file, member).decode("utf-8-sig")
            except UnicodeDecodeError:
                self.problem = "a caption that is not UTF-8"
        elif extension == "json":
            self._read_json(key, read_member(file, member))

    def _read_json(self, key: str, data: bytes) -> None:
        with suppress(UserError):  # a tar of this project whose manifest is lost
            self.native = parse_annotation(data, key, "")
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

    def video(self) -> Media | None:
        """Its video, or the pictures that stand for one."""
        return self.members.media(self.native.frames if self.native else None)

    def still(self) -> Media | None:
        """Its picture, as a video of one frame."""
        return Media((self.members.still[1],), STILL) if self.members.still else None

    def array(self) -> Media | None:
        """Its array of frame features."""
        return self.members.array_media()

    def sample(self, key: str, media: Media | None) -> Sample | str:
        """The sample, or why it cannot be one."""
        if media is None:
            return "a picture and no video" if self.members.still else "no video"
        if self.native is not None:
            return self.native.sample
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
    the metadata's ``video_id``, ``videoid`` or ``key``, else the name of the members. In a tar without videos each
    sample's picture is a video of one frame; beside videos, pictures are thumbnails. In a tar without either, ``.npy``
    is an array of frame features (clip-video-encode's tars).

    Raises:
        tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError: no tar, or no usable sample in it.
    """
    samples: dict[str, _ForeignSample] = {}
    seen: set[tuple[str, str]] = set()
    for member in members_of(file):
        name = _NAME.fullmatch(member.name)
        if not member.isreg() or member.sparse is not None or name is None or _META.match(member.name):
            continue  # folders, links and notes about the set
        key, extension = name[1].removeprefix("./"), name[2].lower()
        check_new(member, key, extension, seen)
        samples.setdefault(key, _ForeignSample()).add(file, member, key, extension)
    index = TarIndex([], [], {})
    kinds = (_ForeignSample.video, _ForeignSample.still, _ForeignSample.array)
    of_kind = next((kind for kind in kinds if any(map(kind, samples.values()))), _ForeignSample.video)
    for key, foreign in samples.items():
        media = of_kind(foreign)
        sample = foreign.sample(key, media)
        if isinstance(sample, str):
            index.rejected[key] = sample
        elif media is not None:
            index.samples.append(sample)
            index.media.append(media)
    if not index.samples:
        raise tarfile.TarError(_explain_empty(seen, index.rejected))
    return index


def _explain_empty(seen: set[tuple[str, str]], rejected: Mapping[str, str]) -> str:
    """Say why a tar has no usable sample."""
    for key, reason in rejected.items():
        if reason != "no video":
            return f"no usable sample: {key} has {reason}"
    extensions = ", ".join(f".{extension}" for extension in sorted({extension for _, extension in seen})[:8])
    return f"no video in it ({extensions or 'no members with an extension'})"
