"""Exact ranks of the right answers in both directions, for one or several captions per video.

Text-to-video: every caption is a query against all videos; the right answer is the caption's own video.

Video-to-text: every captioned video is a query against all captioned videos, each of which stands for its captions:
the similarity of query video ``i`` to video ``j`` is the maximum over the captions of ``j``, and the rank is that of
``j = i``. This is the multi-sentence protocol of CLIP4Clip (``tensor_video_to_text_sim``) used for MSVD and VATEX; with
one caption per video it is the plain rule.

Ties: every figure but the median is the expectation over breaking them at random. A right answer that shares its
similarity with ``tied - 1`` other candidates, ``greater`` being above, takes each of the ranks ``greater + 1`` to
``greater + tied`` with equal chance. So it counts for R@k with ``clamp((k - greater) / tied, 0, 1)``, its rank counts
with the mean ``1 + greater + (tied - 1) / 2``, its reciprocal rank and its discounted gain (nDCG) with their means over
these ranks, and the median rank is the median of the mean ranks. CLIP4Clip's
``compute_metrics`` instead yields one extra "query" per tie, which changes every number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import digamma
from torch import Tensor

from glscl.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Ranks of the right answers, one per query, counted from 1."""

    optimistic: Tensor  # (Q,) int64, ties broken in the right answer's favour: ``1 + #greater``
    pessimistic: Tensor  # (Q,) int64, ties broken against it: ``1 + #greater + #equal others``

    @property
    def mid(self) -> Tensor:
        """(Q,) float64, the expected rank, the mean of the two bounds: ``1 + #greater + 0.5 * #equal others``."""
        return (self.optimistic + self.pessimistic).double() / 2

    @property
    def tied(self) -> Tensor:
        """(Q,) int64, candidates that share the right answer's similarity, itself included."""
        return self.pessimistic - self.optimistic + 1

    @property
    def reciprocal(self) -> Tensor:
        """(Q,) float64, the expected 1 / rank: a difference of digammas sums 1 / n over the ranks left open by ties."""
        first, last = self.optimistic.double(), self.pessimistic.double()
        among_tied = torch.from_numpy(digamma((last + 1).numpy()) - digamma(first.numpy())) / self.tied
        return torch.where(self.tied == 1, 1 / first, among_tied)

    def within(self, k: int) -> Tensor:
        """(Q,) float64, the chance that each right answer is among the first ``k``: 1 or 0 without ties."""
        return ((k + 1 - self.optimistic).double() / self.tied).clamp(0, 1)

    def within_gallery(self, k: int, candidates: int, size: int) -> Tensor:
        """(Q,) float64, the chance of being among the first ``k`` of a gallery of ``size`` candidates.

        The gallery is the right answer and ``size - 1`` others, drawn without replacement from the other
        ``candidates - 1`` of the whole set, whose ranks these are. Of the ``b`` others placed before it, the gallery
        holds a hypergeometric number; with ties, ``b`` is any of ``optimistic - 1`` to ``pessimistic - 1``, each with
        equal chance, so the mean over them counts. Raises `ValueError`: a gallery larger than the set.
        """
        if not 1 <= size <= candidates:
            raise ValueError(f"a gallery of {size} cannot be drawn from {candidates} candidates")
        if size <= k:
            return torch.ones(len(self), dtype=torch.float64)
        from scipy.stats import hypergeom  # a second of imports, for equal galleries alone

        chance = hypergeom.cdf(k - 1, candidates - 1, np.arange(candidates), size - 1)  # by b
        sums = torch.from_numpy(np.concatenate([[0.0], np.cumsum(chance)]))
        mean = (sums[self.pessimistic] - sums[self.optimistic - 1]) / self.tied
        return torch.where(self.tied == 1, torch.from_numpy(chance)[self.optimistic - 1], mean).clamp(0, 1)

    def discounted(self, k: int) -> Tensor:
        """(Q,) float64, the expected ``1 / log2(1 + rank)``, 0 after rank ``k``: a right answer's part of DCG@k."""
        places = torch.arange(1, k + 1, dtype=torch.float64)
        sums = torch.cat([torch.zeros(1, dtype=torch.float64), (1 / (1 + places).log2()).cumsum(0)])
        return (sums[self.pessimistic.clamp(max=k)] - sums[(self.optimistic - 1).clamp(max=k)]) / self.tied

    def __len__(self) -> int:
        return len(self.optimistic)

    def put(self, queries: slice, found: "Ranks") -> None:
        """Write down those of some queries."""
        self.optimistic[queries], self.pessimistic[queries] = found.optimistic, found.pessimistic

    @staticmethod
    def concatenate(blocks: "Sequence[Ranks]") -> "Ranks":
        """Join the ranks of consecutive blocks of queries."""
        none = torch.zeros(0, dtype=torch.int64)
        return Ranks(
            torch.cat([none, *(block.optimistic for block in blocks)]),
            torch.cat([none, *(block.pessimistic for block in blocks)]),
        )


def check_similarity(similarity: Tensor) -> Tensor:
    """The similarity in the precision it is ranked in, fp32 at least. Raises `UserError`: NaN, which has no rank."""
    if bad := int(similarity.isnan().sum()):
        raise UserError(
            f"{bad} of {similarity.numel()} similarities are NaN, so there are no ranks: the checkpoint has diverged "
            "or the model overflows in half precision; evaluate an earlier checkpoint or in fp32"
        )
    return similarity if similarity.dtype == torch.float64 else similarity.float()


def check_text_to_video(text_to_video: Tensor, texts: int, videos: int) -> Tensor:
    """Return ``text_to_video`` as int64. Raises `ValueError`: it is not (texts,) integers within ``[0, videos)``."""
    if text_to_video.shape != (texts,) or text_to_video.is_floating_point():
        raise ValueError(
            f"text_to_video must be ({texts},) integers, not {tuple(text_to_video.shape)} {text_to_video.dtype}"
        )
    text_to_video = text_to_video.long()
    if texts and not 0 <= int(text_to_video.min()) <= int(text_to_video.max()) < videos:
        raise ValueError(
            f"text_to_video must lie in [0, {videos}), not [{int(text_to_video.min())}, {int(text_to_video.max())}]"
        )
    return text_to_video


def rank_targets(similarity: Tensor, target: Tensor) -> Ranks:
    """Rank the candidate in column ``target``, (Q,) int64, of every row of (Q, C). Raises `UserError`: NaN."""
    similarity = check_similarity(similarity)
    right = similarity.gather(1, target[:, None])
    optimistic = 1 + (similarity > right).sum(1)
    pessimistic = (similarity >= right).sum(1)  # the right answer equals itself: this is 1 + greater + equal others
    return Ranks(optimistic.cpu(), pessimistic.cpu())


def text_to_video_ranks(similarity: Tensor, text_to_video: Tensor) -> Ranks:
    """Rank each text's video, (A,), among all of (A, N) similarities. Raises `UserError`: NaN; `ValueError`: shapes."""
    target = check_text_to_video(text_to_video, *similarity.shape).to(similarity.device)
    return rank_targets(similarity, target)


def video_to_text_ranks(similarity: Tensor, text_to_video: Tensor) -> Ranks:
    """Rank each captioned video's best caption among the best of all captioned videos, in increasing order of video.

    A video without captions has no right answer: it is no query here, and no candidate. Arguments are those of
    `text_to_video_ranks`, and so are errors.
    """
    target = check_text_to_video(text_to_video, *similarity.shape).to(similarity.device)
    captioned, group = target.unique(return_inverse=True)
    similarity = check_similarity(similarity)[:, captioned].T
    best = similarity.new_full((len(captioned), len(captioned)), -torch.inf)
    fold_captions(best, similarity, group)
    return rank_targets(best, torch.arange(len(captioned), device=best.device))


def fold_captions(best: Tensor, similarity: Tensor, group: Tensor) -> None:
    """Update, in place, each row's best caption per video.

    ``best`` (B, G) holds running maxima, ``similarity`` (B, a) is of B videos and a texts, and ``group`` (a,) int64 is
    the column of ``best`` that each text belongs to.
    """
    best.scatter_reduce_(1, group.expand(len(similarity), -1), similarity, "amax")


def expected_occurrences(similarity: Tensor, k: int, last: Tensor | None = None) -> Tensor:
    """(C,) float64: how often each candidate of (Q, C) is among the ``k`` best, last places drawn by lot where tied.

    ``last`` (Q, 1) is each row's ``k``-th best similarity, if it is known already.
    """
    k = min(k, similarity.shape[1])
    if last is None:
        last = similarity.topk(k, 1).values[:, -1:]
    above, level = similarity > last, similarity == last
    share = (k - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True).double()
    return above.sum(0).double() + share[:, 0] @ level.double()  # one double copy of the block at a time


def skewness(counts: Tensor) -> float:
    """Skewness of the k-occurrence: how unevenly videos appear among the texts' k nearest (Radovanovic et al., 2010).

    The third standardised moment of ``counts`` (N,), which `expected_occurrences` gives; 0 if all are equal.
    """
    centred = counts.double() - counts.double().mean()
    variance = centred.square().mean()
    return float(centred.pow(3).mean() / variance.pow(1.5)) if variance > 1e-18 else 0.0  # more than rounding
