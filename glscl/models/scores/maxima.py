"""Maximum-similarity scores: every word meets its best frame, every frame its best word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from glscl.models.scores.kernels import kernels_for
from glscl.models.scores.tiles import Scratch, may_look, tile_numbers, tiles

_LEAST_TEXTS = 64  # of a tile, if they fit


def maximum_scores(
    words: Tensor,
    frames: Tensor,
    masks: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor | None],
    hidden: float,
) -> Tensor:
    """``½ [Σ_w α_aw max_f x_wf + Σ_f β_bf max_w x_wf]`` with ``x = ŵ_aw · f̂_bf``, by A texts and B videos.

    Without β it is the one direction ``Σ_w α_aw max_f x_wf``.

    Where a word or a frame is hidden, ``x`` is ``hidden``. Equal maxima share the gradient equally. The
    texts × videos × words × frames tensor exists in tiles only, forward and backward, which computes each again.

    Args:
        words: unit features (A, W, D).
        frames: unit features (B, F, D).
        masks: (A, W) and (B, F) bool, True where real.
        weights: α (A, W) and β (B, F) or None, at least float32, 0 for what is hidden unless all is.
        hidden: -1, so that padding is nobody's best match, or 0, the product with features of zero.

    Returns:
        (A, B).
    """
    if kernels_for(words.device) == "triton":
        from glscl.models.scores import triton_maxima  # not everywhere is Triton installed

        if triton_maxima.takes(words, frames):
            of_words, of_frames = weights
            both = (2 * of_words, of_words.new_zeros(frames.shape[:2])) if of_frames is None else (of_words, of_frames)
            return triton_maxima.maximum_scores(words, frames, masks, both, hidden)
    kind = torch.promote_types(words.dtype, weights[0].dtype)
    return cast(Tensor, _MaximumScores.apply(words.to(kind), frames.to(kind), *masks, *weights, hidden))


class _MaximumScores(torch.autograd.Function):
    """A tile is laid out (b, F, W, a), so that both maxima are vectorised over texts."""

    @staticmethod
    def forward(
        ctx: Any,
        words: Tensor,
        frames: Tensor,
        word_mask: Tensor,
        frame_mask: Tensor,
        word_weights: Tensor,
        frame_weights: Tensor | None,
        hidden: float,
    ) -> Tensor:
        ctx.save_for_backward(words, frames, word_mask, frame_mask, word_weights, frame_weights)
        ctx.hidden = hidden
        scratch, padding = Scratch(words), _Padding(word_mask, frame_mask)
        scores = words.new_empty(len(frames), len(words))
        for row, column, arranged in _tiles(words, frames):
            products = _products(scratch, arranged, frames[column])
            padding.fill(products, row, column, hidden)
            by_word = products.amax(1).mul_(word_weights[row].T).sum(1)
            if frame_weights is not None:
                by_frame = products.amax(2).mul_(frame_weights[column].unsqueeze(-1)).sum(1)
                by_word.add_(by_frame).div_(2)
            scores[column, row] = by_word
        return scores.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        words, frames, word_mask, frame_mask, word_weights, frame_weights = ctx.saved_tensors
        scratch, padding, width = Scratch(words), _Padding(word_mask, frame_mask), words.shape[2]
        to_words, to_frames = words.new_zeros(words.shape), frames.new_zeros(frames.shape)
        to_word_weights = torch.zeros_like(word_weights)
        to_frame_weights = None if frame_weights is None else torch.zeros_like(frame_weights)
        given = grads[0].T if frame_weights is None else grads[0].T / 2
        for row, column, arranged in _tiles(words, frames):
            products, share = _products(scratch, arranged, frames[column]), given[column, row].unsqueeze(1)
            padding.fill(products, row, column, ctx.hidden)
            best_frame = products.amax(1, keepdim=True)
            to_word_weights[row] += (best_frame.squeeze(1) * share).sum(0).T
            equal = scratch.take("equal", *products.shape)
            equal.copy_(products).sub_(best_frame).eq_(0.0)
            total = equal.mul_((share * word_weights[row].T).unsqueeze(1) / equal.sum(1, keepdim=True))
            if frame_weights is not None and to_frame_weights is not None:
                best_word = products.amax(2, keepdim=True)
                to_frame_weights[column] += (best_word.squeeze(2) * share).sum(2)
                products.sub_(best_word).eq_(0.0)
                weighted = (share * frame_weights[column].unsqueeze(-1)).unsqueeze(2)
                total.addcmul_(products, weighted / products.sum(2, keepdim=True))
            padding.fill(total, row, column, 0.0)
            flat = total.view(products.shape[0] * products.shape[1], -1)
            to_arranged = (flat.T @ frames[column].flatten(0, 1)).view(arranged.shape)
            to_words[row] += to_arranged.transpose(0, 1)
            to_frames[column].view(-1, width).addmm_(flat, arranged.flatten(0, 1))
        return to_words, to_frames, None, None, to_word_weights, to_frame_weights, None


class _Padding:
    """Writes a number wherever a word or a frame of a tile (b, F, W, a) is hidden."""

    def __init__(self, word_mask: Tensor, frame_mask: Tensor) -> None:
        look = may_look(word_mask)
        self.words = None if look and bool(word_mask.all()) else ~word_mask.T
        self.frames = None if look and bool(frame_mask.all()) else ~frame_mask

    def fill(self, numbers: Tensor, row: slice, column: slice, value: float) -> None:
        """Write ``value`` into the padding of the tile of these texts and videos."""
        if self.words is not None:
            numbers.masked_fill_(self.words[:, row], value)
        if self.frames is not None:
            numbers.masked_fill_(self.frames[column, :, None, None], value)


def _tiles(words: Tensor, frames: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and words arranged (W, a, D) of tiles, with texts enough for long vectors."""
    per_pair = words.shape[1] * frames.shape[1]
    numbers = tile_numbers(words.device)
    rows = max(_LEAST_TEXTS, 4 * int((numbers / per_pair * frames.shape[1] / words.shape[1]) ** 0.5))
    arranged, arranged_row = words, slice(0)
    for row, column in tiles(len(words), len(frames), per_pair, numbers, rows):
        if row != arranged_row:
            arranged, arranged_row = words[row].transpose(0, 1).contiguous(), row
        yield row, column, arranged


def _products(scratch: Scratch, arranged: Tensor, frames: Tensor) -> Tensor:
    """Products (b, F, W, a) of words (W, a, D) and frames (b, F, D)."""
    length, texts, _ = arranged.shape
    products = scratch.take("products", *frames.shape[:2], length, texts)
    torch.mm(frames.flatten(0, 1), arranged.flatten(0, 1).T, out=products.view(-1, length * texts))
    return products
