"""DRL's channel decorrelation regularisation: matched words and frames agree channel by channel."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term

_LEAST_DEVIATION = 1e-6


class ChannelDecorrelationOptions(TermOptions):
    """Cross-correlation of matched words and frames near the identity (CDCR); off where not asked for."""

    weight: float = Field(0.0, ge=0)
    """Factor of the term in the total; 0 switches it off, the authors use 0.001."""
    on_diagonal: float = Field(0.11, ge=0)
    """Weight of ``Σ_i (C_ii - 1)²`` inside the term."""
    off_diagonal: float = Field(0.0, ge=0)
    """Weight of ``Σ_{i≠j} C_ij²`` inside the term."""


@register_term(
    "channel_decorrelation",
    ChannelDecorrelationOptions,
    needs=("features", "mask", "weights"),
    reads_similarities=False,
)
def channel_decorrelation(options: ChannelDecorrelationOptions, inputs: LossInputs) -> Tensor:
    """``on Σ_i (C_ii - 1)² + off Σ_{i≠j} C_ij²`` over channels i, j (foolwood/DRL, ``cdcr 3``).

    ``C = ½ (C^t + C^v)``: C^t correlates every word with the frame of its own video that it matches best, weighted by
    the word's weight; C^v every frame with its best word. Channels are standardised over all real words (frames) of
    the global batch. Padding is nobody's match.
    """
    text, video = inputs.text, inputs.video
    with torch.no_grad():  # only says who matches whom
        products = torch.einsum("nwd,nfd->nwf", text["features"], video["features"])
        products.masked_fill_(~(text["mask"][:, :, None] & video["mask"][:, None, :]), -torch.inf)
    correlation = (
        _correlation(text, _pick(video["features"], products.argmax(2)))
        + _correlation(video, _pick(text["features"], products.argmax(1)))
    ) / 2
    diagonal = correlation.diagonal()
    on = (diagonal - 1).square().sum()
    off = correlation.square().sum() - diagonal.square().sum()
    return options.on_diagonal * on + options.off_diagonal * off


def _pick(features: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (N, L) of features (N, M, D): (N, L, D)."""
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


def _correlation(side: dict[str, Tensor], matched: Tensor) -> Tensor:
    """Weighted cross-correlation (D, D) of the real entries of one side and what they matched (N, L, D)."""
    mask = side["mask"]
    first, second = _standardise(side["features"][mask]), _standardise(matched[mask])
    return (first * side["weights"][mask].unsqueeze(-1)).T @ second / len(mask)


def _standardise(features: Tensor) -> Tensor:
    """Zero mean and unit deviation over the rows (R, D), in every channel."""
    return (features - features.mean(0)) / features.std(0).clamp_min(_LEAST_DEVIATION)
