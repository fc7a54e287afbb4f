"""Shared by several heads: scoring in tiles of pairs, and the precision of scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glscl.models.heads.base import Features
from glscl.models.scores import tiles


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

    A tile holds `tiles.tile_numbers` in its largest tensor. Where gradients are wanted and all tiles together hold more
    than `tiles.DEVICE_TILE`, each is computed again in the backward pass, so that only one tile's activations are held
    at a time. Autocast is off inside.

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
    pairs = max(1, tiles.tile_numbers(device) // numbers_per_pair)
    rows = max(1, min(texts, round((pairs * texts_per_video) ** 0.5), pairs))
    columns = max(1, min(videos, pairs // rows))
    rows = max(1, min(texts, pairs // columns))
    again = torch.is_grad_enabled() and texts * videos * numbers_per_pair > tiles.DEVICE_TILE
    with torch.autocast(device.type, enabled=False):
        blocks, others = [], split(video, columns)
        for part in split(text, rows):
            arranged = arrange(part) if arrange else part
            tiles_of_row = [
                checkpoint(score, arranged, other, use_reentrant=False) if again else score(arranged, other)
                for other in others
            ]
            blocks.append(torch.cat(tiles_of_row, 1))
        return torch.cat(blocks)


def split(features: Features, size: int) -> list[Features]:
    """Caches in blocks of so many rows. They are views made together, so that their gradients are joined once."""
    blocks = zip(*(tensor.split(size) for tensor in features.values()), strict=True)
    return [dict(zip(features, block, strict=True)) for block in blocks]
