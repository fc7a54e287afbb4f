"""Requests that a rank makes for the end of a step, and the consensus of all ranks on the greatest of them."""

from __future__ import annotations

from enum import IntEnum

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

    The number travels while the step is computed: sent before it, read after it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send(self, request: StepRequest) -> None:
        """Send this rank's request off (collective)."""
        self._request = torch.tensor([int(request)], device=self._device)
        self._work = distributed.all_reduce(self._request, distributed.ReduceOp.MAX, async_op=True)

    def result(self) -> StepRequest:
        """The greatest request of all ranks."""
        self._work.wait()
        return StepRequest(int(self._request))
