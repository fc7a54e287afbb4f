"""SigLIP's sigmoid loss: every text and video is asked by itself whether they belong together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from glscl.losses.base import LOGIT_BIAS, LossInputs, TermOptions, register_term


class SigmoidOptions(TermOptions):
    """Sigmoid loss over the global batch, with a learned bias (model.logit_bias); off where not asked for."""

    weight: float = Field(0.0, ge=0)
    """Factor of the term in the total; 0 switches it off. SigLIP's way is 1 here and 0 for loss.contrastive."""
    tiled_above: int = Field(4096, ge=0)
    """Pairs of a global batch above which similarities are computed tile by tile, as for loss.contrastive."""


@register_term("sigmoid", SigmoidOptions, needs=(LOGIT_BIAS,), reads_similarities=False)
def sigmoid(options: SigmoidOptions, inputs: LossInputs) -> Tensor:
    """``-1/N Σ_ab log σ(y_ab (S_ab + β))`` over logits S (N, N); ``y_ab`` is 1 where text a describes video b, else -1.

    The sum is over all pairs of texts and videos, of which several may belong to a text; with one video per text it is
    Zhai et al. 2023 (arXiv 2303.15343), as open_clip's ``SigLipLoss`` has it.
    """
    if inputs.sigmoid is not None:
        return inputs.sigmoid
    assert inputs.bias is not None  # the term applies only where there is one
    return pair_losses(inputs.rows + inputs.bias, inputs.row_positives).sum(1).mean()


def pair_losses(logits: Tensor, positives: Tensor) -> Tensor:
    """``-log σ(±s)`` of logits with their bias and positives, of any one shape; float32 at least."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return -F.logsigmoid(torch.where(positives, logits, -logits))
