"""The best candidates of queries, found in a block of similarities, ties in order of the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matches:
    """The best candidates of each query, best first; equal scores in increasing order of index.

    Attributes:
        indices: (Q, k) int64.
        scores: (Q, k) in the precision of the similarities.
    """

    indices: Tensor
    scores: Tensor

    @classmethod
    def empty(cls, queries: int, k: int, dtype: torch.dtype) -> Matches:
        """Memory for those of so many queries."""
        return cls(torch.zeros(queries, k, dtype=torch.int64), torch.zeros(queries, k, dtype=dtype))

    def put(self, queries: slice, found: Matches) -> None:
        """Write down those of some queries."""
        self.indices[queries], self.scores[queries] = found.indices, found.scores

    @staticmethod
    def concatenate(blocks: Sequence[Matches]) -> Matches:
        """Join those of consecutive queries."""
        return Matches(torch.cat([block.indices for block in blocks]), torch.cat([block.scores for block in blocks]))


def best_matches(similarity: Tensor, k: int) -> Matches:
    """The ``k`` best of (Q, C) candidates of each query, or all C if there are fewer."""
    scores, indices = similarity.topk(min(k, similarity.shape[1]), 1)
    if scores.shape[1]:
        last = scores[:, -1:]
        chosen = (similarity == last).sum(1) > (scores == last).sum(1)  # topk takes any of those that tie for the end
        if chosen.any():
            indices[chosen] = _settle(similarity[chosen], scores[chosen], indices[chosen])
    indices, order = indices.sort(1)
    order = scores.gather(1, order).sort(dim=1, descending=True, stable=True).indices
    indices = indices.gather(1, order)
    return Matches(indices, similarity.gather(1, indices))


def _settle(similarity: Tensor, scores: Tensor, indices: Tensor) -> Tensor:
    """The indices, of which those at the last score become the first that have it."""
    last = scores[:, -1:]
    place = torch.arange(similarity.shape[1], dtype=torch.int32, device=similarity.device)
    first = torch.where(similarity == last, -place, -similarity.shape[1]).topk(scores.shape[1], 1).values
    above = (scores > last).sum(1, keepdim=True)  # topk has sorted them
    column = torch.arange(scores.shape[1], device=similarity.device).expand_as(scores)
    at_last = -first.long().gather(1, (column - above).clamp_min(0))
    return torch.where(column < above, indices, at_last)
