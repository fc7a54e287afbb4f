"""Length of a run in steps, and the order of its pairs: arithmetic over configuration and manifests."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet
from glscl.training.config import RunConfig


@dataclass(frozen=True, slots=True)
class RunLength:
    """Length of a run in steps."""

    steps_per_epoch: int
    total: int
    save_every: int
    evaluate_every: int

    @classmethod
    def of(cls, config: RunConfig, plan: StreamPlan) -> RunLength:
        """Derive from epochs, ``max_steps`` and the plan."""
        steps = plan.steps_per_epoch
        total = min(config.training.epochs * steps, config.training.max_steps or math.inf)
        return cls(steps, int(total), config.checkpoint.every_steps or steps, config.evaluation.every_epochs * steps)


def make_plan(config: RunConfig, shard_sets: list[ShardSet]) -> StreamPlan:
    """The order of the stream that a configuration asks for."""
    return StreamPlan(
        [shard_set.manifest for shard_set in shard_sets],
        config.data.weights,
        config.training.global_batch,
        config.data.virtual_streams,
        config.data.captions,
        config.seed,
    )
