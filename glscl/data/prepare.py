"""From a benchmark's official files to a shard set in one call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext

from glscl.data.benchmarks import find_benchmark, read
from glscl.data.build import Encoding, Origin, build_shards, check_output
from glscl.data.locate import locate_videos, missing_report
from glscl.data.shards import Manifest
from glscl.errors import UserError
from glscl.system.ownership import owned

HELD_OUT = "-held-out"


def build_from_annotations(
    name: str,
    annotations: str,
    split: str,
    videos: str,
    output: str,
    *,
    domain: str,
    samples_per_shard: int,
    encoding: Encoding,
    allow_missing: bool = False,
    hold_out: int = 0,
    seed: int = 0,
    shuffle: bool = True,
    max_bad_fraction: float = 0.01,
    overwrite: bool = False,
    workers: int | None = None,
    session: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[list[Manifest], list[str]]:
    """Read annotations, find the video files, write the shards.

    Args:
        name: reader (`glscl.data.benchmarks`).
        annotations: folder of the official files.
        split: split as the reader names it.
        videos: folder of video files.
        output: folder or prefix of the shard set.
        domain: name of the domain.
        samples_per_shard: videos in one tar.
        encoding: copy or re-encode.
        allow_missing: leave out, and list in the manifest, videos without a file.
        hold_out: videos kept apart in a second set, ``<output>-held-out``, to choose checkpoints on: most benchmarks
            have no official part for that which is neither trained nor tested on. Which videos these are depends on
            their ids and ``seed`` alone.
        seed: of the shuffle over shards.
        shuffle: false keeps the annotations' order, so that neighbours share shards and batches (hard negatives).
        max_bad_fraction: see `build_shards`.
        overwrite: replace an existing set.
        workers: see `build_shards`.
        session: entered once annotations and files are found to be sound, around the writing; starts Ray, say.

    Returns:
        the manifests (two with ``hold_out``), and notes for the user (ids without annotation, missing files).

    Raises:
        UserError: missing files or folders, an empty split, missing videos without ``allow_missing``, or an id that
            fits several different files.
    """
    reader = find_benchmark(name)
    result = read(name, annotations, split)
    found, missing, located = locate_videos([record.video_id for record in result.records], videos)
    notes = [*result.notes, *located]
    if missing:
        report = missing_report(missing, len(result.records), videos)
        if not allow_missing:
            raise UserError(f"{report}; add them, or pass --allow-missing to leave them out")
        notes.append(report)
    records = [record for record in result.records if record.video_id in found]
    if not 0 <= hold_out < len(records):
        raise UserError(f"--hold-out is {hold_out}; it must be less than the {len(records)} videos of {name} {split}")
    parts = {"": records}
    if hold_out:
        draw = sorted(records, key=lambda record: hashlib.sha256(f"{seed}/{record.video_id}".encode()).digest())
        apart = {record.video_id for record in draw[:hold_out]}
        parts = {
            "": [record for record in records if record.video_id not in apart],
            HELD_OUT: [record for record in records if record.video_id in apart],
        }
    jobs = [
        (output.rstrip("/") + suffix, Origin(domain, split + suffix, name, reader.version, tuple(result.sources)), part)
        for suffix, part in parts.items()
    ]
    for target, origin, part in jobs:
        check_output(part, target, origin, overwrite)
    with ExitStack() as stack:
        fences = [stack.enter_context(owned(target, "choose another --output")).fence for target, _, _ in jobs]
        for target, origin, part in jobs:  # again: another command may have written it meanwhile
            check_output(part, target, origin, overwrite)
        stack.enter_context(session())
        manifests = [
            build_shards(
                part,
                found,
                target,
                origin,
                samples_per_shard=samples_per_shard,
                encoding=encoding,
                seed=seed if shuffle else None,
                max_bad_fraction=max_bad_fraction,
                overwrite=overwrite,
                workers=workers,
                missing=missing if target == jobs[0][0] else (),  # of the whole split, so listed once
                fence=fence,
            )
            for (target, origin, part), fence in zip(jobs, fences, strict=True)
        ]
    return manifests, notes
