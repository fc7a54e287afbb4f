"""Requests that a rank makes for the end of a step, and the consensus of all ranks on the greatest of them."""

from enum import IntEnum
from typing import cast

import torch
from torch import distributed


class StepRequest(IntEnum):
    """What a rank asks for after the step that begins; of several ranks' requests the greatest counts."""

    NONE = 0
    CHECK_PREEMPTION = 1
    """Ask Ray whether nodes are about to be taken away."""
    STOP = 2
    """Save and end, because of a signal."""


class Consensus:
    """The greatest of the ranks' requests, known to all of them at the same boundary between steps.

    The number travels while the step is computed: sent before it, read after it. It goes from CPU to CPU, because
    reading a number of a GPU waits for all that the GPU was given before.
    """

    def __init__(self) -> None:
        own = None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")
        self._group = cast("distributed.ProcessGroup | None", own)

    def send(self, request: StepRequest) -> None:
        """Send this rank's request off (collective)."""
        self._request = torch.tensor([int(request)])
        self._work = distributed.all_reduce(self._request, distributed.ReduceOp.MAX, self._group, async_op=True)

    def result(self) -> StepRequest:
        """The greatest request of all ranks."""
        self._work.wait()
        return StepRequest(int(self._request))
