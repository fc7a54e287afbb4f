"""What follows an attention in X-Pool's transformer, folded into the vectors that are attended to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.models.heads.base import Features
from glscl.models.heads.scoring import wide


def quadratic_form(gram: Tensor, coefficients: Tensor) -> Tensor:
    """``cᵀ G c`` (b, 1, a) of Gram matrices (b, n, n) and coefficients (b, n, a)."""
    return (torch.bmm(gram, coefficients) * coefficients).sum(1, keepdim=True)


@dataclass(frozen=True)
class Tail:
    """``z = LN_b(y + W y + c)`` with ``y = LN_a(Σ_i w_i x_i)``, of n vectors x and an attention w over them.

    Both norms centre their input, which is linear, and divide it by its deviation, which is a number. With σ_a and σ_b
    these two numbers, ``z σ_a σ_b = Σ_i w_i m_i + σ_a s + σ_a σ_b e``: m are the vectors mapped (`fold`), s and e do
    not depend on the video (`constants`), and both deviations are quadratic forms of w. So neither W nor a vector per
    pair remains. Exact where nothing is dropped out between the norms.

    Attributes:
        first: LN_a.
        linear: W and c.
        second: LN_b.
    """

    first: nn.LayerNorm
    linear: nn.Linear
    second: nn.LayerNorm

    def constants(self) -> Tensor:
        """s and e, (2, D): what the biases of LN_a and W add, centred, times LN_b's weights; and LN_b's bias."""
        return torch.stack([self._shift() * wide(self.second.weight), wide(self.second.bias)])

    def fold(self, vectors: Tensor) -> Features:
        """``mapped`` m (B, n, D) of vectors x (B, n, D), and two Gram matrices for the deviations."""
        centred = vectors - vectors.mean(-1, keepdim=True)
        scaled = centred * wide(self.first.weight)
        mapped = scaled + scaled @ wide(self.linear.weight).T
        mapped = mapped - mapped.mean(-1, keepdim=True)
        with_shift = torch.cat([mapped, self._shift().expand(vectors.shape[0], 1, -1)], 1)
        return {
            "mapped": mapped * wide(self.second.weight),
            "gram": centred @ centred.transpose(1, 2),
            "gram_shift": with_shift @ with_shift.transpose(1, 2),
        }

    def coefficients(self, weights: Tensor, folded: Features) -> Tensor:
        """``w``, ``σ_a`` and ``σ_a σ_b`` (b, n + 2, a) of an attention (b, n, a): those of m, s and e in ``z σ_a σ_b``.

        Multiply-adds per pair: ``n² + (n + 1)²``.
        """
        width = len(self.second.weight)
        first = quadratic_form(folded["gram"], weights) / width + self.first.eps
        coefficients = torch.cat([weights, first.sqrt()], 1)
        second = quadratic_form(folded["gram_shift"], coefficients) / width + self.second.eps * first
        return torch.cat([coefficients, second.sqrt()], 1)

    def unfolded(self, attended: Tensor, dropout: nn.Module) -> Tensor:
        """z of ``Σ_i w_i x_i`` itself (..., D), with dropout of W's output."""
        normed = self.first(attended.to(self.linear.weight.dtype))
        result: Tensor = self.second(normed + dropout(self.linear(normed)))
        return wide(result)

    def _shift(self) -> Tensor:
        """What LN_a's bias adds to the input of LN_b, centred: (D,)."""
        bias = wide(self.first.bias)
        shift = bias + F.linear(bias, wide(self.linear.weight), wide(self.linear.bias))
        return shift - shift.mean()
