"""Which code computes scores on a device: Triton kernels where they run, plain torch elsewhere."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Literal

import torch

from glscl.errors import UserError

Kernels = Literal["triton", "torch"]

VARIABLE = "GLSCL_SCORES"
LEAST_CAPABILITY = (8, 0)
"""Of a GPU: the first that multiplies bfloat16 and TF32."""


def kernels_for(device: torch.device) -> Kernels:
    """Which code computes the scores of tensors on this device.

    Triton kernels on an NVIDIA GPU of compute capability 8.0 or more, where Triton is installed, unless the environment
    variable GLSCL_SCORES says "torch".

    Raises:
        UserError: the variable says something else.
    """
    wish = os.environ.get(VARIABLE, "triton")
    if wish not in ("triton", "torch"):
        raise UserError(f"{VARIABLE} is {wish!r}: set it to triton or torch, or unset it")
    return "triton" if wish == "triton" and device.type == "cuda" and _runs_triton(device) else "torch"


def describe_kernels(device: torch.device) -> str:
    """What computes the scores on this device, for a run's log."""
    if kernels_for(device) == "torch":
        return f"scores: plain torch in tiles on {device.type}"
    return (
        f"scores: Triton kernels (softmax pooling, maximum similarity), else torch; {VARIABLE}=torch switches them off"
    )


@cache
def _runs_triton(device: torch.device) -> bool:
    if torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
