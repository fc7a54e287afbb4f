"""Resuming: restore the newest complete checkpoint of a run directory on all ranks (resume rules 1 to 5)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import ray.train

from glscl.data.quarantine import add_missing_sets
from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.system import storage
from glscl.training.checkpoint import format as checkpoint
from glscl.training.checkpoint import resharding
from glscl.training.checkpoint.format import IncompleteCheckpointError, TrainState
from glscl.training.checkpoint.retention import ANOTHER, Retention
from glscl.training.checkpoint.transfer import local_copy, one_per_node
from glscl.training.collectives import broadcast_object, gather_objects, print_once, rank, world_size
from glscl.training.config import RunConfig

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def resume(engine: "DeepSpeedEngine", config: RunConfig, shard_sets: list[ShardSet]) -> TrainState:
    """Load the newest complete checkpoint into the engine; the state at step 0 where there never was one (collective).

    Raises `UserError`: there were checkpoints and none is complete, or the newest is of another configuration.
    """
    values = config.model_dump(mode="json")
    manifests = [shard_set.manifest.fingerprint() for shard_set in shard_sets]
    fresh = TrainState(0, world_size(), config.training.zero_stage, values, manifests)
    retention = Retention(config.run_directory, config.checkpoint.keep)
    for name in broadcast_object(retention.names() if rank() == 0 else []):
        with _fetched(storage.join(config.run_directory, name)) as (folder, problem):
            if problem:
                print_once(f"checkpoint {name} is incomplete ({problem}): trying the one before")
                continue
            saved = checkpoint.read_state(folder)
            checkpoint.check_resumable(saved, values, manifests)
            _load(engine, folder, name, saved)
        print_once(f"resumed step={saved.step} from {name}")
        return replace(fresh, step=saved.step, quarantined=add_missing_sets(saved.quarantined, shard_sets))
    if retention.known():
        raise UserError(f"{config.run_directory}: none of its checkpoints is complete; {ANOTHER}")
    return fresh


def _load(engine: "DeepSpeedEngine", folder: str, name: str, saved: TrainState) -> None:
    """Restore parameters, optimiser state and random generators (collective)."""
    if saved.zero_stage == 0 or saved.world_size == world_size():
        checkpoint.restore(engine, folder, saved, rank())
        return
    context = ray.train.get_context()
    node, leads = context.get_node_rank(), context.get_local_rank() == 0
    with resharding.resharded(folder, name, saved, node, leads=leads) as whole:
        resharding.load(engine, whole)
    checkpoint.restore_generators(folder, saved, rank())


@contextmanager
def _fetched(uri: str) -> Iterator[tuple[str, str | None]]:
    """A checkpoint in a local folder, every file read once per node, and what is wrong with it (see `one_per_node`)."""
    context = ray.train.get_context()
    local_rank = context.get_local_rank()
    with one_per_node(local_copy(uri, os.getcwd()), context.get_node_rank(), local_rank == 0) as (folder, problem):
        if problem is None:
            try:
                checkpoint.check_complete(folder, local_rank, context.get_local_world_size())
            except IncompleteCheckpointError as error:
                problem = str(error)
            problem = next((text for text in gather_objects(problem) if text), None)
        yield folder, problem
