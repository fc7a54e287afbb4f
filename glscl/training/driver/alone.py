"""Training by this process as the only worker: for runs that are shorter than the start of a worker group.

No process is started, and none is watched: whoever calls this starts it again if its process dies. The numbers are
those of one worker of Ray Train, because it is the same loop.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from glscl.system.ownership import Owner
from glscl.training.checkpoint.retention import Retention
from glscl.training.config import RunConfig

if TYPE_CHECKING:
    from glscl.training.worker import Ending

_ENVIRONMENT = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}  # DeepSpeed reads it


def train_alone(config: RunConfig, token: str, owner: Owner) -> Ending | None:
    """Run the training loop here; Ray must be running, and no other thread of this process may train.

    Returns and raises what `glscl.training.worker.train_worker` does; ``token`` names the store of its heartbeats.
    """
    from glscl.system.ray_internals.train import local_training
    from glscl.training.worker import train_worker

    retention = Retention(config.run_directory, config.checkpoint.keep, owner.fence)
    _join_process_group(config)
    with _scratch_folder(), local_training(config.name, retention.register):
        return train_worker({"config": config.model_dump(mode="json"), "store": token, "fence": asdict(owner.fence)})


def _join_process_group(config: RunConfig) -> None:
    """Make the group of one process; it stays for the next run."""
    from torch import distributed
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    if not distributed.is_initialized():
        os.environ.update(_ENVIRONMENT)
        backend = "nccl" if config.training.on_gpu else "gloo"
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


@contextmanager
def _scratch_folder() -> Iterator[None]:
    """Work in a folder of its own, where checkpoints lie until they are uploaded, as a worker of Ray Train does."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="glscl-worker-") as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
