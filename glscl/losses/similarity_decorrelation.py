"""TC-MGC's similarity decorrelation loss: the scores of a matching pair agree."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term


class SimilarityDecorrelationOptions(TermOptions):
    """Agreement of the scores of TC-MGC's matching pairs (SDR)."""

    weight: float = Field(0.5, ge=0)
    """Factor of the term in the total; 0 switches it off."""


@register_term("similarity_decorrelation", SimilarityDecorrelationOptions, detail="scores", reads_similarities=False)
def similarity_decorrelation(options: SimilarityDecorrelationOptions, inputs: LossInputs) -> Tensor:
    """``mean_a σ²_aa``, the unbiased variance over a pair's scores times the logit scale (JingXiaolun/TC-MGC).

    It grows with the square of the logit scale, 10,000 times from a scale of 1 to one of 100.
    """
    scores, scale = inputs.row_detail, inputs.scale
    assert scores is not None  # the term applies only where they are given
    assert scale is not None
    row = torch.arange(len(scores), device=scores.device)
    return (scale * scores[row, inputs.first + row]).var(-1).mean()
