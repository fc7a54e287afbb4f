"""The contrastive and the sigmoid loss in tiles: memory of a tile, not of all texts × all videos."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from glscl.losses.sigmoid import pair_losses
from glscl.models.heads.base import Features
from glscl.models.heads.scoring import split
from glscl.models.scores.tiles import tile_numbers

Score = Callable[[Features, Features], Tensor]


def tiled_cross_entropies(
    score: Score, scale: Tensor, text: Features, video: Features, text_ids: Tensor, video_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Both directions' cross-entropies of ``scale * score(text, video)``, as `glscl.losses.contrastive` defines them.

    A text's cross-entropy over these videos is ``logsumexp_b s_ab - mean_{b ∈ P_a} s_ab``. Each tile gives its share of
    every such sum, forward, and is scored again in the backward pass.

    Args:
        score: caches of a texts and b videos to similarities (a, b), with gradients.
        scale: (1,), the logit scale.
        text: caches of A texts.
        video: caches of B videos.
        text_ids: (A,) int64, the video that each text describes.
        video_ids: (B,) int64, the same number for the same video.

    Returns:
        mean over the texts of the cross-entropy over these videos, and mean over the videos of that over these texts.
        Use only the direction whose candidates are complete.
    """
    side = max(1, math.isqrt(tile_numbers(scale.device)))
    texts, videos = split(text, side), split(video, side)
    of_texts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in texts]
    of_videos: list[list[tuple[Tensor, Tensor]]] = [[] for _ in videos]
    for row, (some_texts, row_ids) in enumerate(zip(texts, text_ids.split(side), strict=True)):
        for column, (some_videos, column_ids) in enumerate(zip(videos, video_ids.split(side), strict=True)):
            by_row, in_row, by_column, in_column = checkpoint(
                _tile_sums, score, scale, some_texts, some_videos, row_ids, column_ids, use_reentrant=False
            )
            of_texts[row].append((by_row, in_row))
            of_videos[column].append((by_column, in_column))
    return (
        _mean_cross_entropy(of_texts, _number_of_positives(text_ids, video_ids)),
        _mean_cross_entropy(of_videos, _number_of_positives(video_ids, text_ids)),
    )


def tiled_sigmoid(
    score: Score, scale: Tensor, bias: Tensor, text: Features, video: Features, text_ids: Tensor, video_ids: Tensor
) -> Tensor:
    """Mean over texts of `glscl.losses.sigmoid`'s loss of ``scale * score(text, video) + bias``.

    Each tile gives its sum, forward, and is scored again in the backward pass. Arguments: as `tiled_cross_entropies`,
    and the logit bias (1,). All videos must be given.
    """
    side = max(1, math.isqrt(tile_numbers(scale.device)))
    videos = list(zip(split(video, side), video_ids.split(side), strict=True))
    sums = [
        checkpoint(_tile_loss, score, scale, bias, texts, some, row_ids, column_ids, use_reentrant=False)
        for texts, row_ids in zip(split(text, side), text_ids.split(side), strict=True)
        for some, column_ids in videos
    ]
    return torch.stack(sums).sum() / len(text_ids)


def _tile_loss(
    score: Score, scale: Tensor, bias: Tensor, text: Features, video: Features, text_ids: Tensor, video_ids: Tensor
) -> Tensor:
    return pair_losses(scale * score(text, video) + bias, text_ids[:, None] == video_ids[None, :]).sum()


def _mean_cross_entropy(sums: list[list[tuple[Tensor, Tensor]]], positives: Tensor) -> Tensor:
    """Mean over queries, from each block's log-sum-exps and sums over positives of all tiles."""
    total = torch.cat([torch.stack([part for part, _ in parts]).logsumexp(0) for parts in sums])
    matching = torch.cat([torch.stack([part for _, part in parts]).sum(0) for parts in sums])
    return (total - matching / positives).mean()


def _number_of_positives(queries: Tensor, candidates: Tensor) -> Tensor:
    """How many candidates have each query's number."""
    ordered = candidates.sort().values
    return torch.searchsorted(ordered, queries, right=True) - torch.searchsorted(ordered, queries)


def _tile_sums(
    score: Score, scale: Tensor, text: Features, video: Features, text_ids: Tensor, video_ids: Tensor
) -> tuple[Tensor, ...]:
    """Of a tile's rows and of its columns: log-sum-exp of the logits, and sum over positives."""
    logits = scale * score(text, video)
    return cast(tuple[Tensor, ...], _TileSums.apply(logits, text_ids[:, None] == video_ids[None, :]))


class _TileSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, positives: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # the direction that is not used
        by_row, by_column = logits.logsumexp(1), logits.logsumexp(0)
        ctx.save_for_backward(logits, positives, by_row, by_column)
        matching = logits.masked_fill(~positives, 0.0)
        return by_row, matching.sum(1), by_column, matching.sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, None]:
        logits, positives, by_row, by_column = ctx.saved_tensors
        to_logits = torch.zeros_like(logits)
        for dim, total, to_total, to_matching in ((1, by_row, *grads[:2]), (0, by_column, *grads[2:])):
            if to_total is not None:
                softmax = torch.sub(logits, total.unsqueeze(dim)).exp_()
                to_logits.addcmul_(softmax, to_total.unsqueeze(dim))
            if to_matching is not None:
                to_logits.addcmul_(positives.to(logits.dtype), to_matching.unsqueeze(dim))
        return to_logits, None
