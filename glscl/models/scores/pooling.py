"""Softmax-pooled scores: each query pools a video's frames for itself, and meets what it pooled."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from glscl.models.scores.kernels import kernels_for
from glscl.models.scores.tiles import Scratch, may_look, tile_numbers, tiles

LEAST_SQUARED_NORM = 1e-12


def pooled_scores(queries: Tensor, frames: Tensor, gram: Tensor, frame_mask: Tensor, tau: float) -> Tensor:
    """``q_a · v̄_ab / |v̄_ab|`` with ``v̄_ab = Σ_f softmax_f(q_a · v_bf / τ) v_bf``, by A queries and B videos.

    With ``l = q · v``, ``e = exp((l - max l) / τ)`` and the Gram matrix ``G_b = V_b V_bᵀ`` that is
    ``Σ_f e l / √(eᵀ G e)``: the sum of the softmax cancels, and the queries × videos × D tensor of pooled videos never
    exists. Memory is that of a tile, forward and backward, which computes each tile again. Frames that the mask hides
    weigh nothing; a video without any real frame scores 0.

    Args:
        queries: (A, D), in any floating-point type.
        frames: (B, F, D), in any floating-point type.
        gram: (B, F, F), float32 or float64, the type that is computed in.
        frame_mask: (B, F) bool.
        tau: temperature τ.

    Returns:
        (A, B) in the type of the Gram matrices.
    """
    if kernels_for(queries.device) == "triton" and gram.dtype == torch.float32:
        from glscl.models.scores import triton_pooling  # not everywhere is Triton installed

        if triton_pooling.takes(queries, frames):
            return triton_pooling.pooled_scores(queries, frames, gram, frame_mask, tau)
    return cast(Tensor, _PooledScores.apply(queries.to(gram.dtype), frames, gram, frame_mask, tau))


class _Tile:
    """One tile of queries and videos, with its numbers laid out (b, F, a) so that sums over frames are vectorised.

    Attributes:
        frames: (b F, d).
        products: l (b, F, a); 0 for hidden frames.
        weights: e (b, F, a); 0 for hidden frames.
        mixed: G e (b, F, a).
    """

    def __init__(
        self, scratch: Scratch, queries: Tensor, frames: Tensor, gram: Tensor, mask: Tensor, tau: float
    ) -> None:
        videos, length, _ = frames.shape
        shape = videos, length, queries.shape[1]
        self.frames = frames.to(queries.dtype).flatten(0, 1)
        self.products, self.weights = scratch.take("products", *shape), scratch.take("weights", *shape)
        flat = self.products.view(videos * length, -1)
        torch.mm(self.frames, queries, out=flat)
        hidden, look = None, may_look(mask)
        if not look:
            self.products.masked_fill_(~mask.unsqueeze(-1), torch.finfo(queries.dtype).min)
        elif not mask.all():
            hidden = (~mask).flatten().nonzero().squeeze(-1)
            flat.index_fill_(0, hidden, torch.finfo(queries.dtype).min)
        torch.sub(self.products, self.products.amax(1, keepdim=True), out=self.weights)
        self.weights.mul_(1 / tau).exp_()
        if hidden is not None:
            flat.index_fill_(0, hidden, 0.0)
            self.weights.view(videos * length, -1).index_fill_(0, hidden, 0.0)
        elif not look:
            self.products.mul_(mask.unsqueeze(-1))
            self.weights.mul_(mask.unsqueeze(-1))
        self.mixed = torch.bmm(gram, self.weights, out=scratch.take("mixed", *shape))


class _PooledScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, frames: Tensor, gram: Tensor, frame_mask: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(queries, frames, gram, frame_mask)
        ctx.tau = tau
        scratch, columns = Scratch(queries), queries.T.contiguous()
        scores = queries.new_empty(len(frames), len(queries))
        for row, column in tiles(len(queries), len(frames), frames.shape[1], tile_numbers(queries.device)):
            tile = _Tile(scratch, columns[:, row], frames[column], gram[column], frame_mask[column], tau)
            dot = tile.products.mul_(tile.weights).sum(1)
            squared = tile.mixed.mul_(tile.weights).sum(1)
            torch.mul(dot, squared.clamp_min_(LEAST_SQUARED_NORM).rsqrt_(), out=scores[column, row])
        return scores.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """With N = Σ e l, Q = eᵀ G e: dN = g / √Q, dQ = -½ g N / √Q³, dl = e (dN + (dN l + 2 dQ G e) / τ).

        The largest product, which is subtracted, has no gradient: the score does not change with the scale of e.
        """
        queries, frames, gram, frame_mask = ctx.saved_tensors
        scratch, columns = Scratch(queries), queries.T.contiguous()
        to_queries, to_gram = torch.zeros_like(queries), torch.zeros_like(gram)
        to_frames = frames.new_zeros(frames.shape, dtype=queries.dtype)
        given = grads[0].T.contiguous()
        for row, column in tiles(len(queries), len(frames), frames.shape[1], tile_numbers(queries.device)):
            tile = _Tile(scratch, columns[:, row], frames[column], gram[column], frame_mask[column], ctx.tau)
            products, weights, mixed = tile.products, tile.weights, tile.mixed
            other = scratch.take("other", *products.shape)
            dot = torch.mul(products, weights, out=other).sum(1)
            squared = torch.mul(mixed, weights, out=other).sum(1)
            scale = squared.clamp_min(LEAST_SQUARED_NORM).rsqrt()
            to_dot = given[column, row] * scale
            to_squared = (to_dot * dot * scale.square()).mul_(-0.5).mul_(squared > LEAST_SQUARED_NORM)
            torch.mul(weights, to_squared.unsqueeze(1), out=other)
            to_gram[column].baddbmm_(other, weights.transpose(1, 2))
            products.mul_(to_dot.unsqueeze(1)).addcmul_(mixed, to_squared.unsqueeze(1), value=2.0)
            products.mul_(1 / ctx.tau).add_(to_dot.unsqueeze(1)).mul_(weights)
            flat = products.flatten(0, 1)
            to_queries[row].addmm_(flat.T, tile.frames)
            to_frames[column].view(-1, frames.shape[2]).addmm_(flat, queries[row])
        return to_queries, to_frames.to(frames.dtype), to_gram, None, None
