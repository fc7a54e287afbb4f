"""Triton kernels of maximum-similarity scores: see `glscl.models.scores.maxima` for the equations.

Forward, a program multiplies all words of some texts with all frames of some videos, and reduces the products where
they are. Backward, gradients of the products are written for one tile of videos at a time, into memory that is used
again, and matrix products of the vendor's library add them up.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from glscl.models.scores.tiles import DEVICE_TILE, Scratch

MOST = 128
"""Words of a text, and frames of a video, that a program can hold."""


@triton.jit
def _products(
    words, frames, word_mask, frame_mask, hidden, first, second, texts, videos, count, length,
    width: tl.constexpr, ta: tl.constexpr, tw: tl.constexpr, tb: tl.constexpr, tf: tl.constexpr, td: tl.constexpr,
    precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    """Products (ta, tw, tb, tf), and which of them are of real words and frames. What pads the tile is -inf."""
    i, j = tl.arange(0, ta * tw), tl.arange(0, tb * tf)
    a, w, b, f = first * ta + i // tw, i % tw, second * tb + j // tf, j % tf
    here, there = (a < texts) & (w < count), (b < videos) & (f < length)
    i, j = a.to(tl.int64) * count + w, b.to(tl.int64) * length + f
    products = tl.zeros((ta * tw, tb * tf), tl.float32)
    for start in range(0, width, td):
        d = start + tl.arange(0, td)
        x = tl.load(words + i[:, None] * width + d[None, :], here[:, None] & (d < width)[None, :], 0.0)
        y = tl.load(frames + j[:, None] * width + d[None, :], there[:, None] & (d < width)[None, :], 0.0)
        if widen:
            x, y = x.to(tl.float32), y.to(tl.float32)
        products = tl.dot(x, tl.trans(y), products, input_precision=precision)
    real_word, real_frame = tl.load(word_mask + i, here, 0) != 0, tl.load(frame_mask + j, there, 0) != 0
    real = real_word[:, None] & real_frame[None, :]
    products = tl.where(real, products, hidden)
    products = tl.where(here[:, None] & there[None, :], products, -float("inf"))
    return tl.reshape(products, (ta, tw, tb, tf)), tl.reshape(real, (ta, tw, tb, tf))


@triton.jit
def scores_kernel(
    words, frames, word_mask, frame_mask, word_weights, frame_weights, scores, hidden, texts, videos, count, length,
    width: tl.constexpr, ta: tl.constexpr, tw: tl.constexpr, tb: tl.constexpr, tf: tl.constexpr, td: tl.constexpr,
    precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    """Scores (texts, videos)."""
    first, second = tl.program_id(0), tl.program_id(1)
    products, _ = _products(
        words, frames, word_mask, frame_mask, hidden, first, second, texts, videos, count, length,
        width, ta, tw, tb, tf, td, precision, widen,
    )  # fmt: skip
    a, w, b, f = first * ta + tl.arange(0, ta), tl.arange(0, tw), second * tb + tl.arange(0, tb), tl.arange(0, tf)
    here, there = (a < texts)[:, None] & (w < count)[None, :], (b < videos)[:, None] & (f < length)[None, :]
    of_words = tl.load(word_weights + a.to(tl.int64)[:, None] * count + w[None, :], here, 0.0)
    of_frames = tl.load(frame_weights + b.to(tl.int64)[:, None] * length + f[None, :], there, 0.0)
    inside = (a < texts)[:, None] & (b < videos)[None, :]
    by_word, by_frame = tl.max(products, 3), tl.max(products, 1)  # (ta, tw, tb), (ta, tb, tf)
    by_word = tl.where(here[:, :, None] & inside[:, None, :], by_word, 0.0) * of_words[:, :, None]
    by_frame = tl.where(there[None, :, :] & inside[:, :, None], by_frame, 0.0) * of_frames[None, :, :]
    result = (tl.sum(by_word, 1) + tl.sum(by_frame, 2)) / 2
    tl.store(scores + a.to(tl.int64)[:, None] * videos + b[None, :], result, inside)


@triton.jit
def gradients_kernel(
    words, frames, word_mask, frame_mask, word_weights, frame_weights, given, to_products, best_frames, best_words,
    hidden, texts, videos, count, length,
    width: tl.constexpr, ta: tl.constexpr, tw: tl.constexpr, tb: tl.constexpr, tf: tl.constexpr, td: tl.constexpr,
    precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    """Gradients of the products (videos, length, texts, count), and every word's and frame's maximum."""
    first, second = tl.program_id(0), tl.program_id(1)
    products, real = _products(
        words, frames, word_mask, frame_mask, hidden, first, second, texts, videos, count, length,
        width, ta, tw, tb, tf, td, precision, widen,
    )  # fmt: skip
    a, w, b, f = first * ta + tl.arange(0, ta), tl.arange(0, tw), second * tb + tl.arange(0, tb), tl.arange(0, tf)
    here, there = (a < texts)[:, None] & (w < count)[None, :], (b < videos)[:, None] & (f < length)[None, :]
    of_words = tl.load(word_weights + a.to(tl.int64)[:, None] * count + w[None, :], here, 0.0)
    of_frames = tl.load(frame_weights + b.to(tl.int64)[:, None] * length + f[None, :], there, 0.0)
    inside = (a < texts)[:, None] & (b < videos)[None, :]
    half = tl.load(given + a.to(tl.int64)[:, None] * videos + b[None, :], inside, 0.0) / 2
    by_word, by_frame = tl.max(products, 3), tl.max(products, 1)
    equal_frames = (products == by_word[:, :, :, None]).to(tl.float32)
    equal_words = (products == by_frame[:, None, :, :]).to(tl.float32)
    share = half[:, None, :] * of_words[:, :, None] / tl.sum(equal_frames, 3)  # equal maxima share it equally
    result = equal_frames * share[:, :, :, None]
    share = half[:, :, None] * of_frames[None, :, :] / tl.sum(equal_words, 1)
    result += equal_words * share[:, None, :, :]
    result = tl.where(real, result, 0.0)
    row = b.to(tl.int64)[:, None] * length + f[None, :]  # (tb, tf)
    column = a[:, None] * count + w[None, :]  # (ta, tw)
    tl.store(
        to_products + row[None, None, :, :] * (texts * count) + column[:, :, None, None],
        result.to(to_products.dtype.element_ty), here[:, :, None, None] & there[None, None, :, :],
    )  # fmt: skip
    where = b.to(tl.int64)[None, None, :] * (texts * count) + column[:, :, None]
    tl.store(best_frames + where, by_word, here[:, :, None] & inside[:, None, :])
    where = row[None, :, :] * texts + a[:, None, None]
    tl.store(best_words + where, by_frame, there[None, :, :] & inside[:, :, None])


def kernel_sizes(words: int, frames: int, width: int, dtype: torch.dtype) -> dict[str, int | str | bool]:
    """Compile-time sizes: a tile has ta texts of tw words and tb videos of tf frames, padding included."""
    tw, tf = (triton.next_power_of_2(length) for length in (words, frames))
    return {
        "num_warps": 8,
        "width": width,
        "ta": max(1, MOST // tw),
        "tw": tw,
        "tb": max(1, MOST // tf),
        "tf": tf,
        "td": min(64 if dtype.itemsize == 2 else 32, max(16, triton.next_power_of_2(width))),
        "precision": "tf32x3",  # of float32 features, three products of TF32 are as exact as one of float32
        "widen": bool(triton.knobs.runtime.interpret),  # the interpreter cannot multiply bfloat16
    }


def takes(words: Tensor, frames: Tensor) -> bool:
    """Whether the kernels take these types and lengths."""
    return (
        words.dtype == frames.dtype
        and frames.dtype in (torch.float32, torch.bfloat16)
        and 1 <= words.shape[1] <= MOST
        and 1 <= frames.shape[1] <= MOST
    )


def maximum_scores(
    words: Tensor, frames: Tensor, masks: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor], hidden: float
) -> Tensor:
    """`glscl.models.scores.maxima.maximum_scores` of float32 or bfloat16 features; the scores are float32."""
    contiguous = (x.contiguous() for x in (words, frames, *masks, *(weight.float() for weight in weights)))
    return cast(Tensor, _MaximumScores.apply(*contiguous, hidden))


class _MaximumScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        words: Tensor,
        frames: Tensor,
        word_mask: Tensor,
        frame_mask: Tensor,
        word_weights: Tensor,
        frame_weights: Tensor,
        hidden: float,
    ) -> Tensor:
        ctx.save_for_backward(words, frames, word_mask, frame_mask, word_weights, frame_weights)
        ctx.hidden = hidden
        (texts, count, width), (videos, length, _) = words.shape, frames.shape
        scores = word_weights.new_empty(texts, videos)
        if scores.numel():
            sizes = kernel_sizes(count, length, width, frames.dtype)
            scores_kernel[_grid(texts, videos, sizes)](
                words, frames, word_mask.to(torch.uint8), frame_mask.to(torch.uint8), word_weights, frame_weights,
                scores, hidden, texts, videos, count, length, **sizes,
            )  # fmt: skip
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        words, frames, word_mask, frame_mask, word_weights, frame_weights = ctx.saved_tensors
        (texts, count, width), (videos, length, _) = words.shape, frames.shape
        sizes, scratch = kernel_sizes(count, length, width, frames.dtype), Scratch(frames)
        scratch_wide = Scratch(word_weights)
        to_words, to_frames = (torch.zeros_like(x, dtype=torch.float32) for x in (words, frames))
        to_word_weights, to_frame_weights = torch.zeros_like(word_weights), torch.zeros_like(frame_weights)
        block = max(1, DEVICE_TILE // max(1, texts * count * length))
        for start in range(0, videos if texts else 0, block):
            part = slice(start, start + block)
            some, given = frames[part], grads[0][:, part].contiguous()
            to_products = scratch.take("to_products", len(some) * length, texts * count)
            best_frames = scratch_wide.take("best_frames", len(some), texts, count)
            best_words = scratch_wide.take("best_words", len(some), length, texts)
            gradients_kernel[_grid(texts, len(some), sizes)](
                words, some, word_mask.to(torch.uint8), frame_mask[part].to(torch.uint8), word_weights,
                frame_weights[part], given, to_products, best_frames, best_words, ctx.hidden,
                texts, len(some), count, length, **sizes,
            )  # fmt: skip
            half = given.T.unsqueeze(-1) / 2  # (b, a, 1)
            to_word_weights += best_frames.mul_(half).sum(0)
            to_frame_weights[part] = torch.bmm(best_words, half).squeeze(-1)
            to_words += (to_products.T @ some.flatten(0, 1)).view(words.shape)
            to_frames[part] = (to_products @ words.flatten(0, 1)).view(some.shape)
        result = to_words.to(words.dtype), to_frames.to(frames.dtype)
        return *result, None, None, to_word_weights, to_frame_weights, None


def _grid(texts: int, videos: int, sizes: dict[str, Any]) -> tuple[int, int]:
    return triton.cdiv(texts, sizes["ta"]), triton.cdiv(videos, sizes["tb"])
