"""Shared by several heads: scoring in tiles of pairs, and the precision of scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glscl.models.heads.base import Features
from glscl.models.scores.tiles import tile_numbers


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is: the precision of norms, softmaxes and similarities.

    A temperature of 0.01 makes a hundred times more of the features' rounding, so that some things about a head that
    has it show in float64 only.
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def score_by_tiles(
    score: Callable[[Features, Features], Tensor],
    text: Features,
    video: Features,
    numbers_per_pair: int,
    texts_per_video: float = 1.0,
    arrange: Callable[[Features], Features] | None = None,
) -> Tensor:
    """Score texts × videos tile by tile, so that memory does not grow with the number of pairs.

    A tile holds `tiles.tile_numbers` in its largest tensor. A single tile is scored as it is. Where there are more and
    gradients are wanted, each is computed again in the backward pass, so that only one tile's activations are held at
    a time. Autocast is off inside.

    Args:
        score: caches of a texts and b videos to their scores (a, b) or (a, b, P).
        text: caches of A texts.
        video: caches of B videos.
        numbers_per_pair: size of the largest tensor that ``score`` makes, per pair.
        texts_per_video: shape of a tile, where the matrix is larger than one both ways.
        arrange: what is done to a tile's texts once for all tiles with them, before ``score``.

    Returns:
        Scores (A, B) or (A, B, P).
    """
    texts, videos = (len(next(iter(caches.values()))) for caches in (text, video))
    device = next(iter(text.values())).device
    pairs = max(1, tile_numbers(device) // numbers_per_pair)
    rows = max(1, min(texts, round((pairs * texts_per_video) ** 0.5), pairs))
    columns = max(1, min(videos, pairs // rows))
    rows = max(1, min(texts, pairs // columns))
    with torch.autocast(device.type, enabled=False):

        def tile(arranged: Features, column: int) -> Tensor:
            part = {name: tensor[column : column + columns] for name, tensor in video.items()}
            if not torch.is_grad_enabled() or (texts <= rows and videos <= columns):
                return score(arranged, part)
            again: Tensor = checkpoint(score, arranged, part, use_reentrant=False)
            return again

        blocks = []
        for row in range(0, texts, rows) or [0]:
            part = {name: tensor[row : row + rows] for name, tensor in text.items()}
            arranged = arrange(part) if arrange else part
            blocks.append(torch.cat([tile(arranged, column) for column in range(0, videos, columns) or [0]], 1))
        return torch.cat(blocks)
