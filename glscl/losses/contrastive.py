"""Symmetric InfoNCE in which a video's other captions are positives too."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term


class ContrastiveOptions(TermOptions):
    """Contrastive loss over the global batch, text to video and video to text."""

    tiled_above: int = Field(4096, ge=0)
    """Pairs of a global batch above which similarities are computed tile by tile, and again in the backward pass: the
    same numbers, in memory that does not grow with the square of the batch. Batches stay whole where another term that
    is on reads the similarities."""


@register_term("contrastive", ContrastiveOptions, reads_similarities=False)
def contrastive(options: ContrastiveOptions, inputs: LossInputs) -> Tensor:
    """``½ [CE(S) + CE(Sᵀ)]`` over logits S (N, N), each side a mean over its queries.

    ``CE = -(1/|P_i|) Σ_{j∈P_i} log softmax(S_i)_j`` with the positives P_i of query i. With one caption per video that
    is the cross-entropy with the diagonal as target.
    """
    if inputs.cross_entropies is not None:
        text_to_video, video_to_text = inputs.cross_entropies
    else:
        text_to_video = cross_entropy(inputs.rows, inputs.row_positives)
        video_to_text = cross_entropy(inputs.columns.T, inputs.column_positives.T)
    return (text_to_video + video_to_text) / 2


def cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean over queries (n, N) of the cross-entropy with uniform targets over the positives."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = positives.to(logits.dtype) / positives.sum(1, keepdim=True)
    return -(targets * logits.log_softmax(1)).sum(1).mean()
