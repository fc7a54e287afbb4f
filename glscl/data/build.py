"""Writing shard sets: one Ray task per tar, the manifest last."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from glscl.data.limits import MAX_BYTES, MAX_ENCODE_S, VideoError
from glscl.data.quarantine import FILE, LISTED
from glscl.data.records import Record
from glscl.data.shards import MANIFEST, Manifest, ShardEntry, count_reasons
from glscl.errors import UserError
from glscl.system import storage
from glscl.system.ownership import Fence
from glscl.system.progress import Progress


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
    max_bad_fraction: float = 1.0,
    overwrite: bool = False,
    workers: int | None = None,
    missing: Sequence[str] = (),
    fence: Fence | None = None,
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
        max_bad_fraction: share of the records whose video may be empty, unreadable or undecodable (``missing`` ones do
            not count); with more the build ends at once, and ``quarantine.jsonl`` lists those known by then.
        overwrite: replace a set that is already there.
        workers: tars written at once; None uses every CPU of the cluster, 0 writes in this process without Ray.
        missing: videos known to have no file; listed in the manifest as rejected.
        fence: of the command that owns the folder, looked at before each file of it is written.

    Raises:
        UserError: nothing to write, too many videos that cannot be used, or the folder already holds a set.
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
            fence,
        )
        for index, chunk in enumerate(chunks)
    ]
    storage.remove(storage.join(output, FILE))  # of a build that failed
    check = partial(_check_rejected, records=len(records), limit=max_bad_fraction, output=output, origin=origin)
    with Progress(f"writing {origin.domain}/{origin.split}", len(records), "videos") as progress:
        written = (
            _write_here(jobs, check, progress) if workers == 0 else _write_with_ray(jobs, workers, check, progress)
        )
    rejected = dict.fromkeys(missing, "no file") | _rejected(written)
    shards = tuple(entry for entry, _, _ in written if entry is not None)
    ids = [
        records[i].video_id
        for chunk, (_, bad, _) in zip(chunks, written, strict=True)
        for i in chunk
        if records[i].video_id not in bad
    ]
    if not shards:
        raise UserError(f"{origin.domain}: none of {len(records)} videos could be read: {count_reasons(rejected)}")
    manifest = Manifest(
        **asdict(origin),
        encoding=str(encoding),
        videos=sum(entry.samples for entry in shards),
        pairs=sum(entry.pairs for entry in shards),
        shards=shards,
        rejected=dict(sorted(rejected.items())),
        repaired=dict(sorted((video, what) for *_, mended in written for video, what in mended.items())),
        video_ids=tuple(name.encode("utf-8", "replace").decode() for name in ids),  # as in the tars
    )
    if fence is not None:
        fence.check()
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


_ShardJob = tuple[list[tuple[int, Record, str]], str, str, Encoding, Fence | None]
_ShardResult = tuple[ShardEntry | None, dict[str, str], dict[str, str]]


def _rejected(written: Iterable[_ShardResult]) -> dict[str, str]:
    return {video: reason for _, bad, _ in written for video, reason in bad.items()}


def _check_rejected(written: Iterable[_ShardResult], records: int, limit: float, output: str, origin: Origin) -> None:
    """End a build of which more than ``limit`` of the records cannot be used, and list those that are known.

    Raises:
        UserError: so it is.
    """
    rejected = _rejected(written)
    if len(rejected) <= limit * records:
        return
    where = storage.join(output, FILE)
    origin_words = {"part": "build", "domain": origin.domain, "split": origin.split, "set": output}
    lines = [origin_words | {"video_id": video, "reason": reason} for video, reason in rejected.items()]
    storage.write_bytes(where, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    shown = "; ".join(f"{video} ({reason})" for video, reason in list(rejected.items())[:LISTED])
    more = f" and {len(rejected) - LISTED} more" if len(rejected) > LISTED else ""
    raise UserError(
        f"{origin.domain}/{origin.split}: {len(rejected)} of {records} videos so far cannot be used, more than "
        f"--max-bad-fraction ({limit:g}): {shown}{more} (all in {where}); mend or remove them, or raise "
        f"--max-bad-fraction"
    )


_Check = Callable[[Iterable[_ShardResult]], None]


def _write_here(jobs: list[_ShardJob], check: _Check, progress: Progress) -> list[_ShardResult]:
    """Write the tars in this process."""
    results: list[_ShardResult] = []
    for job in jobs:
        results.append(_write_shard(*job))
        check(results)
        progress.advance(len(job[0]))
    return results


def _write_with_ray(
    jobs: list[_ShardJob], workers: int | None, check: _Check, progress: Progress
) -> list[_ShardResult]:
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
            written = pending.pop(done[0])
            results[written] = ray.get(done[0])
            check(results.values())
            progress.advance(len(jobs[written][0]))
    return [results[index] for index in range(len(jobs))]


def _video_file(path: str) -> bytes:
    try:
        if storage.size(path) > MAX_BYTES:
            raise VideoError(f"more than {MAX_BYTES >> 30} GiB")
        return storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise VideoError(f"unreadable file ({type(error).__name__})") from None


def _write_shard(
    items: list[tuple[int, Record, str]], uri: str, domain: str, encoding: Encoding, fence: Fence | None
) -> _ShardResult:
    """Write one tar; returns its entry (None if no video was readable), the rejected and the repaired videos."""
    import webdataset  # with torch and what decodes, seconds to import

    from glscl.data.video import make_copy

    rejected: dict[str, str] = {}
    repaired: dict[str, str] = {}
    samples = pairs = 0
    with tempfile.NamedTemporaryFile(prefix="glscl-shard-", suffix=".tar") as file:
        with webdataset.TarWriter(file, encoder=False, mtime=0, user="glscl", group="glscl") as tar:
            for number, record, path in items:
                try:
                    data = _video_file(path)
                    if not data:
                        raise VideoError("empty file")
                    if encoding.short_side:
                        copy = make_copy(data, encoding.short_side, encoding.rate, encoding.max_seconds)
                        data = copy.data
                        if copy.replaced:
                            repaired[record.video_id] = f"{copy.replaced} of {copy.pictures} pictures"
                except VideoError as error:
                    rejected[record.video_id] = str(error)
                    continue
                annotation = asdict(record) | {"domain": domain}
                tar.write(
                    {
                        "__key__": f"{number:08d}",
                        "json": json.dumps(annotation, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace"),
                        "mp4": data,
                        "txt": record.captions[0].encode("utf-8", "replace"),  # for stock WebDataset readers
                    }
                )
                samples += 1
                pairs += len(record.captions)
        file.flush()
        if not samples:
            return None, rejected, repaired
        size = os.path.getsize(file.name)
        digest = _sha256(file.name)
        if fence is not None:
            fence.check()
        storage.upload(file.name, uri)
    name = uri.rsplit("/", 1)[1]
    return ShardEntry(name=name, samples=samples, pairs=pairs, bytes=size, sha256=digest), rejected, repaired


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
