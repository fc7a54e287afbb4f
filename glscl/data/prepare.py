"""Build a shard set from a benchmark's official files in one call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

from glscl.data.benchmarks import find_benchmark, read
from glscl.data.build import BuildOptions, Origin, build_shards, check_output
from glscl.data.feature_addresses import locate_features
from glscl.data.locate import describe_missing, locate_videos
from glscl.data.records import Record
from glscl.data.shards import Manifest
from glscl.errors import UserError
from glscl.system.ownership import owned

HELD_OUT = "-held-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The videos and annotations that a shard set is built from."""

    benchmark: str  # name of the reader (`glscl.data.benchmarks`)
    annotations: str  # folder of the official files
    split: str  # split as the reader names it
    videos: str  # folder of video files
    domain: str  # name of the domain
    features: str = ""  # in place of videos: folder or file of frame features (`glscl.data.feature_files`)
    allow_missing: bool = False  # leave out videos without a file and list them in the manifest; false refuses them
    hold_out: int = 0
    """Videos kept apart in a second set, ``<output>-held-out``, to choose checkpoints on: most benchmarks have no
    official split for that which is neither trained nor tested on. Which videos these are depends on their ids and
    the seed alone."""


@dataclass(frozen=True, slots=True)
class _Target:
    """One shard set to write."""

    output: str
    origin: Origin
    records: list[Record]


def build_from_annotations(
    benchmark: str,
    annotations: str,
    split: str,
    videos: str,
    output: str,
    *,
    domain: str,
    allow_missing: bool = False,
    hold_out: int = 0,
    session: Callable[[], AbstractContextManager[None]] = nullcontext,
    **options: Any,
) -> tuple[list[Manifest], list[str]]:
    """Call `prepare` with the attributes of `Source` and of `BuildOptions` as arguments; for scripts."""
    source = Source(
        benchmark=benchmark,
        annotations=annotations,
        split=split,
        videos=videos,
        domain=domain,
        allow_missing=allow_missing,
        hold_out=hold_out,
    )
    return prepare(source, output, BuildOptions(**options), session)


def prepare(
    source: Source,
    output: str,
    options: BuildOptions,
    session: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[list[Manifest], list[str]]:
    """Read annotations, find the video files, write the shards.

    ``session`` is entered once annotations and files are known to be sound; it starts Ray, say. Returned are manifests
    (two with ``hold_out``) and notes for the user (ids without annotation, missing files). A `UserError` names missing
    files or folders, an empty split, missing videos that are not allowed, or an id that fits several files.
    """
    reader = find_benchmark(source.benchmark)
    annotated = read(source.benchmark, source.annotations, source.split)
    ids = [record.video_id for record in annotated.records]
    if source.features:
        files, missing = locate_features(ids, source.features)
        notes = list(annotated.notes)
    else:
        files, missing, file_notes = locate_videos(ids, source.videos)
        notes = [*annotated.notes, *file_notes]
    if missing:
        report = describe_missing(missing, len(annotated.records), source.features or source.videos)
        if not source.allow_missing:
            raise UserError(f"{report}; add them, or pass --allow-missing to leave them out")
        notes.append(report)
    records = [record for record in annotated.records if record.video_id in files]
    targets = [
        _Target(
            output.rstrip("/") + suffix,
            Origin(source.domain, source.split + suffix, source.benchmark, reader.version, tuple(annotated.sources)),
            chosen,
        )
        for suffix, chosen in _hold_out(records, source, options.seed).items()
    ]
    return _write(targets, files, missing, options, session), notes


def _hold_out(records: list[Record], source: Source, seed: int) -> dict[str, list[Record]]:
    """Cut the records in two, by the suffix of their set's name; one set where none are held out."""
    count = source.hold_out
    if not 0 <= count < len(records):
        raise UserError(
            f"--hold-out is {count}; it must be less than the {len(records)} videos of {source.benchmark} "
            f"{source.split}"
        )
    if not count:
        return {"": records}
    drawn = sorted(records, key=lambda record: hashlib.sha256(f"{seed}/{record.video_id}".encode()).digest())
    held_out = {record.video_id for record in drawn[:count]}
    return {
        "": [record for record in records if record.video_id not in held_out],
        HELD_OUT: [record for record in records if record.video_id in held_out],
    }


def _write(
    targets: list[_Target],
    files: Mapping[str, str],
    missing: list[str],
    options: BuildOptions,
    session: Callable[[], AbstractContextManager[None]],
) -> list[Manifest]:
    """Write the sets, all of them owned by this command before the first is begun."""
    for target in targets:
        check_output(target.records, target.output, target.origin, options.overwrite)
    with ExitStack() as stack:
        fences = [stack.enter_context(owned(target.output, "choose another --output")).fence for target in targets]
        for target in targets:  # again: another command may have written it meanwhile
            check_output(target.records, target.output, target.origin, options.overwrite)
        stack.enter_context(session())
        return [
            build_shards(
                target.records,
                files,
                target.output,
                target.origin,
                options,
                missing=missing if target is targets[0] else (),  # of the whole split, so listed once
                fence=fence,
            )
            for target, fence in zip(targets, fences, strict=True)
        ]
