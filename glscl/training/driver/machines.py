"""Replaces every ``auto`` of a run's configuration by a number: what the machines have and the stream allows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from glscl.data.plan import StreamPlan
from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.system.nodes import Node, Share, choose
from glscl.training.config import RunConfig
from glscl.training.schedule import make_plan
from glscl.training.world_sizes import usable_world_sizes


def with_machines(config: RunConfig, list_nodes: Callable[[], Collection[Node]], *, alone: bool = True) -> RunConfig:
    """The same run with a number wherever its configuration says "auto".

    Nothing of it changes what is learnt: the global batch and the stream are those of the configuration, so that the
    number of workers is the largest, up to what the nodes hold, that divides both.

    Args:
        config: of the run.
        list_nodes: asks for the nodes, where that matters.
        alone: the run has the nodes for itself; else one worker, on its GPU's share of a node or one CPU.

    What is wrong with sets or arithmetic is for `preflight` to say.
    """
    training, data = config.training, config.data
    auto = (training.num_workers, training.use_gpu, training.cpus_per_worker, data.loader_workers)
    if "auto" not in auto:
        return config
    nodes = list_nodes()
    workers = training.num_workers if training.num_workers == "auto" else training.most_workers
    share = choose(
        nodes, workers=workers, use_gpu=training.use_gpu, cpus=training.cpus_per_worker, loaders=data.loader_workers
    )
    if not alone:
        cpus = share.cpus if share.use_gpu or training.cpus_per_worker != "auto" else 1.0
        most = 1 if training.num_workers == "auto" else share.workers
        share = choose(nodes, workers=most, use_gpu=share.use_gpu, cpus=cpus, loaders=data.loader_workers)
    plan = _plan(config)
    candidates = [_put(config, share, *numbers) for numbers in _numbers(config, share, alone)]
    return next((candidate for candidate in candidates if _fits(candidate, plan)), candidates[-1])


def _plan(config: RunConfig) -> StreamPlan | None:
    try:
        return make_plan(config, [open_shard_set(uri) for uri in config.data.train])
    except UserError:
        return None


def _numbers(config: RunConfig, share: Share, alone: bool) -> Iterator[tuple[int, int]]:
    """Workers and their loader workers, in the order in which they are wanted."""
    free = config.training.num_workers == "auto" and alone
    for workers in range(share.workers, 0, -1) if free else [share.workers]:
        for loaders in range(share.loaders, -1, -1) if config.data.loader_workers == "auto" else [share.loaders]:
            yield workers, loaders


def _put(config: RunConfig, share: Share, workers: int, loaders: int) -> RunConfig:
    training = {"use_gpu": share.use_gpu, "cpus_per_worker": share.cpus}
    if config.training.num_workers == "auto":
        training["num_workers"] = workers
    return config.model_copy(
        update={
            "training": config.training.model_copy(update=training),
            "data": config.data.model_copy(update={"loader_workers": loaders}),
        }
    )


def _fits(config: RunConfig, plan: StreamPlan | None) -> bool:
    try:
        usable_world_sizes(config, plan)
    except UserError:
        return False
    return True
