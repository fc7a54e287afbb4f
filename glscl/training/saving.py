"""Saving: a rank writes its files of a checkpoint, and Ray Train uploads them while training goes on."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from glscl.system import storage
from glscl.system.ownership import Fence
from glscl.training.checkpoint import format as checkpoint
from glscl.training.checkpoint.format import TrainState
from glscl.training.checkpoint.transfer import explained_full_disk, upload
from glscl.training.collectives import rank

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

SECONDS_LEFT = "seconds_left"
"""Key of a checkpoint's report: how long the rest of the run will take at this number of workers."""


def save_checkpoint(engine: DeepSpeedEngine, state: TrainState, name: str, fence: Fence, seconds_left: float) -> None:
    """Write this rank's files and hand them to Ray Train (collective).

    Args:
        engine: DeepSpeed's.
        state: of the run at this step.
        name: of the checkpoint's folder.
        fence: of the driver that owns the run directory.
        seconds_left: see `SECONDS_LEFT`.
    """
    folder = tempfile.mkdtemp(prefix="checkpoint-", dir=os.getcwd())  # the worker's folder in Ray's session
    try:
        with explained_full_disk(folder):
            checkpoint.save(engine, folder, state, rank())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    ray.train.report(
        {"step": state.step, SECONDS_LEFT: seconds_left, **state.metrics},
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_dir_name=name,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=partial(_upload, ray.train.get_context().get_storage(), fence),
    )


def _upload(destination: Any, fence: Fence, local: Checkpoint, name: str) -> Checkpoint:
    """What Ray Train calls in a thread of its own; its default lists folders, and cannot say why it failed."""
    try:
        fence.check()
        upload(local.path, storage.join(fence.directory, name))
    except BaseException:
        shutil.rmtree(local.path, ignore_errors=True)
        raise
    return Checkpoint(destination.build_checkpoint_path_from_name(name), destination.storage_filesystem)
