"""Build an index and keep it up to date: what is new is added, what changed is replaced, the rest stays as it is.

A part at a time is written, and ``index.json`` after it, so that a command that is killed loses one part's work and the
same command goes on.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from glscl.data.features import FeatureSampling
from glscl.data.shards import MANIFEST, read_manifest
from glscl.errors import UserError
from glscl.evaluation.saved import check_features
from glscl.index.catalogue import Catalogue
from glscl.index.compaction import compact
from glscl.index.encoding import EncodedSegment, Job, encode_here, encode_with_ray, make_sampling
from glscl.index.first_stage import update_first_stage
from glscl.index.layout import (
    INDEX,
    MODEL,
    Cutting,
    IndexFacts,
    Precision,
    next_part,
    read_facts,
    remove_strays,
    write_facts,
)
from glscl.index.library import Item, list_library
from glscl.index.model_files import store_model
from glscl.index.parts import PartWriter
from glscl.retrieval.model import RetrievalModel, load
from glscl.system import storage
from glscl.system.nodes import Share
from glscl.system.ownership import owned
from glscl.system.progress import Progress
from glscl.system.session import ray_session

PART_SEGMENTS = 4096
"""Segments after which a part is written."""
PART_S = 120.0
"""Seconds after which one is written, however small: so much work is lost at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How an index is built; None keeps what it has, or takes the default.

    Attributes:
        metadata: file of captions and metadata.
        segment_s: seconds of a segment; by default as many as the model's frames cover at its rate.
        stride_s: seconds from one segment to the next; by default half a segment.
        precision: how vectors are stored; fp32 by default.
        batch_size: segments encoded at once.
        prune: also delete what is no longer in the library.
        texts: texts that the first stage is fitted to, beside captions.
        refit: fit the first stage anew.
        share: Ray workers that encode; None encodes in this process.
    """

    metadata: str | None = None
    segment_s: float | None = None
    stride_s: float | None = None
    precision: Precision | None = None
    batch_size: int = 16
    prune: bool = False
    texts: tuple[str, ...] = ()
    refit: bool = False
    share: Share | None = None


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did, in videos; notes for the user; and what the index holds now."""

    added: int
    replaced: int
    kept: int
    deleted: int
    unusable: dict[str, str]
    notes: list[str]
    videos: int
    segments: int


def build_index(library: str, output: str, run: str | None, settings: BuildSettings) -> BuildReport:
    """Bring an index up to date with a library. Raises `UserError`: what is wrong with library, model or index."""
    output = storage.resolve(output)
    if storage.is_remote(output):
        raise UserError(f"--output: {output}: an index is mapped into memory; build it on a local disk and copy it")
    items, notes = list_library(library, settings.metadata)
    with owned(output, "choose another --output") as owner:
        facts = _begin(library, output, run, settings)
        remove_strays(output, facts)
        before = Catalogue.open(output, facts)
        plan = _plan(items, before, settings.prune)
        if plan.gone:
            facts = _save(output, facts, before.tombstones(plan.gone))
        facts = _copy_described(output, facts, plan)
        facts = _encode(library, output, facts, plan, settings)
        owner.fence.check()
        facts = compact(output, facts)
        facts, note = update_first_stage(
            output, facts, load(os.path.join(output, MODEL)), settings.texts, refit=settings.refit
        )
        write_facts(output, facts)
        remove_strays(output, facts)
        notes += [note] if note else []
    after = Catalogue.open(output, read_facts(output))
    unusable = after.problems()
    new = [item for item in plan.encode if item.id not in unusable]
    replaced = sum(before.has(item.id) for item in new) + len(plan.describe)
    kept = len(items) - len(plan.encode) - len(plan.describe)
    added = len(new) + len(plan.describe) - replaced
    videos = len(after.places) - len(unusable)
    return BuildReport(added, replaced, kept, len(plan.gone), unusable, notes, videos, after.live_segments)


def _begin(library: str, output: str, run: str | None, settings: BuildSettings) -> IndexFacts:
    """The facts of the index that is there, or of an empty one with its model."""
    if not os.path.exists(os.path.join(output, INDEX)):
        if run is None:
            raise UserError(f"--run: {output} is a new index; name the run or export whose model encodes the videos")
        fingerprint = store_model(run, output)
        model = load(os.path.join(output, MODEL), "cpu").card
        segment = settings.segment_s or model.model.max_frames / model.sample_fps
        cutting = Cutting(segment_s=segment, stride_s=settings.stride_s or segment / 2)
        facts = IndexFacts(
            library=storage.resolve(library), model=fingerprint, cutting=cutting, precision=settings.precision or "fp32"
        )
        write_facts(output, facts)
        return facts
    facts = read_facts(output)
    if run is not None and store_model(run, None) != facts.model:
        raise UserError(f"--run: {output} is of another model than {run}; choose another --output")
    for name, given, has in (
        ("segment-s", settings.segment_s, facts.cutting.segment_s),
        ("stride-s", settings.stride_s, facts.cutting.stride_s),
        ("precision", settings.precision, facts.precision),
    ):
        if given is not None and given != has:
            raise UserError(f"--{name}: {output} was built with {has}, not {given}; leave it out, or build another")
    return facts.model_copy(update={"library": storage.resolve(library)})


@dataclass(frozen=True, slots=True)
class _Plan:
    encode: list[Item]
    describe: list[Item]  # whose bytes are as they were, and captions, metadata or address are not
    gone: set[str]
    before: Catalogue


def _plan(items: list[Item], before: Catalogue, prune: bool) -> _Plan:
    encode, describe = [], []
    for item in items:
        if before.stamp(item.id) != item.stamp:
            encode.append(item)
        elif before.differs(item):
            describe.append(item)
    return _Plan(encode, describe, before.ids() - {item.id for item in items} if prune else set(), before)


def _save(output: str, facts: IndexFacts, deleted: dict[str, set[int]], **more: object) -> IndexFacts:
    """Write ``index.json`` with more deleted rows, and what else changes."""
    rows = {name: set(facts.deleted.get(name, ())) | deleted.get(name, set()) for name in {*facts.deleted, *deleted}}
    update = {"deleted": {name: tuple(sorted(rows[name])) for name in sorted(rows)}} | more
    facts = facts.model_copy(update=update)
    write_facts(output, facts)
    return facts


def _write(output: str, facts: IndexFacts, writer: PartWriter, before: Catalogue) -> IndexFacts:
    """Write a part; what it replaces is deleted with the same writing of ``index.json``."""
    if not writer.videos:
        return facts
    replaced = before.tombstones({str(video["id"]) for video in writer.videos})
    part = writer.write(output, next_part(facts))
    return _save(output, facts, replaced, parts=(*facts.parts, part))


def _copy_described(output: str, facts: IndexFacts, plan: _Plan) -> IndexFacts:
    """Write videos again whose vectors stay as they are."""
    writer = PartWriter()
    for item in plan.describe:
        plan.before.copy_into(writer, item)
        if len(writer.segments) >= PART_SEGMENTS:
            facts = _write(output, facts, writer, plan.before)
    return _write(output, facts, writer, plan.before)


def _encode(library: str, output: str, facts: IndexFacts, plan: _Plan, settings: BuildSettings) -> IndexFacts:
    if not plan.encode:
        return facts
    share = settings.share
    job, model = _make_job(library, output, facts, settings)
    writer, began = PartWriter(), time.monotonic()
    with nullcontext() if share is None else ray_session():
        source = encode_here(model, plan.encode, job) if share is None else encode_with_ray(plan.encode, job, share)
        with Progress(f"indexing {library}", len(plan.encode), "videos") as progress:
            for number, segments in _by_video(source):
                item = plan.encode[number]
                problem = next((segment.problem for segment in segments if segment.problem), "")
                if problem:
                    writer.add_problem(item, problem)
                else:
                    edges = [(segment.start, segment.end, segment.times) for segment in segments]
                    writer.add(item, edges, [segment.arrays for segment in segments if segment.arrays is not None])
                progress.advance()
                if len(writer.segments) >= PART_SEGMENTS or time.monotonic() - began > PART_S:
                    facts, began = _write(output, facts, writer, plan.before), time.monotonic()
    return _write(output, facts, writer, plan.before)


def _make_job(library: str, output: str, facts: IndexFacts, settings: BuildSettings) -> tuple[Job, RetrievalModel]:
    """What is done to the videos. Raises `UserError`: the library holds features of other towers."""
    where = os.path.join(output, MODEL)
    model = load(where, "cpu" if settings.share is not None else "auto")
    library = storage.resolve(library)
    shard_set = read_manifest(library) if storage.exists(storage.join(library, MANIFEST)) else None
    features = shard_set is not None and shard_set.manifest.features is not None
    if features and shard_set is not None:
        from glscl.models.fingerprint import tower_fingerprint  # brings open_clip

        check_features(shard_set, model.card, tower_fingerprint(model.retriever.towers))
    sampling = make_sampling(model, features)
    if isinstance(sampling, FeatureSampling):
        assert torch.is_tensor(sampling.padding)
    return Job(where, sampling, facts.cutting, facts.precision, settings.batch_size), model


def _by_video(segments: Iterator[EncodedSegment]) -> Iterator[tuple[int, list[EncodedSegment]]]:
    """Segments of one video after the other."""
    waiting: list[EncodedSegment] = []
    for segment in segments:
        if waiting and segment.video != waiting[0].video:
            yield waiting[0].video, waiting
            waiting = []
        waiting.append(segment)
    if waiting:
        yield waiting[0].video, waiting


def delete_videos(output: str, ids: Collection[str]) -> int:
    """Delete videos; returns how many segments went. Raises `UserError`: one is not in the index."""
    output = storage.resolve(output)
    read_facts(output)
    with owned(output, "wait for its end") as owner:
        facts = read_facts(output)
        catalogue = Catalogue.open(output, facts)
        known = catalogue.ids()
        if repeated := [name for name, count in Counter(ids).items() if count > 1]:
            raise UserError(f"'{repeated[0]}' is given twice")
        if missing := sorted(set(ids) - known):
            raise UserError(f"{output}: no video '{missing[0]}' in it; `glscl index info {output} --videos` lists them")
        before = catalogue.live_segments
        owner.fence.check()
        facts = compact(output, _save(output, facts, catalogue.tombstones(set(ids))))
        if facts.first is not None:
            facts, _ = update_first_stage(output, facts, load(os.path.join(output, MODEL)), ())
            write_facts(output, facts)
            remove_strays(output, facts)
        return before - Catalogue.open(output, facts).live_segments
