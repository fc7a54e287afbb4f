"""Arithmetic over a run's configuration and manifests: length in steps, order of pairs, frames of a video, memory."""

import math
from dataclasses import dataclass
from typing import Self

from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet
from glscl.data.shared_memory import check_room, gallery_bytes, stream_bytes
from glscl.data.video import FrameSampling
from glscl.training.config import RunConfig


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
    return StreamPlan(manifests, data.weights, batch, data.virtual_streams, data.captions, config.seed)


def make_sampling(config: RunConfig, frame_size: int) -> FrameSampling:
    """The sampling that data and model options ask for, at the size in pixels that the model takes."""
    data = config.data
    return FrameSampling(config.model.max_frames, data.sample_fps, frame_size, data.decoder, data.max_decode_s)


def check_shared_memory(config: RunConfig, sampling: FrameSampling, scored: int, workers: int, here: int) -> None:
    """Refuse a run for whose loader processes this machine's shared memory is too small.

    The run has so many ``workers``, this machine ``here`` of them, and the largest held-out set ``scored`` videos.
    """
    loaders, prefetch = config.data.loaders, config.data.prefetch
    if loaders:
        needed = here * stream_bytes(config.training.global_batch // workers, sampling, prefetch)
        needed += here * gallery_bytes(-(-scored // workers), config.evaluation.batch_size, loaders, sampling)
        scoring = ", training.global_batch or evaluation.batch_size" if scored else " or training.global_batch"
        check_room(needed, f"{here} training workers", f"data.prefetch ({prefetch}){scoring}")
