"""SigLIP's sigmoid loss: every text and video is asked by itself whether they belong together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_losses(logits: Tensor, positives: Tensor) -> Tensor:
    """``-log σ(±s)`` of logits with their bias and positives, of any one shape; float32 at least."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return -F.logsigmoid(torch.where(positives, logits, -logits))
