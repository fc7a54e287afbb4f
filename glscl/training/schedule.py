"""Arithmetic over a run's configuration and manifests: length, order of pairs, frames, memory, numbers of workers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from glscl.data.clips import Sampling
from glscl.data.features import FeatureSampling
from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet
from glscl.data.shared_memory import check_room, gallery_bytes, stream_bytes
from glscl.data.subset import Limit
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.training.config import RunConfig
from glscl.training.options import TrainingConfig


@dataclass(frozen=True, slots=True)
class RunLength:
    """Length of a run in steps."""

    steps_per_epoch: int
    total: int
    save_every: int
    evaluate_every: int

    @classmethod
    def of(cls, config: RunConfig, plan: StreamPlan) -> Self:
        """Derive from epochs, ``max_steps`` and the plan."""
        steps = plan.steps_per_epoch
        total = min(config.training.epochs * steps, config.training.max_steps or math.inf)
        return cls(steps, int(total), config.checkpoint.every_steps or steps, config.evaluation.every_epochs * steps)

    def shows_time(self, step: int) -> bool:
        """Whether the log says where the time of the step after this one went: once per epoch, not at its start."""
        return step % self.steps_per_epoch == min(3, self.steps_per_epoch - 1)


def make_plan(config: RunConfig, shard_sets: list[ShardSet]) -> StreamPlan:
    """The order of the stream that a configuration asks for."""
    data = config.data
    manifests = [shard_set.manifest for shard_set in shard_sets]
    batch = config.training.global_batch
    limit = Limit(data.max_videos, data.max_pairs)
    return StreamPlan(manifests, data.weights, batch, data.virtual_streams, data.captions, config.seed, limit)


def make_sampling(config: RunConfig, frame_size: int, shard_sets: Sequence[ShardSet]) -> Sampling:
    """What is taken of samples of these sets: features; or frames as options say, at the model's size in pixels."""
    features = [shard_set.manifest.features for shard_set in shard_sets]
    if facts := [one for one in features if one is not None]:
        return FeatureSampling.of(facts)
    data = config.data
    return FrameSampling(config.model.max_frames, data.sample_fps, frame_size, data.decoder, data.max_decode_s)


def check_shared_memory(
    config: RunConfig, sampling: Sampling, held_out: Sequence[ShardSet], workers: int, here: int
) -> None:
    """Refuse a run for whose loader processes this machine's shared memory is too small.

    The run has so many ``workers``, and this machine ``here`` of them.
    """
    loaders, prefetch = config.data.loaders, config.data.prefetch
    if loaders:
        needed = here * stream_bytes(config.training.global_batch // workers, sampling, prefetch)
        batch = config.evaluation.batch_size
        galleries = [
            gallery_bytes(-(-m.videos // workers), batch, loaders, sampling, m.pairs / m.videos)
            for m in (shard_set.manifest for shard_set in held_out)
        ]
        needed += here * max(galleries, default=0)
        scoring = ", training.global_batch or evaluation.batch_size" if held_out else " or training.global_batch"
        check_room(needed, f"{here} training workers", f"data.prefetch ({prefetch}){scoring}")


def usable_world_sizes(config: RunConfig, plan: StreamPlan | None) -> tuple[int, ...]:
    """The numbers of workers that ``training.num_workers`` allows and the run can have, rising; a `UserError` if none.

    The most of them has to suit ``training.accumulate``; fewer take more chunks, see `accumulation_steps`. Without a
    plan of the stream, only the global batch is looked at.
    """
    training = config.training
    if training.is_elastic and training.cpus % 1:
        raise UserError(
            f"training.cpus_per_worker ({training.cpus:g}) has to be a whole number where "
            f"training.num_workers is a range: Ray does not count fractions of a node exactly"
        )
    world_sizes: list[int] = []
    refused: dict[int, str] = {}
    for workers in range(training.most_workers, training.fewest_workers - 1, -1):
        try:
            _check_world(config, plan, workers, accumulate=1 if world_sizes else training.accumulate)
            world_sizes.append(workers)
        except UserError as error:
            refused[workers] = str(error)
    if not world_sizes and training.is_elastic:
        raise UserError(
            f"training.num_workers: none of {training.fewest_workers} to {training.most_workers} workers can be used; "
            f"{training.most_workers}: {refused[training.most_workers]}"
        )
    if not world_sizes:
        raise UserError(refused[training.most_workers])
    return tuple(reversed(world_sizes))


def accumulation_steps(training: TrainingConfig, world_sizes: tuple[int, ...], workers: int) -> int:
    """Chunks in which each of so many workers encodes its share.

    As few as keep a chunk no larger than it is with the most workers: a run that shrinks must not outgrow its memory.
    """
    largest = training.global_batch // (world_sizes[-1] * training.accumulate)
    share = training.global_batch // workers
    return next(chunks for chunks in range(1, share + 1) if share % chunks == 0 and share // chunks <= largest)


def describe_batch(training: TrainingConfig, world_sizes: tuple[int, ...], workers: int) -> str:
    """The global batch with so many workers: how many workers x chunks x pairs."""
    chunks = accumulation_steps(training, world_sizes, workers)
    return f"{workers} workers x {chunks} parts x {training.global_batch // workers // chunks}"


def _check_world(config: RunConfig, plan: StreamPlan | None, workers: int, accumulate: int) -> None:
    training = config.training
    if training.global_batch % workers:
        raise UserError(
            f"training.global_batch ({training.global_batch}) is not a multiple of training.num_workers ({workers}): "
            f"change one of them"
        )
    per_worker = training.global_batch // workers
    if per_worker % accumulate:
        raise UserError(
            f"training.accumulate ({accumulate}) does not divide a worker's {per_worker} pairs "
            f"(training.global_batch / training.num_workers): change one of them"
        )
    if plan is not None:
        plan.check_world(workers, config.data.loaders)
