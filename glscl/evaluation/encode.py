"""Run frozen towers once over a shard set, and write their features as a shard set: the work of `glscl encode`.

Ray actors, or this process where one on this machine would do, take a few tars at a time; each tar of videos becomes a
tar of features of the same name. A note beside each finished tar lets the same command go on where another ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from pydantic import ValidationError

from glscl.data.feature_facts import SHOWN, FeatureFacts
from glscl.data.quarantine import LISTED
from glscl.data.records import list_some
from glscl.data.shards import MANIFEST, Manifest, Shard, ShardSet, open_shard_set
from glscl.errors import UserError
from glscl.evaluation.actors import readable
from glscl.evaluation.encoder import EncodedTar, Encoder, Encoding, Job, hash_job, note_address
from glscl.models.fingerprint import tower_fingerprint
from glscl.system import storage
from glscl.system.nodes import Share
from glscl.system.ownership import Fence
from glscl.system.progress import Progress
from glscl.system.session import is_own

READER = "features"
"""Reader in the manifest of features whose source other programs wrote."""


def encode_shards(
    source: str, output: str, encoding: Encoding, share: Share, fence: Fence | None = None, *, overwrite: bool = False
) -> tuple[Manifest, list[str]]:
    """Encode a shard set with encoders (Ray must be running where there are several); the manifest comes last.

    Returns it, and notes for the user. Raises `UserError`: the set or the towers cannot be used, ``output`` holds a set
    already, or too many videos give no features.
    """
    import ray

    shard_set, output = open_shard_set(source), storage.resolve(output)
    check_source(shard_set, output, overwrite)
    alone = share.workers == 1 and (not ray.is_initialized() or (is_own() and not share.use_gpu))
    here = Encoder(encoding, share.use_gpu and alone)
    towers = tower_fingerprint(here.towers)
    with closing(Shard(shard_set, 0)) as shard:
        pixels = shard.media[0].holds_pixels
    job = Job(shard_set.uri, output, encoding, pixels, towers, share.loaders, fence)
    if overwrite:
        storage.remove(storage.join(output, MANIFEST))
    notes = dict(_finished(job, shard_set))
    before = len(notes)
    with Progress(f"encoding {shard_set.uri}", shard_set.manifest.videos, "videos") as progress:
        progress.advance(sum(note.entry.samples for note in notes.values()))
        tasks = _tasks(shard_set, notes, share.loaders)
        for task, done in _encode_here(here, job, tasks) if alone else _encode_with_actors(job, share, tasks):
            notes |= zip(task, done, strict=True)
            progress.advance(sum(note.entry.samples for note in done))
            _check_problems(notes.values(), shard_set, encoding.max_bad_fraction)
    manifest = _describe(shard_set, [notes[tar] for tar in sorted(notes)], here, job)
    if fence is not None:
        fence.check()
    storage.write_json(storage.join(output, MANIFEST), manifest.model_dump(mode="json"))
    for entry in shard_set.manifest.shards:
        storage.remove(note_address(output, entry))
    return manifest, _describe_work(notes.values(), before)


def check_source(shard_set: ShardSet, output: str, overwrite: bool) -> None:
    """Refuse a set that holds features already, and an output that holds a set or is the source."""
    if shard_set.manifest.features is not None:
        raise UserError(f"{shard_set.uri}: holds features already; --shards names a set of videos")
    if storage.resolve(output) == shard_set.uri:
        raise UserError(f"--output: {output} is the set of --shards; name another folder")
    if storage.exists(storage.join(output, MANIFEST)) and not overwrite:
        raise UserError(f"{output}: already holds a shard set; choose another --output or pass --overwrite")
    storage.check_writable(output, "--output")


def _finished(job: Job, shard_set: ShardSet) -> Iterator[tuple[int, EncodedTar]]:
    """The tars that an earlier command has finished, of the same towers, videos and options."""
    there = set(storage.list_names(job.output))
    for tar, entry in enumerate(shard_set.manifest.shards):
        if {entry.name, f"{entry.name}.json"} <= there:
            try:
                note = EncodedTar.model_validate(storage.read_json(note_address(job.output, entry)))
            except (UserError, ValidationError):
                continue
            if note.job == hash_job(job, entry) and not storage.wrong_sizes(job.output, {entry.name: note.entry.bytes}):
                yield tar, note


def _tasks(shard_set: ShardSet, done: dict[int, EncodedTar], loaders: int) -> list[range]:
    """Runs of tars that are missing, no longer than an encoder has loader processes."""
    tasks: list[range] = []
    for tar in range(len(shard_set.manifest.shards)):
        if tar in done:
            continue
        if tasks and tasks[-1].stop == tar and len(tasks[-1]) < loaders:
            tasks[-1] = range(tasks[-1].start, tar + 1)
        else:
            tasks.append(range(tar, tar + 1))
    return tasks


def _encode_here(here: Encoder, job: Job, tasks: list[range]) -> Iterator[tuple[range, list[EncodedTar]]]:
    """Do the tasks in this process."""
    return ((task, here.encode(job, task)) for task in tasks)


def _encode_with_actors(job: Job, share: Share, tasks: list[range]) -> Iterator[tuple[range, list[EncodedTar]]]:
    """Hand the tasks to actors as they become free."""
    import ray

    remote = ray.remote(num_cpus=share.cpus, num_gpus=int(share.use_gpu))(Encoder)
    actors = [remote.remote(job.encoding, share.use_gpu) for _ in range(min(share.workers, len(tasks)))]
    try:
        free, left = list(actors), list(tasks)
        running: dict[ray.ObjectRef[list[EncodedTar]], tuple[Any, range]] = {}
        while left or running:
            while left and free:
                actor, task = free.pop(), left.pop(0)
                running[actor.encode.remote(job, task)] = actor, task
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            actor, task = running.pop(done)
            free.append(actor)
            yield task, ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise readable(error) from None
    finally:
        for actor in actors:
            ray.kill(actor)


def _check_problems(notes: Iterable[EncodedTar], shard_set: ShardSet, limit: float) -> None:
    """End an encoding in which more than this share of the set's videos give no features."""
    problems = {video: reason for note in notes for video, reason in note.problems.items()}
    videos = shard_set.manifest.videos
    if len(problems) > limit * videos:
        shown = list_some([f"{video} ({reason})" for video, reason in problems.items()], LISTED, between="; ")
        raise UserError(
            f"{shard_set.uri}: {len(problems)} of {videos} videos give no features, more than --max-bad-fraction "
            f"({limit:g}): {shown}; mend or remove them, or raise --max-bad-fraction"
        )


def _describe(shard_set: ShardSet, notes: Sequence[EncodedTar], here: Encoder, job: Job) -> Manifest:
    """Build the manifest: the source's, but for what the samples hold now."""
    encoding, source = here.encoding, shard_set.manifest
    facts = FeatureFacts(
        towers=job.towers,
        clip=encoding.clip,
        pretrained=encoding.model.weights or "random",
        width=here.towers.width,
        words=encoding.words,
        frames=encoding.frames,
        rate=encoding.rate if job.pixels else None,
        dtype=encoding.dtype,
        padding=here.padding(),
    )
    rate = f" at {encoding.rate:g} a second" if job.pixels else ""
    towers = f"{encoding.clip} ({job.towers[:SHOWN]})"
    how = f"features of {towers}, {encoding.frames} frames{rate}, {encoding.words} words, {encoding.dtype}"
    changes = {"features": facts, "encoding": how, "shards": tuple(note.entry for note in notes)}
    return source.model_copy(update=changes | ({"reader": READER} if source.is_foreign else {}))


def _describe_work(notes: Collection[EncodedTar], before: int) -> list[str]:
    """Notes for the user."""
    problems = {video: reason for note in notes for video, reason in note.problems.items()}
    lines = [f"{before} of {len(notes)} tars were finished by an earlier command"] if before else []
    if problems:
        shown = list_some([f"{video} ({reason})" for video, reason in problems.items()], LISTED, between="; ")
        lines.append(f"{len(problems)} videos give no features and keep their place, to be replaced: {shown}")
    return lines
