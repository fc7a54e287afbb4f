"""Exact ranks of the right answers in both directions, for one or several captions per video.

Text-to-video: every caption is a query against all videos; the right answer is the caption's own video.

Video-to-text: every captioned video is a query against all captioned videos, each of which stands for its captions:
the similarity of query video ``i`` to video ``j`` is the maximum over the captions of ``j``, and the rank is that of
``j = i``. This is the multi-sentence protocol of CLIP4Clip (``tensor_video_to_text_sim``: maximum over the caption
axis, then the diagonal's rank) used for MSVD and VATEX. With one caption per video the maximum is over one
element and the rule is the plain one: the rank of the video's own caption among all captions.

Ties: every figure but the median is the expectation over breaking them at random. A right answer that shares its
similarity with ``tied - 1`` other candidates, ``greater`` being above, takes each of the ranks ``greater + 1`` to
``greater + tied`` with equal chance. So it counts for R@k with ``clamp((k - greater) / tied, 0, 1)``, its rank counts
with the mean ``1 + greater + (tied - 1) / 2``, and the median rank is the median of these means. What breaking all ties
against or in favour of the right answers would give stands beside R@1. CLIP4Clip's ``compute_metrics`` instead yields
one extra "query" per tie, which changes every number as soon as two captions or two embeddings are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.special import digamma
from torch import Tensor

from glscl.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Ranks of the right answers, one per query, counted from 1.

    Attributes:
        optimistic: (Q,) int64, ties broken in the right answer's favour: ``1 + #greater``.
        pessimistic: (Q,) int64, ties broken against it: ``1 + #greater + #equal others``.
    """

    optimistic: Tensor
    pessimistic: Tensor

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
        """(Q,) float64, the chance that each right answer is among the first ``k`` if ties are broken at random.

        That is ``clamp((k - greater) / tied, 0, 1)``: 1 or 0 for every query without ties.
        """
        return ((k + 1 - self.optimistic).double() / self.tied).clamp(0, 1)

    def __len__(self) -> int:
        return len(self.optimistic)

    @staticmethod
    def concatenate(blocks: Sequence[Ranks]) -> Ranks:
        """Join the ranks of consecutive blocks of queries."""
        if not blocks:
            empty = torch.zeros(0, dtype=torch.int64)
            return Ranks(empty, empty.clone())
        return Ranks(torch.cat([b.optimistic for b in blocks]), torch.cat([b.pessimistic for b in blocks]))


def check_similarity(similarity: Tensor) -> Tensor:
    """Return ``similarity`` in the precision that it is ranked in: as it is in fp32 and fp64, half precision in fp32.

    Raises:
        UserError: it contains NaN, which has no rank.
    """
    bad = int(similarity.isnan().sum())
    if bad:
        raise UserError(
            f"{bad} of {similarity.numel()} similarities are NaN, so there are no ranks: the checkpoint has diverged "
            "or the model overflows in half precision; evaluate an earlier checkpoint or in fp32"
        )
    return similarity if similarity.dtype == torch.float64 else similarity.float()


def check_text_to_video(text_to_video: Tensor, texts: int, videos: int) -> Tensor:
    """Return ``text_to_video`` as int64.

    Raises:
        ValueError: it is not (texts,) integers within ``[0, videos)``.
    """
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
    """Rank one candidate of every row.

    Args:
        similarity: (Q, C), larger is closer.
        target: (Q,) int64, the column of each query's right answer.

    Raises:
        UserError: NaN.
    """
    similarity = check_similarity(similarity)
    right = similarity.gather(1, target[:, None])
    optimistic = 1 + (similarity > right).sum(1)
    pessimistic = (similarity >= right).sum(1)  # the right answer equals itself: this is 1 + greater + equal others
    return Ranks(optimistic.cpu(), pessimistic.cpu())


def text_to_video_ranks(similarity: Tensor, text_to_video: Tensor) -> Ranks:
    """Rank each text's video among all videos.

    Args:
        similarity: (A, N) of every text and every video.
        text_to_video: (A,) the video of each text.

    Raises:
        UserError: NaN.
        ValueError: shapes that do not fit.
    """
    target = check_text_to_video(text_to_video, *similarity.shape).to(similarity.device)
    return rank_targets(similarity, target)


def video_to_text_ranks(similarity: Tensor, text_to_video: Tensor) -> Ranks:
    """Rank each captioned video's best caption among the best captions of all captioned videos.

    A video without captions has no right answer: it is no query here, and no candidate.

    Args:
        similarity: (A, N) of every text and every video.
        text_to_video: (A,) the video of each text.

    Returns:
        One rank per captioned video, in increasing order of video.

    Raises:
        UserError: NaN.
        ValueError: shapes that do not fit.
    """
    target = check_text_to_video(text_to_video, *similarity.shape).to(similarity.device)
    captioned, group = target.unique(return_inverse=True)
    similarity = check_similarity(similarity)[:, captioned].T
    best = similarity.new_full((len(captioned), len(captioned)), -torch.inf)
    fold_captions(best, similarity, group)
    return rank_targets(best, torch.arange(len(captioned), device=best.device))


def fold_captions(best: Tensor, similarity: Tensor, group: Tensor) -> None:
    """Update, in place, each row's best caption per video.

    Args:
        best: (B, G) running maxima.
        similarity: (B, a) of B videos and a texts.
        group: (a,) int64, the column of ``best`` that each text belongs to.
    """
    best.scatter_reduce_(1, group.expand(len(similarity), -1), similarity, "amax")


def expected_occurrences(similarity: Tensor, k: int) -> Tensor:
    """How often each candidate is expected among the queries' ``k`` best, ties for the last place broken at random.

    Args:
        similarity: (Q, C), without NaN.
        k: places; all C candidates have one if there are no more.

    Returns:
        (C,) float64; the sum is ``Q * min(k, C)``.
    """
    k = min(k, similarity.shape[1])
    last = similarity.topk(k, 1).values[:, -1:]
    above, level = similarity > last, similarity == last
    share = (k - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True).double()
    return above.sum(0).double() + share[:, 0] @ level.double()  # one double copy of the block at a time


def skewness(counts: Tensor) -> float:
    """Skewness of the k-occurrence: how unevenly videos appear among the texts' k nearest (Radovanovic et al., 2010).

    Args:
        counts: (N,) occurrences of each video (`expected_occurrences`).

    Returns:
        The third standardised moment of the counts; 0 if all are equal.
    """
    centred = counts.double() - counts.double().mean()
    variance = centred.square().mean()
    return float(centred.pow(3).mean() / variance.pow(1.5)) if variance > 1e-18 else 0.0  # more than rounding
