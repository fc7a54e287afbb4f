"""GARE's information bottleneck: a video's increments over the texts stay near a standard normal distribution."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term

_OFFSET = 1e-6  # the authors', of a deviation
_LEAST_DEVIATION = 1e-4


class IncrementBottleneckOptions(TermOptions):
    """Divergence of GARE's increments from a standard normal distribution."""

    weight: float = Field(1e-4, ge=0)
    """Factor of the term in the total (β); 0 switches it off. The authors' script; their paper's 0.07 is of a mean over
    the channels."""


@register_term("increment_bottleneck", IncrementBottleneckOptions, detail="increments", reads_similarities=False)
def increment_bottleneck(options: IncrementBottleneckOptions, inputs: LossInputs) -> Tensor:
    """``mean_b Σ_d KL(N(μ_bd, σ_bd²) ‖ N(0, 1))`` (musicman217/GARE-text-video-retrieval, ``tvr/models/modeling.py``).

    μ and σ are mean and unbiased deviation of ``Δ_abd`` over all texts a of the global batch. Below a deviation of 1e-4
    σ is held there, without gradient: the increments of a video of one frame do not depend on the text, so that their
    deviation is rounding. Zero for a single text, which has none.
    """
    increments = inputs.column_detail
    assert increments is not None  # the term applies only where they are given
    if len(increments) == 1:
        return increments.sum() * 0.0
    mean = increments.mean(0)
    deviation = increments.std(0).clamp_min(_LEAST_DEVIATION) + _OFFSET
    divergence = (deviation.square() + mean.square() - 1) / 2 - deviation.log()
    return divergence.sum(-1).mean()
