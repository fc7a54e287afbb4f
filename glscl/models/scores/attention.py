"""X-CLIP's attention over scores: a sum of scores that is weighted by their own sharp softmax."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from glscl.models.scores.tiles import may_look

TEMPERATURE = 0.01  # X-CLIP's, of the softmax over scores


def attend_over_scores(scores: Tensor, dim: int, mask: Tensor, matrix: Tensor) -> Tensor:
    """``Σ_i [softmax(scores / 0.01) M]_i scores_i`` along one dimension.

    That is ``Σ_i e_i (M s)_i / Σ_i e_i`` with ``e = exp((s - max s) / 0.01)``. It is fastest where the numbers behind
    the dimension are many, since they are what is vectorised; the backward pass computes it again.

    Args:
        scores: (..., L, ...), contiguous.
        dim: where L is.
        mask: bool, broadcast over ``scores``; what it hides has weight and score 0.
        matrix: M (L, L), in any floating-point type.

    Returns:
        (..., ...), without that dimension; 0 where the mask hides everything.
    """
    length = scores.shape[dim]
    shape = scores.shape[:dim].numel(), length, scores.shape[dim + 1 :].numel()
    hidden: Tensor | None = None
    if not may_look(mask) or not mask.all():
        hidden = ~mask.expand(scores.shape).reshape(shape)
    attended = cast(Tensor, _Attention.apply(scores.reshape(shape), hidden, matrix.to(scores.dtype)))
    return attended.view(scores.shape[:dim] + scores.shape[dim + 1 :])


class _Attention(torch.autograd.Function):
    """Attention along the middle of scores (P, L, N), hidden where a bool tensor of that shape is True."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, hidden: Tensor | None, matrix: Tensor) -> Tensor:
        weights, mixed, _ = _parts(scores, hidden, matrix)
        total = weights.sum(1)
        attended = mixed.mul_(weights).sum(1).div_(total)
        ctx.save_for_backward(scores, hidden, matrix, attended)
        return attended

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """With α the softmax and y = M s: dy = g α, ds = Mᵀ dy + g α (y - Σ α y) / 0.01, dM = Σ dy sᵀ."""
        scores, hidden, matrix, attended = ctx.saved_tensors
        weights, mixed, shown = _parts(scores, hidden, matrix)
        to_mixed = weights.mul_((grads[0] / weights.sum(1)).unsqueeze(1))
        to_matrix = torch.bmm(to_mixed, shown.transpose(1, 2)).sum(0)
        to_scores = mixed.sub_(attended.unsqueeze(1)).mul_(to_mixed).mul_(1 / TEMPERATURE)
        to_scores.baddbmm_(matrix.T.expand(len(scores), -1, -1), to_mixed)
        if hidden is not None:
            to_scores.masked_fill_(hidden, 0.0)
        return to_scores, None, to_matrix


def _parts(scores: Tensor, hidden: Tensor | None, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weights e, ``M s``, and s with 0 for what is hidden, each (P, L, N)."""
    shown = visible = scores
    if hidden is not None:
        shown = scores.masked_fill(hidden, 0.0)
        visible = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)  # finite: all of a row may be hidden
    weights = torch.sub(visible, visible.amax(1, keepdim=True)).mul_(1 / TEMPERATURE).exp_()
    return weights, torch.bmm(matrix.expand(len(scores), -1, -1), shown), shown
