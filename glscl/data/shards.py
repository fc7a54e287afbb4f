"""WebDataset shards with a manifest: written by Ray tasks, verified, read at random inside one shard.

A shard set is a folder (local or ``s3://``) of ``shard-000000.tar ...`` and ``manifest.json``. A sample is two members,
``<key>.mp4`` and ``<key>.json``; keys are running numbers, so names from annotation files never become paths.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Annotated, Any, cast

from pydantic import AfterValidator, Field, ValidationError

from glscl import storage
from glscl.data import strict_json
from glscl.data.records import MOST_SECONDS, id_problem
from glscl.data.video import MAX_BYTES, VideoError
from glscl.errors import UserError, printable
from glscl.options import Options

MANIFEST = "manifest.json"
FORMAT = 1
MAX_ANNOTATION_BYTES = 8 << 20
MAX_EXTENSION_BYTES = 64 << 10
"""Longest extended header of a tar (a long name, say); ours need none, other tools write a few hundred bytes."""
MAX_MANIFEST_BYTES = 1 << 30

_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 50)]
_Position = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]  # `stream.video_number` has 24 bits for it
_Text = Annotated[str, Field(max_length=4096), AfterValidator(lambda text: _printable(text))]


def _printable(text: str) -> str:
    if not printable(text):
        raise ValueError(f"a character that cannot be printed ({text[:80]!a})")
    return text


class ShardEntry(Options):
    """One tar of the set."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.tar$")
    """A plain name: it is joined to the address of the set."""
    samples: _Position
    pairs: _Count
    bytes: _Count
    sha256: str = Field(max_length=64)


class Manifest(Options):
    """What a shard set holds; everything that the order of the stream depends on."""

    format: Annotated[int, Field(strict=True)] = FORMAT
    domain: _Text
    split: _Text
    reader: _Text
    reader_version: _Count
    sources: tuple[_Text, ...]
    encoding: _Text
    videos: _Count
    pairs: _Count
    shards: Annotated[tuple[ShardEntry, ...], Field(max_length=1 << 24)]
    rejected: dict[str, str] = Field(default_factory=dict)
    """Videos left out when the set was built, with the reason."""
    video_ids: tuple[str, ...] = ()
    """Of every video, in the order of the shards: tells sets apart without a tar. Sets of older versions have none."""

    def fingerprint(self) -> str:
        """Hash of the contents (not of where they lie)."""
        content = self.model_dump(include={"domain", "split", "shards"}, mode="json")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ShardSet:
    """A manifest together with the folder that holds it."""

    uri: str
    manifest: Manifest

    def shard_uri(self, index: int) -> str:
        """Address of one tar."""
        return storage.join(self.uri, self.manifest.shards[index].name)


@dataclass(frozen=True, slots=True)
class Sample:
    """One video with its captions inside an open shard."""

    key: str
    video_id: str
    captions: tuple[str, ...]
    start: float | None
    end: float | None
    attributes: dict[str, Any]


def open_shard_set(uri: str) -> ShardSet:
    """Read a manifest and check that every tar is there with the size it promises (one listing, no tar is read).

    Raises:
        UserError: no manifest, not a manifest, a tar missing or of another size.
    """
    uri = storage.resolve(uri)
    where = storage.join(uri, MANIFEST)
    if not storage.exists(where):
        raise UserError(f"{where}: no such file; write the shards with `glscl shards build --output {uri}`")
    if (size := storage.size(where)) > MAX_MANIFEST_BYTES:
        raise UserError(f"{where}: {size:,} bytes are no shard manifest; build the shards again")
    try:
        manifest = Manifest.model_validate(storage.read_json(where))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "top level"
        raise UserError(f"{where}: not a shard manifest ({field}: {first['msg']})") from None
    if manifest.format != FORMAT:
        raise UserError(f"{where}: format {manifest.format}, this version reads {FORMAT}; build the shards again")
    names = Counter(entry.name for entry in manifest.shards)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{where}: {repeated[0]} is listed {names[repeated[0]]} times; build the shards again")
    for what, total, parts in (
        ("samples", manifest.videos, [entry.samples for entry in manifest.shards]),
        ("pairs", manifest.pairs, [entry.pairs for entry in manifest.shards]),
    ):
        if sum(parts) != total or any(part < 1 for part in parts):
            raise UserError(f"{where}: the shards' {what} do not add up to {total}; build the shards again")
    if not manifest.pairs:
        raise UserError(f"{where}: domain '{manifest.domain}' split '{manifest.split}' is empty")
    sizes = {entry.name: entry.bytes for entry in manifest.shards}
    for name, found in storage.wrong_sizes(uri, sizes).items():
        if found is None:
            raise UserError(f"{storage.join(uri, name)}: listed in {MANIFEST} but not there")
        raise UserError(
            f"{storage.join(uri, name)}: {found} bytes where {MANIFEST} says {sizes[name]}; "
            f"run `glscl shards verify {uri}` and build or copy it again"
        )
    return ShardSet(uri, manifest)


class Shard:
    """Random access to the samples of one tar.

    A local tar is read in place; a remote one is copied to an unnamed temporary file first, so memory holds the index
    and the captions only, and nothing is left behind when the process is killed.

    Raises:
        UserError: the tar is torn or holds other samples than the manifest says.
    """

    def __init__(self, shard_set: ShardSet, index: int, cache_dir: str | None = None) -> None:
        entry = shard_set.manifest.shards[index]
        self.uri = shard_set.shard_uri(index)
        try:
            self._file = _local_file(self.uri, entry.bytes, cache_dir)
        except FileNotFoundError:
            raise UserError(f"{self.uri}: listed in {MANIFEST} but not there; build or copy it again") from None
        try:
            self.samples, self._videos = _index_tar(self._file, self.uri, shard_set.manifest.domain, entry)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise self._broken(f"unusable ({error})") from None
        except BaseException:
            self.close()
            raise
        pairs = [(position, caption) for position, s in enumerate(self.samples) for caption in range(len(s.captions))]
        if len(self.samples) != entry.samples or len(pairs) != entry.pairs:
            raise self._broken(
                f"{len(self.samples)} samples and {len(pairs)} pairs where {MANIFEST} says "
                f"{entry.samples} and {entry.pairs}"
            )
        self.pairs = pairs

    def _broken(self, what: str) -> UserError:
        self.close()
        folder = self.uri.rsplit("/", 1)[0]
        return UserError(f"{self.uri}: {what}; run `glscl shards verify {folder}` and build or copy it again")

    def video(self, position: int) -> bytes:
        """Video bytes of one sample.

        Raises:
            VideoError: it is larger than any video that is decoded.
            UserError: the tar has become shorter since it was opened.
        """
        offset, size = self._videos[position]
        if size > MAX_BYTES:
            raise VideoError(f"more than {MAX_BYTES >> 30} GiB")
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise self._broken(f"sample {self.samples[position].key} is cut short")
        return data

    def close(self) -> None:
        """Release the file (and the disk space of a remote shard's copy)."""
        self._file.close()


def _local_file(uri: str, size: int, cache_dir: str | None) -> IO[bytes]:
    if not storage.is_remote(uri):
        return open(uri, "rb")
    if cache_dir:
        os.makedirs(cache_dir, exist_ok=True)
    copy = tempfile.TemporaryFile(dir=cache_dir, prefix="glscl-shard-")  # noqa: SIM115 (lives as long as the shard)
    try:
        with storage.open_read(uri) as remote:  # get_file wants a name, and a named copy would outlive a killed process
            shutil.copyfileobj(remote, copy, 8 << 20)
        if copy.tell() != size:
            raise UserError(f"{uri}: {copy.tell()} bytes where {MANIFEST} says {size}; build or copy it again")
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy


class _Headers:
    """A tar as `tarfile` may read it: headers only, so that an extended one of gigabytes is never held in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_EXTENSION_BYTES:
            raise tarfile.ReadError(f"an extended header of {size} bytes")
        return self._file.read(size)


def _index_tar(file: IO[bytes], uri: str, domain: str, entry: ShardEntry) -> tuple[list[Sample], list[tuple[int, int]]]:
    """Pair up ``.json`` and ``.mp4`` members in file order."""
    texts: dict[str, dict[str, Any]] = {}
    videos: dict[str, tuple[int, int]] = {}
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    last = -1
    with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as tar:
        for member in tar:
            if member.offset <= last or member.size < 0:  # a negative size would lead back, for ever
                raise tarfile.TarError(f"member {member.name!r} does not follow the one before")
            last = member.offset
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
                raise tarfile.TarError(f"member {member.name!r} is not a plain file")
            key, _, extension = member.name.partition(".")
            if "/" in member.name or not key:
                raise tarfile.TarError(f"member {member.name!r} is not a plain name")
            if key in (texts if extension == "json" else videos):
                raise tarfile.TarError(f"member {member.name!r} is there twice")
            if len(texts if extension == "json" else videos) == entry.samples:
                raise tarfile.TarError(f"more than the {entry.samples} samples that {MANIFEST} says")
            if member.offset_data + member.size > end:
                raise tarfile.TarError(f"member {member.name!r} is cut short")
            if extension == "json":
                if member.size > MAX_ANNOTATION_BYTES:
                    raise tarfile.TarError(f"member {member.name!r} has {member.size} bytes")
                here = file.tell()
                file.seek(member.offset_data)
                texts[key] = _annotation(file.read(member.size), member.name, uri)
                file.seek(here)
                if texts[key].get("domain") != domain:
                    found = texts[key].get("domain")
                    raise tarfile.TarError(f"{member.name} is of domain {found!r} where {MANIFEST} says {domain!r}")
            elif extension == "mp4":
                videos[key] = (member.offset_data, member.size)
            else:
                raise tarfile.TarError(f"member {member.name!r} is neither .mp4 nor .json")
    if texts.keys() != videos.keys():
        odd = sorted(texts.keys() ^ videos.keys())[0]
        raise tarfile.TarError(f"sample {odd!r} lacks its video or its annotation")
    samples = [
        Sample(key, t["video_id"], tuple(t["captions"]), t.get("start"), t.get("end"), t.get("attributes") or {})
        for key, t in texts.items()
    ]
    return samples, [videos[sample.key] for sample in samples]


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


def verify_shards(uri: str) -> list[str]:
    """Read every tar and compare it with the manifest: bytes, checksum, samples, pairs.

    Returns:
        One line per problem; empty when the set is sound.
    """
    shard_set = open_shard_set(uri)
    return [problem for index in range(len(shard_set.manifest.shards)) for problem in _verify_one(shard_set, index)]


def _verify_one(shard_set: ShardSet, index: int) -> Iterator[str]:
    entry = shard_set.manifest.shards[index]
    digest = hashlib.sha256()
    with storage.open_read(shard_set.shard_uri(index)) as file:
        while block := file.read(8 << 20):
            digest.update(block)
    if digest.hexdigest() != entry.sha256:
        yield f"{shard_set.shard_uri(index)}: checksum differs from the manifest's"
    try:
        Shard(shard_set, index).close()
    except UserError as error:
        yield str(error)


def describe(manifest: Manifest) -> dict[str, str]:
    """What ``glscl shards info`` prints."""
    sizes = [entry.bytes for entry in manifest.shards]
    return {
        "domain": manifest.domain,
        "split": manifest.split,
        "videos": f"{manifest.videos:,}",
        "pairs": f"{manifest.pairs:,} ({manifest.pairs / manifest.videos:.2f} captions per video)",
        "shards": f"{len(sizes)} of {min(sizes) / 1e6:.1f} to {max(sizes) / 1e6:.1f} MB",
        "bytes": f"{sum(sizes):,}",
        "encoding": manifest.encoding,
        "reader": f"{manifest.reader} (version {manifest.reader_version})",
        "sources": ", ".join(manifest.sources) or "none",
        "rejected": summary(manifest.rejected) or "none",
        "fingerprint": manifest.fingerprint()[:16],
    }


def summary(rejected: dict[str, str]) -> str:
    """Rejected videos counted by reason, the commonest first."""
    return ", ".join(f"{count} x {reason}" for reason, count in Counter(rejected.values()).most_common())
