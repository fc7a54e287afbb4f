"""Triton kernels of softmax-pooled scores: see `glscl.models.scores.pooling` for the equations.

Forward, a program multiplies some queries with the frames of some videos, and keeps what it needs of the products: the
queries × videos × frames tensor is never written. Backward, gradients of the products and weights are written for one
tile of videos at a time, into memory that is used again, and matrix products of the vendor's library add them up.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from glscl.models.scores.tiles import DEVICE_TILE, Scratch

MOST_FRAMES = 128
LEAST_SQUARED_NORM = 1e-12
QUERIES = 64
"""Queries of a program."""


@triton.jit
def _weights(
    queries, frames, gram, frame_mask, tau, first, second, texts, videos, length,
    width: tl.constexpr, ta: tl.constexpr, tb: tl.constexpr, tf: tl.constexpr, td: tl.constexpr,
    precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    """Products l and weights e of a tile of queries and videos, and G e, each (tb, ta, tf)."""
    a = first * ta + tl.arange(0, ta)
    column = tl.arange(0, tb * tf)
    video, frame = second * tb + column // tf, column % tf
    there = (video < videos) & (frame < length)
    row = video.to(tl.int64) * length + frame
    products = tl.zeros((ta, tb * tf), tl.float32)
    for start in range(0, width, td):
        d = start + tl.arange(0, td)
        q = tl.load(
            queries + a.to(tl.int64)[:, None] * width + d[None, :], (a < texts)[:, None] & (d < width)[None, :], 0.0
        )
        v = tl.load(frames + row[:, None] * width + d[None, :], there[:, None] & (d < width)[None, :], 0.0)
        if widen:
            q, v = q.to(tl.float32), v.to(tl.float32)
        products = tl.dot(q, tl.trans(v), products, input_precision=precision)
    products = tl.permute(tl.reshape(products, (ta, tb, tf)), (1, 0, 2))
    shown = tl.load(frame_mask + row, there, 0) != 0
    shown = tl.reshape(shown, (tb, 1, tf))
    largest = tl.max(tl.where(shown, products, -float("inf")), 2, keep_dims=True)
    largest = tl.where(largest == -float("inf"), 0.0, largest)
    weights = tl.where(shown, tl.exp((products - largest) / tau), 0.0)
    b = second * tb + tl.arange(0, tb)
    f = tl.arange(0, tf)
    inside = (b < videos)[:, None, None] & (f < length)[None, :, None] & (f < length)[None, None, :]
    offset = (b.to(tl.int64)[:, None, None] * length + f[None, :, None]) * length + f[None, None, :]
    mixed = tl.dot(weights, tl.load(gram + offset, inside, 0.0), input_precision=precision)
    return products, weights, mixed


@triton.jit
def scores_kernel(
    queries, frames, gram, frame_mask, scores, tau, texts, videos, length, least,
    width: tl.constexpr, ta: tl.constexpr, tb: tl.constexpr, tf: tl.constexpr, td: tl.constexpr,
    precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    """Scores (A, B)."""
    first, second = tl.program_id(0), tl.program_id(1)
    products, weights, mixed = _weights(
        queries,
        frames,
        gram,
        frame_mask,
        tau,
        first,
        second,
        texts,
        videos,
        length,
        width,
        ta,
        tb,
        tf,
        td,
        precision,
        widen,
    )
    dot, squared = tl.sum(weights * products, 2), tl.sum(weights * mixed, 2)
    a, b = first * ta + tl.arange(0, ta), second * tb + tl.arange(0, tb)
    where = scores + a.to(tl.int64)[None, :] * videos + b[:, None]
    tl.store(where, dot / tl.sqrt(tl.maximum(squared, least)), (b < videos)[:, None] & (a < texts)[None, :])


@triton.jit
def gradients_kernel(
    queries, frames, gram, frame_mask, given, to_products, kept, kept_scaled, tau, texts, videos, length, least,
    width: tl.constexpr, ta: tl.constexpr, tb: tl.constexpr, tf: tl.constexpr, td: tl.constexpr,
    precision: tl.constexpr, widen: tl.constexpr,
):  # fmt: skip
    """Gradients of the products, the weights, and the weights times the gradient of eᵀ G e, each (B, F, A)."""
    first, second = tl.program_id(0), tl.program_id(1)
    products, weights, mixed = _weights(
        queries,
        frames,
        gram,
        frame_mask,
        tau,
        first,
        second,
        texts,
        videos,
        length,
        width,
        ta,
        tb,
        tf,
        td,
        precision,
        widen,
    )
    dot, squared = tl.sum(weights * products, 2), tl.sum(weights * mixed, 2)
    a, b, f = (
        first * ta + tl.arange(0, ta),
        second * tb + tl.arange(0, tb),
        tl.arange(0, tf),
    )
    inside = (b < videos)[:, None] & (a < texts)[None, :]
    gradient = tl.load(given + a.to(tl.int64)[None, :] * videos + b[:, None], inside, 0.0)
    scale = 1.0 / tl.sqrt(tl.maximum(squared, least))
    to_dot = gradient * scale
    to_squared = tl.where(squared > least, -0.5 * to_dot * dot * scale * scale, 0.0)
    to_dot, to_squared = to_dot[:, :, None], to_squared[:, :, None]
    result = weights * (to_dot + (to_dot * products + 2.0 * to_squared * mixed) / tau)
    offset = (b.to(tl.int64)[:, None, None] * length + f[None, None, :]) * texts + a[None, :, None]
    written = inside[:, :, None] & (f < length)[None, None, :]
    tl.store(to_products + offset, result.to(to_products.dtype.element_ty), written)
    tl.store(kept + offset, weights.to(kept.dtype.element_ty), written)
    tl.store(kept_scaled + offset, (weights * to_squared).to(kept_scaled.dtype.element_ty), written)


def kernel_sizes(frames: int, width: int, dtype: torch.dtype) -> dict[str, int | str | bool]:
    """Compile-time sizes: a tile has ta queries and tb videos of tf frames, padding included, td features at a time."""
    padded = max(16, triton.next_power_of_2(frames))
    return {
        "num_warps": 8,
        "width": width,
        "ta": QUERIES,
        "tb": max(1, 128 // padded),
        "tf": padded,
        "td": min(64 if dtype.itemsize == 2 else 32, max(16, triton.next_power_of_2(width))),
        # Three products of TF32 are as exact as one of float32; what comes from bfloat16 needs one.
        "precision": "tf32" if dtype.itemsize == 2 else "tf32x3",
        "widen": bool(triton.knobs.runtime.interpret),  # the interpreter cannot multiply bfloat16
    }


def takes(queries: Tensor, frames: Tensor) -> bool:
    """Whether the kernels take these types and this number of frames."""
    return (
        queries.dtype == frames.dtype
        and frames.dtype in (torch.float32, torch.bfloat16)
        and 1 <= frames.shape[1] <= MOST_FRAMES
    )


def pooled_scores(queries: Tensor, frames: Tensor, gram: Tensor, frame_mask: Tensor, tau: float) -> Tensor:
    """`glscl.models.scores.pooling.pooled_scores` of float32 or bfloat16 features; the scores are float32."""
    contiguous = (x.contiguous() for x in (queries, frames, gram.float(), frame_mask))
    return cast(Tensor, _PooledScores.apply(*contiguous, tau))


class _PooledScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, frames: Tensor, gram: Tensor, frame_mask: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(queries, frames, gram, frame_mask)
        ctx.tau = tau
        (texts, width), (videos, length, _) = queries.shape, frames.shape
        scores = gram.new_empty(texts, videos)
        if scores.numel():
            sizes = kernel_sizes(length, width, frames.dtype)
            scores_kernel[_grid(texts, videos, sizes)](
                queries, frames, gram, frame_mask.to(torch.uint8), scores, tau, texts, videos, length,
                LEAST_SQUARED_NORM, **sizes,
            )  # fmt: skip
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, frames, gram, frame_mask = ctx.saved_tensors
        (texts, width), (videos, length, _) = queries.shape, frames.shape
        sizes, scratch, scratch_wide = kernel_sizes(length, width, frames.dtype), Scratch(frames), Scratch(gram)
        to_queries, to_frames = (torch.zeros_like(x, dtype=torch.float32) for x in (queries, frames))
        to_gram = torch.zeros_like(gram)
        block = max(1, DEVICE_TILE // max(1, texts * length))
        for start in range(0, videos if texts else 0, block):
            part = slice(start, start + block)
            some = frames[part]
            shape = len(some), length, texts
            to_products = scratch.take("to_products", *shape)
            kept, scaled = scratch_wide.take("kept", *shape), scratch_wide.take("scaled", *shape)
            gradients_kernel[_grid(texts, len(some), sizes)](
                queries, some, gram[part], frame_mask[part].to(torch.uint8), grads[0][:, part].contiguous(),
                to_products, kept, scaled, ctx.tau, texts, len(some), length, LEAST_SQUARED_NORM, **sizes,
            )  # fmt: skip
            flat = to_products.view(-1, texts)
            to_queries += flat.T @ some.flatten(0, 1)
            to_frames[part] = (flat @ queries).view(some.shape)
            torch.bmm(scaled, kept.transpose(1, 2), out=to_gram[part])
        return to_queries.to(queries.dtype), to_frames.to(frames.dtype), to_gram, None, None


def _grid(texts: int, videos: int, sizes: dict[str, Any]) -> tuple[int, int]:
    return triton.cdiv(texts, sizes["ta"]), triton.cdiv(videos, sizes["tb"])
