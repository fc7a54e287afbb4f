"""Saving beside the training, in a thread of Ray Train, and resuming from the newest complete checkpoint."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
from torch import distributed

from glscl.data.quarantine import add_missing_sets
from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.system import storage
from glscl.system.ownership import Fence
from glscl.training.checkpoint import format as checkpoint
from glscl.training.checkpoint import resharding
from glscl.training.checkpoint.format import IncompleteCheckpointError, TrainState
from glscl.training.checkpoint.retention import ANOTHER, Retention
from glscl.training.checkpoint.snapshot import HostMemory, Snapshot, take_snapshot
from glscl.training.checkpoint.transfer import explained_full_disk, local_copy, one_per_node, upload
from glscl.training.collectives import broadcast_object, gather_objects, print_once, rank, world_size
from glscl.training.config import RunConfig

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

SECONDS_LEFT = "seconds_left"
"""Key of a checkpoint's report: how long the rest of the run will take at this number of workers."""


class Saver:
    """Saves the checkpoints of a rank, one copy in memory and one upload at a time, in a directory with this fence."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self._memory = HostMemory()
        self._written = threading.Event()
        self._written.set()

    def wait(self) -> None:
        """Wait until every rank has written the copy before, so that slow storage bounds the queue (collective)."""
        self._written.wait()
        distributed.barrier()

    def save(self, engine: DeepSpeedEngine, state: TrainState, name: str, seconds_left: float) -> None:
        """Copy this rank's part of a checkpoint with this name, and hand it to Ray Train (collective)."""
        folder = tempfile.mkdtemp(prefix="checkpoint-", dir=os.getcwd())  # the worker's folder in Ray's session
        try:
            with explained_full_disk(folder):
                snapshot = take_snapshot(engine, folder, state, rank(), self._memory)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._written.clear()
        ray.train.report(
            {"step": state.step, SECONDS_LEFT: seconds_left, **state.metrics},
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=partial(self._upload, ray.train.get_context().get_storage(), snapshot),
        )

    def _upload(self, destination: Any, snapshot: Snapshot, local: Checkpoint, name: str) -> Checkpoint | None:
        """What Ray Train calls in a thread of its own; its default lists folders, and cannot say why it failed.

        Without a ``destination`` of Ray's, nothing asks where the files are.
        """
        try:
            try:
                with explained_full_disk(local.path):
                    snapshot.write()
            finally:
                self._written.set()
            self._fence.check()
            upload(local.path, storage.join(self._fence.directory, name))
        except BaseException:
            shutil.rmtree(local.path, ignore_errors=True)
            raise
        if destination is None:
            return None
        return Checkpoint(destination.build_checkpoint_path_from_name(name), destination.storage_filesystem)


def resume(engine: DeepSpeedEngine, config: RunConfig, shard_sets: list[ShardSet], frozen: str | None) -> TrainState:
    """Load the newest complete checkpoint into the engine; the state at step 0 where there never was one (collective).

    ``frozen`` is the fingerprint of the weights that are not trained, which the engine's model has already. Raises
    `UserError`: there were checkpoints and none is complete, or the newest is of another configuration.
    """
    values = config.model_dump(mode="json")
    manifests = [shard_set.manifest.fingerprint() for shard_set in shard_sets]
    fresh = TrainState(0, world_size(), config.training.zero_stage, values, manifests, frozen=frozen)
    retention = Retention(config.run_directory, config.checkpoint.keep)
    for name in broadcast_object(retention.names() if rank() == 0 else []):
        with _fetched(storage.join(config.run_directory, name)) as (folder, problem):
            if problem:
                print_once(f"checkpoint {name} is incomplete ({problem}): trying the one before")
                continue
            saved = checkpoint.read_state(folder)
            checkpoint.check_resumable(saved, values, manifests, frozen)
            _load(engine, folder, name, saved)
        print_once(f"resumed step={saved.step} from {name}")
        return replace(fresh, step=saved.step, quarantined=add_missing_sets(saved.quarantined, shard_sets))
    if retention.known():
        raise UserError(f"{config.run_directory}: none of its checkpoints is complete; {ANOTHER}")
    return fresh


def _load(engine: DeepSpeedEngine, folder: str, name: str, saved: TrainState) -> None:
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
