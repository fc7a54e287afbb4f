"""GARE's spread of lengths: a text's increments for different videos differ in length, up to a limit."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term


class IncrementRadiusOptions(TermOptions):
    """Spread of the lengths of GARE's increments."""

    weight: float = Field(0.01, ge=0)
    """Factor of the term in the total (λ_ε); 0 switches it off."""
    limit: float = Field(0.5, ge=0)
    """Variance from which on the term is a constant zero (the authors' ``lambda_lower``)."""


@register_term("increment_radius", IncrementRadiusOptions, detail="increments", reads_similarities=False)
def increment_radius(options: IncrementRadiusOptions, inputs: LossInputs) -> Tensor:
    """``-mean_a Var_b |Δ_ab|`` while that variance is at most the limit, else 0.

    As the authors' code has it (musicman217/GARE-text-video-retrieval, ``tvr/models/modeling.py``), which calls it a
    trust region: it rewards spread and bounds no length. The variance is unbiased, and over all texts and videos of
    the global batch before it is compared. Zero for a single video.
    """
    increments = inputs.row_detail
    assert increments is not None  # the term applies only where they are given
    if increments.shape[1] == 1:
        return increments.sum() * 0.0
    variance = inputs.mean_over_ranks(increments.norm(dim=-1).var(1).mean())
    return torch.where(variance <= options.limit, -variance, 0.0)
