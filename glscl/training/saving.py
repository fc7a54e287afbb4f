"""Saving: a rank copies its part of a checkpoint; a thread of Ray Train writes and uploads it beside the training."""

import os
import shutil
import tempfile
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode
from torch import distributed

from glscl.system import storage
from glscl.system.ownership import Fence
from glscl.training.checkpoint.format import TrainState
from glscl.training.checkpoint.snapshot import HostMemory, Snapshot, take_snapshot
from glscl.training.checkpoint.transfer import explained_full_disk, upload
from glscl.training.collectives import rank

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

    def save(self, engine: "DeepSpeedEngine", state: TrainState, name: str, seconds_left: float) -> None:
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

    def _upload(self, destination: Any, snapshot: Snapshot, local: Checkpoint, name: str) -> Checkpoint:
        """What Ray Train calls in a thread of its own; its default lists folders, and cannot say why it failed."""
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
        return Checkpoint(destination.build_checkpoint_path_from_name(name), destination.storage_filesystem)
