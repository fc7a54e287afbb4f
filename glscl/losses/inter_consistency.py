"""GLSCL's inter-consistency loss: a pair's concepts agree, as far as a target."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term


class InterConsistencyOptions(TermOptions):
    """Agreement of the text and video concepts (ICL)."""

    margin_weight: float = Field(0.005, ge=0)
    """Weight of the margin part inside the term (β)."""
    target: float = 0.75
    """Agreement that the margin part pulls each query to."""
    form: Literal["official", "corrected"] = "official"
    """official: agreement summed over the batch and divided by the number of queries, as the authors' code does;
    corrected: divided by the batch size, which makes it the mean cosine."""


@register_term("inter_consistency", InterConsistencyOptions, needs=("concepts",))
def inter_consistency(options: InterConsistencyOptions, inputs: LossInputs) -> Tensor:
    """``MSE(mean_b C^v_b, mean_a C^t_a) + β Σ_k (r_k - target)²``; see `parts`."""
    mse, margin = parts(options, inputs.text["concepts"], inputs.video["concepts"])
    return mse + options.margin_weight * margin


def parts(options: InterConsistencyOptions, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts, unweighted, of unit concepts (N, K, D) of texts and videos, pair by pair.

    ``r_k = Σ_b C^v_bk · C^t_bk / K`` in the official form (zchoi/GLSCL, where the term is called
    ``Intra_Consistency``): the target is then met at a mean cosine of ``target · K / N``, so that the part pushes
    agreement down in large batches and grows with them. The corrected form divides by N instead, and changes nothing
    else: ``r_k`` is the mean cosine of query k.

    Returns:
        mean squared difference of the batch-mean concepts, and ``Σ_k (r_k - target)²``.
    """
    mse = F.mse_loss(video.mean(0), text.mean(0))
    count = video.shape[1] if options.form == "official" else video.shape[0]
    agreement = (video * text).sum((0, 2)) / count
    return mse, (agreement - options.target).square().sum()
