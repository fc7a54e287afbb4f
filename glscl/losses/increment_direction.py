"""GARE's diversity of directions: a text's increments for different videos point to different sides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glscl.losses.base import LossInputs, TermOptions, register_term
from glscl.models.scores.tiles import tile_numbers

_OFFSET = 1e-8  # the authors', inside the logarithm


class IncrementDirectionOptions(TermOptions):
    """Diversity of the directions of GARE's increments."""

    weight: float = Field(0.01, ge=0)
    """Factor of the term in the total (λ_dir); 0 switches it off."""
    alpha: float = Field(2.0, gt=0)
    """How sharply equal directions count (α)."""


@register_term("increment_direction", IncrementDirectionOptions, detail="increments", reads_similarities=False)
def increment_direction(options: IncrementDirectionOptions, inputs: LossInputs) -> Tensor:
    """``mean_a log mean_{b, b'} exp(-α (1 - cos(Δ_ab, Δ_ab')))`` over all pairs of videos, each with itself included.

    As the authors' code has it (musicman217/GARE-text-video-retrieval, ``tvr/models/modeling.py``). Every text has
    videos × videos cosines; a few texts' are held, and computed again in the backward pass.
    """
    increments = inputs.row_detail
    assert increments is not None  # the term applies only where they are given
    texts, videos, _ = increments.shape
    some = max(1, tile_numbers(increments.device) // videos**2)
    if some >= texts:
        return _logarithms(increments, options.alpha).mean()
    parts = [checkpoint(_logarithms, part, options.alpha, use_reentrant=False) for part in increments.split(some)]
    return torch.cat(parts).mean()


def _logarithms(increments: Tensor, alpha: float) -> Tensor:
    """The term's logarithm of each text (a,) of increments (a, b, D)."""
    unit = F.normalize(increments, dim=-1)
    return ((unit @ unit.transpose(1, 2) - 1) * alpha).exp().mean((1, 2)).add(_OFFSET).log()
