"""One vector of a video, whatever its head keeps: what the similarity of two videos is made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.evaluation.caches import Cache

_TOKENS = (
    ("frames", "frame_mask"), ("unit_frames", "frame_mask"), ("features", "mask"), ("tokens", "mask"),
    ("vectors", "mask"), ("key", "frame_mask"),
)  # fmt: skip


def video_vectors(cache: Cache) -> Tensor:
    """Unit vectors (B, P) whose inner products are the similarities of videos, from -1 to 1.

    The cosine of the means of the unit vectors of their frames (`agc`: of its vectors; `xpool`, `tmass` and `tcmgc`: of
    its attention keys). `glscl` has concepts beside them: the mean of that cosine and of those of the concepts.
    """
    pieces = []
    if "concepts" in cache:
        pieces.append(F.normalize(cache["concepts"].float().flatten(1), dim=-1))
    if "pooled" in cache:
        pieces.append(F.normalize(cache["pooled"].float(), dim=-1))
    else:
        pieces += [_mean(cache[name], cache.get(mask)) for name, mask in _TOKENS if name in cache][:1]
    if not pieces:  # of a plug-in
        pieces = [_mean(tensor, None) for tensor in cache.values() if tensor.is_floating_point()][:1]
    return F.normalize(torch.cat(pieces, 1), dim=-1)


def _mean(vectors: Tensor, mask: Tensor | None) -> Tensor:
    vectors = vectors.float()
    if vectors.ndim == 4:  # (B, heads, F, D / heads)
        vectors = vectors.transpose(1, 2).flatten(2)
    if vectors.ndim < 3:
        return F.normalize(vectors, dim=-1)
    unit = F.normalize(vectors, dim=-1)
    if mask is not None:
        unit = unit * mask.unsqueeze(-1)
    return F.normalize(unit.sum(1), dim=-1)
