"""Write shard sets: one Ray task per tar, the manifest last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np

from glscl.data.quarantine import FILE, LISTED
from glscl.data.records import Record, list_some
from glscl.data.shard_writer import Encoding as Encoding
from glscl.data.shard_writer import ShardJob, WrittenShard, write_shard
from glscl.data.shards import MANIFEST, Manifest, count_reasons
from glscl.errors import UserError
from glscl.system import storage
from glscl.system.ownership import Fence
from glscl.system.progress import Progress


@dataclass(frozen=True, slots=True)
class Origin:
    """Provenance of a shard set's records, as the manifest holds it."""

    domain: str
    split: str
    reader: str
    reader_version: int
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How a shard set is written."""

    samples_per_shard: int  # videos in one tar
    encoding: Encoding = field(default_factory=Encoding)  # copy or re-encode; the default copies
    seed: int = 0  # of the shuffle and of every other draw
    shuffle: bool = True  # false keeps the records' order, so that neighbours share shards and batches (hard negatives)
    max_bad_fraction: float = 0.01
    """Share of the records whose video may be empty, unreadable or undecodable (those known to have no file do not
    count); with more the build ends at once, and ``quarantine.jsonl`` lists those known by then."""
    overwrite: bool = False  # replace an existing set
    workers: int | None = None
    """Tars written at once; None uses every CPU of the cluster, 0 writes in this process without Ray."""


def build_shards(
    records: Sequence[Record],
    videos: Mapping[str, str],
    output: str,
    origin: Origin,
    options: BuildOptions,
    *,
    missing: Sequence[str] = (),
    fence: Fence | None = None,
) -> Manifest:
    """Write a shard set with one Ray task per tar; the manifest comes last, so a half-written set is never readable.

    Records are shuffled first: annotation files are often sorted by source, and a shard is the unit in which the stream
    shuffles. ``videos`` has the path or URI of each record's file; ``missing`` are known to have none and are listed as
    rejected. The fence is checked before each file is written. A `UserError` says that there is nothing to write, too
    many videos cannot be used, or the folder already holds a set.
    """
    output = storage.resolve(output)
    check_output(records, output, origin, options.overwrite)
    if options.samples_per_shard < 1:
        raise UserError(f"--samples-per-shard is {options.samples_per_shard}; it must be at least 1")
    if options.overwrite:
        _remove_set(output)
    chunks = _cut_into_shards(len(records), options)
    jobs = [
        ShardJob(
            items=[(i, records[i], videos[records[i].video_id]) for i in chunk],
            uri=storage.join(output, f"shard-{index:06d}.tar"),
            domain=origin.domain,
            encoding=options.encoding,
            fence=fence,
        )
        for index, chunk in enumerate(chunks)
    ]
    storage.remove(storage.join(output, FILE))  # of a build that failed
    check = partial(_check_rejected, records=len(records), options=options, output=output, origin=origin)
    with Progress(f"writing {origin.domain}/{origin.split}", len(records), "videos") as progress:
        if options.workers == 0:
            written = _write_here(jobs, check, progress)
        else:
            written = _write_with_ray(jobs, options.workers, check, progress)
    manifest = _describe_set(jobs, written, origin, options.encoding, missing)
    if fence is not None:
        fence.check()
    storage.write_json(storage.join(output, MANIFEST), manifest.model_dump(mode="json"))
    return manifest


def _remove_set(output: str) -> None:
    """Remove a set, its manifest first: until the new one is there, nobody may take the folder for a whole set."""
    storage.remove(storage.join(output, MANIFEST))
    for name in storage.list_names(output):
        if name.startswith("shard-") and name.endswith(".tar"):
            storage.remove(storage.join(output, name))


def _cut_into_shards(records: int, options: BuildOptions) -> list[list[int]]:
    """Indices of the records of each tar."""
    order = np.random.RandomState(options.seed).permutation(records) if options.shuffle else np.arange(records)
    size = options.samples_per_shard
    return [order[at : at + size].tolist() for at in range(0, records, size)]


def _describe_set(
    jobs: Sequence[ShardJob],
    written: Sequence[WrittenShard],
    origin: Origin,
    encoding: Encoding,
    missing: Sequence[str],
) -> Manifest:
    """Build the manifest of the tars that were written, or say in a `UserError` that there are none."""
    rejected = dict.fromkeys(missing, "no file") | _rejected(written)
    shards = tuple(shard.entry for shard in written if shard.entry is not None)
    if not shards:
        records = sum(len(job.items) for job in jobs)
        raise UserError(f"{origin.domain}: none of {records} videos could be read: {count_reasons(rejected)}")
    repaired = {video: pictures for shard in written for video, pictures in shard.repaired.items()}
    records_kept = [record for job, shard in zip(jobs, written, strict=True) for record in shard.kept(job)]
    return Manifest(
        **asdict(origin),
        encoding=str(encoding),
        videos=sum(entry.samples for entry in shards),
        pairs=sum(entry.pairs for entry in shards),
        shards=shards,
        rejected=dict(sorted(rejected.items())),
        repaired=dict(sorted(repaired.items())),
        video_ids=tuple(one.video_id.encode("utf-8", "replace").decode() for one in records_kept),  # as in the tars
        captions=tuple(len(one.captions) for one in records_kept),
    )


def check_output(records: Sequence[Record], output: str, origin: Origin, overwrite: bool) -> None:
    """Refuse what `build_shards` cannot write: nothing, or into a folder that holds a set or cannot be written."""
    if not records:
        raise UserError(f"domain '{origin.domain}' split '{origin.split}' is empty: nothing to write to {output}")
    if storage.exists(storage.join(output, MANIFEST)) and not overwrite:
        raise UserError(f"{output}: already holds a shard set; choose another --output or pass --overwrite")
    storage.check_writable(storage.resolve(output), "--output")


def _rejected(written: Iterable[WrittenShard]) -> dict[str, str]:
    return {video: reason for shard in written for video, reason in shard.rejected.items()}


def _check_rejected(
    written: Iterable[WrittenShard], records: int, options: BuildOptions, output: str, origin: Origin
) -> None:
    """End a build of which more than ``options.max_bad_fraction`` cannot be used, and list those that are known."""
    rejected, limit = _rejected(written), options.max_bad_fraction
    if len(rejected) <= limit * records:
        return
    where = storage.join(output, FILE)
    names = {"part": "build", "domain": origin.domain, "split": origin.split, "set": output}
    lines = [names | {"video_id": video, "reason": reason} for video, reason in rejected.items()]
    storage.write_bytes(where, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    shown = list_some([f"{video} ({reason})" for video, reason in rejected.items()], LISTED, between="; ")
    raise UserError(
        f"{origin.domain}/{origin.split}: {len(rejected)} of {records} videos so far cannot be used, more than "
        f"--max-bad-fraction ({limit:g}): {shown} (all in {where}); mend or remove them, or raise "
        f"--max-bad-fraction"
    )


_Check = Callable[[Iterable[WrittenShard]], None]


def _write_here(jobs: list[ShardJob], check: _Check, progress: Progress) -> list[WrittenShard]:
    """Write the tars in this process."""
    written: list[WrittenShard] = []
    for job in jobs:
        written.append(write_shard(job))
        check(written)
        progress.advance(len(job.items))
    return written


def _write_with_ray(jobs: list[ShardJob], workers: int | None, check: _Check, progress: Progress) -> list[WrittenShard]:
    """Write the tars as Ray tasks, a bounded number at a time; results in the order of ``jobs``."""
    import ray

    task = ray.remote(num_cpus=1)(write_shard)
    limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    written: dict[int, WrittenShard] = {}
    pending: dict[ray.ObjectRef[WrittenShard], int] = {}
    for index, job in enumerate(jobs):
        pending[task.remote(job)] = index
        while len(pending) >= limit or (pending and index == len(jobs) - 1):
            (done, *_), _ = ray.wait(list(pending), num_returns=1)
            number = pending.pop(done)
            written[number] = ray.get(done)
            check(written.values())
            progress.advance(len(jobs[number].items))
    return [written[index] for index in range(len(jobs))]
