"""Check that a machine has the shared memory that the loader processes of its workers need."""

from __future__ import annotations

from glscl.data.shared_memory import check_room, gallery_bytes, stream_bytes
from glscl.data.video import FrameSampling
from glscl.training.config import RunConfig


def check_shared_memory(config: RunConfig, sampling: FrameSampling, scored: int, workers: int, here: int) -> None:
    """Refuse a run for whose loader processes this machine's shared memory is too small.

    Args:
        config: of the run.
        sampling: frames per video.
        scored: videos of the largest held-out set.
        workers: of the run.
        here: how many of them are on this machine.

    Raises:
        UserError: naming the options to change.
    """
    loaders, prefetch = config.data.loaders, config.data.prefetch
    if loaders:
        needed = here * stream_bytes(config.training.global_batch // workers, sampling, prefetch)
        needed += here * gallery_bytes(-(-scored // workers), config.evaluation.batch_size, loaders, sampling)
        scoring = ", training.global_batch or evaluation.batch_size" if scored else " or training.global_batch"
        check_room(needed, f"{here} training workers", f"data.prefetch ({prefetch}){scoring}")
