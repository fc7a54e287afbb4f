"""GLCCL's contrastive score consistency loss: a pair's scores agree, other pairs' need not."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term

_LEAST_VARIANCE = 1e-6  # of scores that are cosines: a standard deviation of 0.001


class ContrastiveScoreConsistencyOptions(TermOptions):
    """Agreement of the scores that a pair's similarity is the mean of (CSC)."""

    weight: float = Field(0.5, ge=0)
    """Factor of the term in the total (λ); 0 switches it off."""
    form: Literal["official", "corrected"] = "official"
    """official: the variances of other pairs are divided by N² though there are N² - N, as the authors' code does;
    corrected: by N² - N, which makes it their mean."""


@register_term(
    "contrastive_score_consistency",
    ContrastiveScoreConsistencyOptions,
    needs=("score_parts",),
    reads_similarities=False,
)
def contrastive_score_consistency(options: ContrastiveScoreConsistencyOptions, inputs: LossInputs) -> Tensor:
    """``mean_a σ²_aa / (Σ_{a≠b} σ²_ab / N²)``, σ² the unbiased variance over a pair's scores (JingXiaolun/GLCCL).

    The logit scale cancels, so it is left out. Below a variance of 1e-6 the denominator is held there, without
    gradient: pairs whose scores all agree must not blow the ratio up. Zero for a single pair, which has no others.
    """
    assert inputs.parts is not None  # the term applies only where they are given
    variance = inputs.parts.float().var(-1)  # (n, N)
    rows, pairs = variance.shape
    row = torch.arange(rows, device=variance.device)
    is_own = row[:, None] + inputs.first == torch.arange(pairs, device=variance.device)
    sums = torch.stack([variance[row, inputs.first + row].sum(), variance.masked_fill(is_own, 0.0).sum()]) / rows
    matching, others = inputs.mean_over_ranks(sums).unbind()
    if pairs == 1:
        return matching * 0.0
    others = others / (pairs if options.form == "official" else pairs - 1)
    return matching / others.clamp_min(_LEAST_VARIANCE)
