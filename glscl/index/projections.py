"""Compact projections of texts and segments whose inner products are close to the head's scores.

Two kinds. Where the score is, or nearly is, one inner product of what the head keeps (`PAIRED`), both sides are laid
out as vectors of P numbers. Of any other head a segment's vector is its exact scores with some reference texts, and a
text is told by its exact scores with some anchor segments: the score matrix of a trained head has a low rank, so that a
few of its rows and columns give the rest (a CUR decomposition; Yadav et al., arXiv 2210.12579, for cross-encoders).

Either way the best M directions are those of a singular value decomposition of scores of reference texts and sampled
segments, with a segment's mean over texts left out, which no ranking needs: directions in which texts do not differ, or
segments do not, cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.evaluation.caches import Cache
from glscl.evaluation.similarity import ScoreFunction, rows_of
from glscl.index.vectors import Array
from glscl.models.heads.base import Head

ANCHORS = 512
"""Segments with which a text is scored to be told by."""
REFERENCES = 256
"""Texts with which every segment is scored, of heads whose score is no inner product."""
_RIDGE = 1e-4
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Pair:
    """Texts and segments laid out as vectors whose inner product is the head's score, or close to it."""

    text: Callable[[Head, Cache], Tensor]
    video: Callable[[Head, Cache], Tensor]


def _glscl_text(head: Head, text: Cache) -> Tensor:
    """Concepts as the score weighs them, and the unit sentence: (A, K D + D), or the one that is on."""
    pieces = []
    if "concepts" in text:
        weight = head.options.local_weight / text["concepts"].shape[1]  # type: ignore[union-attr, operator]
        pieces.append(weight * text["concepts"].float().flatten(1))
    if head.options.use_global:  # type: ignore[union-attr]
        pieces.append(F.normalize(text["sentence"].float(), dim=-1))
    return torch.cat(pieces, 1)


def _glscl_video(head: Head, video: Cache) -> Tensor:
    """Concepts, and the unit mean of the frames, in place of what a text pools of them."""
    pieces = []
    if "concepts" in video:
        pieces.append(video["concepts"].float().flatten(1))
    if "frames" in video:
        mask = video["frame_mask"].unsqueeze(-1)
        pieces.append(F.normalize((video["frames"].float() * mask).sum(1), dim=-1))
    return torch.cat(pieces, 1)


_COSINE = Pair(lambda head, text: text["sentence"].float(), lambda head, video: video["pooled"].float())
PAIRED: Mapping[str, Pair] = {
    "glscl": Pair(_glscl_text, _glscl_video),
    "mean_pool": _COSINE,
    "seq_transformer": _COSINE,
}


class Projection:
    """Maps texts and segments to M numbers each.

    Attributes:
        arrays: what it needs on disk, besides the caches of references and anchors.
        references: caches of the texts with which segments are scored; None where both sides are vectors.
        anchors: caches of the segments with which texts are scored; None likewise.
    """

    def __init__(
        self,
        head: Head,
        score: ScoreFunction,
        arrays: dict[str, Array],
        references: Cache | None = None,
        anchors: Cache | None = None,
    ) -> None:
        self.head, self.score = head, score
        self.arrays, self.references, self.anchors = arrays, references, anchors
        self._video_map, self._query_map, self._means = (
            torch.from_numpy(np.array(arrays[name])) for name in ("video_map", "query_map", "means")
        )

    @property
    def width(self) -> int:
        """M."""
        return self._video_map.shape[1]

    @torch.no_grad()
    def of_videos(self, video: Cache) -> Tensor:
        """Vectors (B, M) of segments, float32 on the CPU."""
        if self.references is None:
            vectors = PAIRED[self.head.name].video(self.head, video).cpu()
        else:
            vectors = self.score(self.references, video).T.float().cpu()
        return (vectors - self._means) @ self._video_map

    @torch.no_grad()
    def of_text(self, text: Cache) -> Tensor:
        """Vectors (A, M) of texts, float32 on the CPU."""
        if self.anchors is None:
            vectors = PAIRED[self.head.name].text(self.head, text).cpu()
        else:
            vectors = self.score(text, self.anchors).float().cpu()
        return vectors @ self._query_map


@torch.no_grad()
def fit_paired(head: Head, score: ScoreFunction, texts: Cache, videos: Cache, width: int) -> Projection:
    """Fit the projection of a head in `PAIRED` to sampled texts and segments."""
    pair = PAIRED[head.name]
    queries, items = pair.text(head, texts).cpu(), pair.video(head, videos).cpu()
    means = items.mean(0)
    items = items - means
    basis = _turned(_left_vectors(queries @ items.T, width))  # (T, M)
    video_map = queries.T @ basis  # (P, M)
    query_map = items.T @ _solve(items @ video_map)  # (P, M)
    return Projection(head, score, _arrays(video_map, query_map, means))


@torch.no_grad()
def fit_references(head: Head, score: ScoreFunction, texts: Cache, videos: Cache, width: int) -> Projection:
    """Fit the projection of any head to sampled texts and segments: the first of each are references and anchors."""
    references, anchors = rows_of(texts, range(REFERENCES)), rows_of(videos, range(ANCHORS))
    blocks = range(0, len(next(iter(videos.values()))), _BLOCK)
    scores = torch.cat(
        [score(references, rows_of(videos, range(start, start + _BLOCK))).float().cpu() for start in blocks], 1
    )
    means = scores.mean(1)
    basis = _turned(_left_vectors(scores - means.unsqueeze(1), width))
    projected = (scores - means.unsqueeze(1)).T @ basis  # (V, M)
    own = projected[: len(next(iter(anchors.values())))]
    query_map = _solve(own - own.mean(0))
    query_map = query_map - query_map.mean(0)  # whatever a text scores with all of them alike
    return Projection(head, score, _arrays(basis, query_map, means), references, anchors)


def _left_vectors(scores: Tensor, width: int) -> Tensor:
    """The first left singular vectors (T, M) of scores (T, V)."""
    values, vectors = torch.linalg.eigh(scores.double() @ scores.double().T)
    rank = int((values > 1e-9 * values[-1]).sum())
    best: Tensor = vectors[:, -min(width, rank // 2 * 2) :].float()
    return best


def _turned(basis: Tensor) -> Tensor:
    """The same directions turned at random: a code clips what is extreme, and the best of a library are so in few."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(basis.shape[1], basis.shape[1], generator=generator)).Q
    turned: Tensor = basis @ turn
    return turned


def _solve(items: Tensor) -> Tensor:
    """``Y (Yᵀ Y + λ)⁻¹`` (V, M): scores with the items of Y, times this, are the text's coordinates."""
    gram = items.double().T @ items.double()
    ridge = _RIDGE * torch.eye(len(gram), dtype=gram.dtype) * gram.diagonal().mean()
    solved: Tensor = (items.double() @ torch.linalg.inv(gram + ridge)).float()
    return solved


def _arrays(video_map: Tensor, query_map: Tensor, means: Tensor) -> dict[str, Array]:
    maps = {"video_map": video_map, "query_map": query_map, "means": means}
    return {name: value.contiguous().numpy() for name, value in maps.items()}
