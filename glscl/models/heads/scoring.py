"""Shared by several heads: scoring in tiles of pairs, and X-CLIP's attention over scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glscl.models.heads.base import Features

_TEMPERATURE = 0.01  # X-CLIP's, of the softmax over scores
_LOWEST = torch.finfo(torch.float32).min  # finite, so that a row without a real entry still has numbers

TILE = 2**24
"""Numbers in the largest tensor of a tile: 64 MiB in float32."""


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is: the precision of norms, softmaxes and similarities.

    A temperature of 0.01 makes a hundred times more of the features' rounding, so that some things about a head that
    has it show in float64 only.
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def score_by_tiles(
    score: Callable[[Features, Features], Tensor], text: Features, video: Features, numbers_per_pair: int
) -> Tensor:
    """Score texts × videos tile by tile, so that memory does not grow with the number of pairs.

    A single tile is scored as it is. Where there are more and gradients are wanted, each is computed again in the
    backward pass, so that only one tile's activations are held at a time. Autocast is off inside.

    Args:
        score: caches of a texts and b videos to their scores (a, b) or (a, b, P).
        text: caches of A texts.
        video: caches of B videos.
        numbers_per_pair: size of the largest tensor that ``score`` makes, per pair.

    Returns:
        Scores (A, B) or (A, B, P).
    """
    texts, videos = (len(next(iter(caches.values()))) for caches in (text, video))
    pairs = max(1, TILE // numbers_per_pair)
    rows = max(1, min(texts, pairs))
    columns = max(1, pairs // rows)
    with torch.autocast(next(iter(text.values())).device.type, enabled=False):
        if texts <= rows and videos <= columns:
            return score(text, video)

        def tile(row: int, column: int) -> Tensor:
            arguments = (
                {name: tensor[row : row + rows] for name, tensor in text.items()},
                {name: tensor[column : column + columns] for name, tensor in video.items()},
            )
            if not torch.is_grad_enabled():
                return score(*arguments)
            again: Tensor = checkpoint(score, *arguments, use_reentrant=False)
            return again

        return torch.cat(
            [torch.cat([tile(row, c) for c in range(0, videos, columns)], 1) for row in range(0, texts, rows)]
        )


def attend_over_scores(scores: Tensor, mask: Tensor, matrix: Tensor) -> Tensor:
    """``Σ_i [softmax(scores / 0.01) M]_i scores_i`` (X-CLIP's attention over the similarity matrix).

    Args:
        scores: (..., L).
        mask: bool, broadcast over ``scores``; what it hides has weight and score 0.
        matrix: M (L, L).

    Returns:
        (...); 0 where the mask hides everything.
    """
    weights = (scores / _TEMPERATURE).masked_fill(~mask, _LOWEST).softmax(-1) @ wide(matrix)
    return (weights * scores.masked_fill(~mask, 0.0)).sum(-1)
