"""Shard sets: WebDataset tars with a manifest, opened, verified, and read at random inside one tar.

A shard set is a folder (local or ``s3://``) of ``shard-000000.tar ...`` and ``manifest.json``. A sample is
``<key>.json``, ``<key>.mp4`` (pictures, features) and ``<key>.txt`` (`glscl.data.tars`); keys are running numbers, so
names from annotation files never become paths. `glscl.data.foreign` writes manifests for tars of other programs.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Annotated

from pydantic import AfterValidator, Field, ValidationError

from glscl.data.feature_facts import FeatureFacts, check_printable
from glscl.data.foreign_tars import index_foreign
from glscl.data.limits import MAX_BYTES, VideoError
from glscl.data.records import describe_share
from glscl.data.tars import MANIFEST as MANIFEST
from glscl.data.tars import Sample as Sample
from glscl.data.tars import index_native
from glscl.errors import UserError
from glscl.options import Options
from glscl.options.mistakes import first_mistake
from glscl.system import storage
from glscl.system.progress import Progress

FORMAT = 1
FOREIGN = "webdataset"
"""Reader that the manifest of another program's tars names."""
MAX_MANIFEST_BYTES = 1 << 30

_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 50)]
_Position = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]  # `stream.video_number` has 24 bits for it
_Text = Annotated[str, Field(max_length=4096), AfterValidator(check_printable)]


class ShardEntry(Options):
    """One tar of the set."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.tar$")
    """A plain name: it is joined to the address of the set."""
    samples: _Position
    pairs: _Count
    bytes: _Count
    sha256: str = Field(max_length=64)


class Manifest(Options):
    """What a shard set holds, with everything that the order of the stream depends on."""

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
    repaired: dict[str, str] = Field(default_factory=dict)
    """Videos re-encoded although not every picture decoded, with ``3 of 250 pictures``: the nearest stand for those."""
    video_ids: tuple[str, ...] = ()
    """Of every video, in the order of the shards: tells sets apart without a tar. Sets of older versions have none."""
    captions: tuple[_Count, ...] = ()
    """Of every video, how many, in the same order. Sets of older versions do not say."""
    features: FeatureFacts | None = None
    """Of a set whose samples hold features of frozen towers in place of videos."""

    @property
    def is_foreign(self) -> bool:
        """Whether another program wrote the tars, and `glscl shards index` this manifest."""
        return self.reader == FOREIGN

    def share(self) -> str:
        """``15 of 19``: its videos, wherever some were left out when the set was built."""
        return describe_share(self.videos, self.videos + len(self.rejected))

    def fingerprint(self) -> str:
        """Hash of the contents (not of where they lie)."""
        content = self.model_dump(include={"domain", "split", "shards"}, mode="json")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ShardSet:
    """A manifest and the folder that holds it."""

    uri: str
    manifest: Manifest

    def shard_uri(self, index: int) -> str:
        """Address of one tar."""
        return storage.join(self.uri, self.manifest.shards[index].name)


class BrokenShardError(UserError):
    """A tar that is not what its manifest says."""

    problem: str = ""  # the message without what to do about it


def open_shard_set(uri: str) -> ShardSet:
    """Read a manifest and check that every tar is there with the size it promises (one listing, no tar is read).

    Raises:
        UserError: no manifest, not a manifest, a tar missing or of another size.
    """
    shard_set = read_manifest(uri)
    for problem in _wrong_sizes(shard_set).values():
        raise broken_shard_error(shard_set, problem)
    return shard_set


def _wrong_sizes(shard_set: ShardSet) -> dict[str, str]:
    """Say, by name, what is wrong with tars that are missing or of another size."""
    sizes = {entry.name: entry.bytes for entry in shard_set.manifest.shards}
    return {
        name: f"{storage.join(shard_set.uri, name)}: "
        + (f"listed in {MANIFEST} but not there" if size is None else _describe_size(size, sizes[name]))
        for name, size in storage.wrong_sizes(shard_set.uri, sizes).items()
    }


def _describe_size(size: int, expected: int) -> str:
    return f"{size} bytes where {MANIFEST} says {expected}"


def broken_shard_error(shard_set: ShardSet, problem: str) -> BrokenShardError:
    """Build the error for a tar that is not what its manifest says."""
    again = (
        f"copy it again, or run `glscl shards index --overwrite {shard_set.uri}`"
        if shard_set.manifest.is_foreign
        else "build or copy it again"
    )
    error = BrokenShardError(f"{problem}; run `glscl shards verify {shard_set.uri}` and {again}")
    error.problem = problem
    return error


def read_manifest(uri: str) -> ShardSet:
    """Read a manifest; the tars are not looked at.

    Raises:
        UserError: no manifest, or not a manifest.
    """
    uri = storage.resolve(uri)
    where = storage.join(uri, MANIFEST)
    if not storage.exists(where):
        raise UserError(
            f"{where}: no such file; write the shards with `glscl shards build --output {uri}`, or, where other "
            f"programs' tars lie there, run `glscl shards index {uri}`"
        )
    if (size := storage.size(where)) > MAX_MANIFEST_BYTES:
        raise UserError(f"{where}: {size:,} bytes are no shard manifest; build the shards again")
    try:
        manifest = Manifest.model_validate(storage.read_json(where))
    except ValidationError as error:
        raise UserError(f"{where}: not a shard manifest ({first_mistake(error, 'top level')})") from None
    _check_manifest(manifest, where)
    return ShardSet(uri, manifest)


def _check_manifest(manifest: Manifest, where: str) -> None:
    """Refuse a manifest whose values contradict each other."""
    if manifest.format != FORMAT:
        raise UserError(f"{where}: format {manifest.format}, this version reads {FORMAT}; build the shards again")
    names = Counter(entry.name for entry in manifest.shards)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise UserError(f"{where}: {repeated[0]} is listed {names[repeated[0]]} times; build the shards again")
    for what, total, counts in (
        ("samples", manifest.videos, [entry.samples for entry in manifest.shards]),
        ("pairs", manifest.pairs, [entry.pairs for entry in manifest.shards]),
    ):
        if sum(counts) != total or any(count < 1 for count in counts):
            raise UserError(f"{where}: the shards' {what} do not add up to {total}; build the shards again")
    if not manifest.pairs:
        raise UserError(f"{where}: domain '{manifest.domain}' split '{manifest.split}' is empty")


class Shard:
    """Random access to the samples of one tar.

    A local tar is read in place; a remote one is copied to an unnamed temporary file first, so memory holds the index
    and the captions only, and nothing is left behind when the process is killed.

    Raises:
        UserError: the tar is torn or holds other samples than the manifest says.
    """

    def __init__(self, shard_set: ShardSet, index: int, cache_dir: str | None = None) -> None:
        manifest = shard_set.manifest
        entry = manifest.shards[index]
        self.uri = shard_set.shard_uri(index)
        self._set = shard_set
        try:
            self._file = local_file(self.uri, cache_dir)
        except FileNotFoundError:
            raise broken_shard_error(shard_set, f"{self.uri}: listed in {MANIFEST} but not there") from None
        if storage.is_remote(self.uri) and (size := self._file.seek(0, io.SEEK_END)) != entry.bytes:
            raise self._broken(_describe_size(size, entry.bytes))
        try:
            contents = (
                index_foreign(self._file)
                if manifest.is_foreign
                else index_native(self._file, self.uri, manifest.domain, entry.samples)
            )
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise self._broken(f"unusable ({error})") from None
        except BaseException:
            self.close()
            raise
        self.samples, self.media, self.features = contents.samples, contents.media, manifest.features
        pairs = [(position, caption) for position, s in enumerate(self.samples) for caption in range(len(s.captions))]
        if len(self.samples) != entry.samples or len(pairs) != entry.pairs:
            raise self._broken(
                f"{len(self.samples)} samples and {len(pairs)} pairs where {MANIFEST} says "
                f"{entry.samples} and {entry.pairs}"
            )
        self.pairs = pairs

    def _broken(self, what: str) -> UserError:
        self.close()
        return broken_shard_error(self._set, f"{self.uri}: {what}")

    def read(self, position: int, number: int = 0) -> bytes:
        """Bytes of one sample's video, or of one of the pictures that stand for it.

        Raises:
            VideoError: it is larger than any video that is decoded.
            UserError: the tar has become shorter since it was opened.
        """
        size = self.media[position].parts[number][1]
        if size > MAX_BYTES:
            raise VideoError(f"more than {MAX_BYTES >> 30} GiB")
        return self.read_range(position, 0, size, number)

    def read_range(self, position: int, begin: int, size: int, number: int = 0) -> bytes:
        """So many bytes of what `read` reads; the errors are the same."""
        offset, whole = self.media[position].parts[number]
        if begin + size > whole:
            raise VideoError("features cut short")
        self._file.seek(offset + begin)
        data = self._file.read(size)
        if len(data) != size:
            raise self._broken(f"sample {self.samples[position].key} is cut short")
        return data

    def close(self) -> None:
        """Release the file (and the disk space of a remote shard's copy)."""
        self._file.close()


def local_file(uri: str, cache_dir: str | None = None) -> IO[bytes]:
    """Open a tar as a local file: itself, or an unnamed copy in ``cache_dir`` (the system's temporary folder)."""
    if not storage.is_remote(uri):
        return open(uri, "rb")
    if cache_dir:
        os.makedirs(cache_dir, exist_ok=True)
    copy = tempfile.TemporaryFile(dir=cache_dir, prefix="glscl-shard-")  # noqa: SIM115 (lives as long as the shard)
    try:
        with storage.open_read(uri) as remote:  # get_file wants a name, and a named copy would outlive a killed process
            shutil.copyfileobj(remote, copy, 8 << 20)
    except BaseException as error:
        with suppress(OSError):  # it writes what is left
            copy.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{uri}: no room for its copy in {cache_dir or tempfile.gettempdir()} ({error.strerror}): free space "
                f"there, or let data.cache_dir name a folder on another disk"
            ) from error
        raise
    return copy


def verify_shards(uri: str) -> list[str]:
    """Read every tar and compare it with the manifest: bytes, checksum, samples, pairs.

    Returns:
        One line per problem; empty when the set is sound.
    """
    shard_set = read_manifest(uri)
    wrong = _wrong_sizes(shard_set)
    problems: list[str] = []
    with Progress(f"reading {uri}", len(shard_set.manifest.shards), "shards") as progress:
        for index, entry in enumerate(shard_set.manifest.shards):
            problems += [wrong[entry.name]] if entry.name in wrong else _verify_one(shard_set, index)
            progress.advance()
    return problems


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
    except BrokenShardError as error:
        yield error.problem
    except UserError as error:
        yield str(error)


def describe_manifest(manifest: Manifest) -> dict[str, str]:
    """Describe a set as ``glscl shards info`` prints it."""
    sizes = [entry.bytes for entry in manifest.shards]
    return {
        "domain": manifest.domain,
        "split": manifest.split,
        "videos": manifest.share(),
        "pairs": f"{manifest.pairs:,} ({manifest.pairs / manifest.videos:.2f} captions per video)",
        "shards": f"{len(sizes)} of {min(sizes) / 1e6:.1f} to {max(sizes) / 1e6:.1f} MB",
        "bytes": f"{sum(sizes):,}",
        "encoding": manifest.encoding,
        "reader": f"{manifest.reader} (version {manifest.reader_version})",
        "sources": ", ".join(manifest.sources) or "none",
        "rejected": count_reasons(manifest.rejected) or "none",
        "repaired": f"{len(manifest.repaired)} (pictures that do not decode, replaced by the nearest)"
        if manifest.repaired
        else "none",
        "fingerprint": manifest.fingerprint()[:16],
    }


def count_reasons(rejected: dict[str, str]) -> str:
    """Count rejected videos by reason, the commonest first."""
    return ", ".join(f"{count} x {reason}" for reason, count in Counter(rejected.values()).most_common())
