"""Writing shard sets: one Ray task per tar, the manifest last."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import webdataset

from glscl import storage
from glscl.data.records import Record
from glscl.data.shards import MANIFEST, Manifest, ShardEntry, summary
from glscl.data.video import MAX_BYTES, MAX_ENCODE_S, VideoError, reencode
from glscl.errors import UserError


@dataclass(frozen=True, slots=True)
class Encoding:
    """Whether videos are copied as they are or re-encoded once.

    Attributes:
        short_side: pixels of the re-encoded short side; 0 copies the files untouched.
        rate: frames a second of the copy.
        max_seconds: CPU seconds that re-encoding one video may take.
    """

    short_side: int = 0
    rate: float = 3.0
    max_seconds: float = MAX_ENCODE_S

    def __str__(self) -> str:
        return f"short side {self.short_side}, {self.rate:g} fps" if self.short_side else "as is"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the records of a shard set come from; goes into the manifest."""

    domain: str
    split: str
    reader: str
    reader_version: int
    sources: tuple[str, ...]


def build_shards(
    records: Sequence[Record],
    videos: dict[str, str],
    output: str,
    origin: Origin,
    *,
    samples_per_shard: int,
    encoding: Encoding | None = None,
    seed: int | None = 0,
    overwrite: bool = False,
    workers: int | None = None,
    missing: Sequence[str] = (),
) -> Manifest:
    """Write a shard set with one Ray task per tar; the manifest comes last, so a half-written set is never readable.

    Records are shuffled by ``seed`` first: annotation files are often sorted by source, and a shard is the unit in
    which the stream shuffles.

    Args:
        records: videos and captions.
        videos: path or URI of each record's video file.
        output: folder or ``s3://`` prefix.
        origin: provenance.
        samples_per_shard: videos in one tar.
        encoding: copy or re-encode; the default copies.
        seed: of the shuffle; None keeps the order of the records, so that neighbours share shards and batches.
        overwrite: replace a set that is already there.
        workers: tars written at once; None uses every CPU of the cluster, 0 writes in this process without Ray.
        missing: videos known to have no file; listed in the manifest as rejected.

    Raises:
        UserError: nothing to write, or the folder already holds a set.
    """
    output = storage.resolve(output)
    encoding = encoding or Encoding()
    check_output(records, output, origin, overwrite)
    if samples_per_shard < 1:
        raise UserError(f"--samples-per-shard is {samples_per_shard}; it must be at least 1")
    if overwrite:  # the manifest first: until the new one is there, nobody may take the folder for a whole set
        storage.remove(storage.join(output, MANIFEST))
        for name in storage.list_names(output):
            if name.startswith("shard-") and name.endswith(".tar"):
                storage.remove(storage.join(output, name))
    order = np.arange(len(records)) if seed is None else np.random.RandomState(seed).permutation(len(records))
    chunks = [order[at : at + samples_per_shard] for at in range(0, len(order), samples_per_shard)]
    jobs = [
        (
            [(int(i), records[i], videos[records[i].video_id]) for i in chunk],
            storage.join(output, f"shard-{index:06d}.tar"),
            origin.domain,
            encoding,
        )
        for index, chunk in enumerate(chunks)
    ]
    written = [_write_shard(*job) for job in jobs] if workers == 0 else _write_with_ray(jobs, workers)
    rejected = dict.fromkeys(missing, "no file")
    rejected |= {video: reason for _, bad in written for video, reason in bad.items()}
    shards = tuple(entry for entry, _ in written if entry is not None)
    ids = [
        records[i].video_id
        for chunk, (_, bad) in zip(chunks, written, strict=True)
        for i in chunk
        if records[i].video_id not in bad
    ]
    if not shards:
        raise UserError(f"{origin.domain}: none of {len(records)} videos could be read: {summary(rejected)}")
    manifest = Manifest(
        **asdict(origin),
        encoding=str(encoding),
        videos=sum(entry.samples for entry in shards),
        pairs=sum(entry.pairs for entry in shards),
        shards=shards,
        rejected=dict(sorted(rejected.items())),
        video_ids=tuple(name.encode("utf-8", "replace").decode() for name in ids),  # as in the tars
    )
    storage.write_json(storage.join(output, MANIFEST), manifest.model_dump(mode="json"))
    return manifest


def check_output(records: Sequence[Record], output: str, origin: Origin, overwrite: bool) -> None:
    """Refuse what `build_shards` cannot write.

    Raises:
        UserError: nothing to write, or the folder already holds a set or cannot be written.
    """
    if not records:
        raise UserError(f"domain '{origin.domain}' split '{origin.split}' is empty: nothing to write to {output}")
    if storage.exists(storage.join(output, MANIFEST)) and not overwrite:
        raise UserError(f"{output}: already holds a shard set; choose another --output or pass --overwrite")
    storage.check_writable(storage.resolve(output), "--output")


_ShardJob = tuple[list[tuple[int, Record, str]], str, str, Encoding]
_ShardResult = tuple[ShardEntry | None, dict[str, str]]


def _write_with_ray(jobs: list[_ShardJob], workers: int | None) -> list[_ShardResult]:
    """Write the tars as Ray tasks, a bounded number at a time; results in the order of ``jobs``."""
    import ray

    task = ray.remote(num_cpus=1)(_write_shard)
    limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    results: dict[int, _ShardResult] = {}
    pending: dict[Any, int] = {}
    for index, job in enumerate(jobs):
        pending[task.remote(*job)] = index
        while len(pending) >= limit or (pending and index == len(jobs) - 1):
            done, _ = ray.wait(list(pending), num_returns=1)
            results[pending.pop(done[0])] = ray.get(done[0])
    return [results[index] for index in range(len(jobs))]


def _video_file(path: str) -> bytes:
    try:
        if storage.size(path) > MAX_BYTES:
            raise VideoError(f"more than {MAX_BYTES >> 30} GiB")
        return storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise VideoError(f"unreadable file ({type(error).__name__})") from None


def _write_shard(items: list[tuple[int, Record, str]], uri: str, domain: str, encoding: Encoding) -> _ShardResult:
    """Write one tar; returns its entry (None if no video was readable) and the rejected videos."""
    rejected: dict[str, str] = {}
    samples = pairs = 0
    with tempfile.NamedTemporaryFile(prefix="glscl-shard-", suffix=".tar") as file:
        with webdataset.TarWriter(file, encoder=False, mtime=0, user="glscl", group="glscl") as tar:
            for number, record, path in items:
                try:
                    data = _video_file(path)
                    if not data:
                        raise VideoError("empty file")
                    if encoding.short_side:
                        data = reencode(data, encoding.short_side, encoding.rate, encoding.max_seconds)
                except VideoError as error:
                    rejected[record.video_id] = str(error)
                    continue
                annotation = asdict(record) | {"domain": domain}
                tar.write(
                    {
                        "__key__": f"{number:08d}",
                        "json": json.dumps(annotation, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace"),
                        "mp4": data,
                    }
                )
                samples += 1
                pairs += len(record.captions)
        file.flush()
        if not samples:
            return None, rejected
        size = os.path.getsize(file.name)
        digest = _sha256(file.name)
        storage.upload(file.name, uri)
    name = uri.rsplit("/", 1)[1]
    return ShardEntry(name=name, samples=samples, pairs=pairs, bytes=size, sha256=digest), rejected


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
