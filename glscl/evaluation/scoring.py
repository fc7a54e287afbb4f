"""Ranks and best matches in both directions, block by block, without the whole similarity matrix.

What a head caches per text and per video is small; the (A, N) similarity matrix need not be. A *group* of texts is held
with its similarities to all videos, and the videos visit it block by block, so each pair is scored once. A text's rank
is counted in its row. A video's is counted over all groups: the videos whose best caption is nearer to it than its own
best, which therefore must be known before (`own_scores`).

Processes share the work by texts: each calls `own_scores` and `rank_texts` for its own, which are all captions of some
videos, and `merge` joins the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glscl.evaluation.caches import Cache, Caches, cut
from glscl.evaluation.matches import Matches, best_matches
from glscl.evaluation.ranks import (
    Ranks,
    check_text_to_video,
    expected_occurrences,
    fold_captions,
    rank_targets,
    skewness,
)
from glscl.evaluation.similarity import MEMORY, ScoreFunction, Scorer


@dataclass(frozen=True)
class RankedTexts:
    """What comes of ranking some texts among all videos, and of their captions' share in the ranks of all videos.

    Attributes:
        rows: the texts.
        ranks: one per text.
        matches: best videos of each text.
        occurrences: (N,) float64, how often each video is expected among the k best of these texts, ties broken at
            random.
        nearer: (N,) int64, how many of the videos that these texts describe have a caption that is nearer to each video
            than the best of its own.
        as_near: (N,) int64, the same with those that are as near, the video itself included.
        relevant: one rank per pair of `RelevantPairs` whose text is among these.
    """

    rows: range
    ranks: Ranks
    matches: Matches
    occurrences: Tensor
    nearer: Tensor
    as_near: Tensor
    relevant: Ranks


@dataclass(frozen=True)
class ScoringResult:
    """Ranks of all texts and videos of a set; everything is on the CPU.

    Attributes:
        text_to_video: one rank per text.
        video_to_text: one rank per captioned video.
        query_videos: (Q,) int64, the video that each rank of ``video_to_text`` belongs to.
        text_matches: best videos of each text.
        occurrences: (N,) float64, how often each video is expected among the k best of the texts, ties broken at
            random.
        relevant: one rank per pair of `RelevantPairs`, if there were any.
    """

    text_to_video: Ranks
    video_to_text: Ranks
    query_videos: Tensor
    text_matches: Matches
    occurrences: Tensor
    relevant: Ranks

    def hubness_skewness(self) -> float:
        """Skewness of the k-occurrence of the videos among the texts' best matches."""
        return skewness(self.occurrences)


@dataclass(frozen=True, slots=True)
class RelevantPairs:
    """Texts with videos that are relevant to them, beside each text's own or with it.

    Attributes:
        texts: (P,) int64, which does not decrease.
        videos: (P,) int64.
    """

    texts: Tensor
    videos: Tensor

    def of(self, texts: range) -> RelevantPairs:
        """Those of consecutive texts, which are counted from the first of them."""
        first, last = (int(torch.searchsorted(self.texts, end)) for end in (texts.start, texts.stop))
        return RelevantPairs(self.texts[first:last] - texts.start, self.videos[first:last])


NO_PAIRS = RelevantPairs(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


def split_rows(total: int, index: int, count: int) -> range:
    """Return the ``index``-th of ``count`` contiguous ranges of ``range(total)``; sizes differ by at most one."""
    return range(total * index // count, total * (index + 1) // count)


def split_texts(text_to_video: Tensor, index: int, count: int) -> range:
    """Return the ``index``-th of ``count`` ranges of texts, as equal as can be where none parts a video's captions."""
    texts = len(text_to_video)
    rows = split_rows(texts, index, count)
    first, last = (
        int(torch.searchsorted(text_to_video, text_to_video[end])) if end < texts else texts
        for end in (rows.start, rows.stop)
    )
    return range(first, last)


@torch.no_grad()
def own_scores(scorer: Scorer, texts: range, text_to_video: Tensor) -> Tensor:
    """(N,): similarity of each video to the best of its own captions; -inf where ``texts`` has none of them.

    They are taken from the very tiles of `Scorer.similarities`, so that a caption that is as near is seen to be.
    Arguments and errors are those of `rank_texts`.
    """
    owners = _check_owners(scorer, texts, text_to_video)
    best = torch.full((len(scorer.video),), -torch.inf, dtype=torch.float64, device=scorer.device)
    precision = torch.float32
    size = scorer.texts_at_once
    for columns in scorer.video.blocks(scorer.videos_at_once):
        first, last = (int(torch.searchsorted(owners, end)) for end in (columns.start, columns.stop))
        if first == last:
            continue
        video = scorer.video.read(columns, scorer.device)
        for start in range(first - first % size, last, size):
            tile = scorer.tile(scorer.text.read(texts[start : start + size], scorer.device), video)
            rows = torch.arange(max(first, start), min(last, start + size))
            targets = owners[rows].to(scorer.device)
            own = tile[(rows - start).to(scorer.device), targets - columns.start]
            best.scatter_reduce_(0, targets, own.double(), "amax")
            precision = tile.dtype
    return best.to(precision)


@torch.no_grad()
def rank_texts(
    scorer: Scorer,
    texts: range,
    text_to_video: Tensor,
    own: Tensor,
    *,
    k: int = 10,
    visits: int = 0,
    relevant: RelevantPairs = NO_PAIRS,
) -> RankedTexts:
    """Rank some texts among all videos, and count what their captions are to the ranks of all videos.

    Args:
        scorer: of all texts and videos.
        texts: to rank: all captions of some videos.
        text_to_video: (A,) the video of each text, which does not decrease.
        own: (N,) what `own_scores` gives for all texts.
        k: best matches kept per text (fewer if there are fewer videos); 0 leaves out matches and occurrences.
        visits: see `Scorer.similarities`.
        relevant: pairs of all texts that are ranked one by one, too.

    Raises:
        UserError: a similarity is NaN.
        ValueError: caches, texts, ``text_to_video`` and scores do not fit together.
    """
    owners = _check_owners(scorer, texts, text_to_video)
    videos = len(scorer.video)
    # Taken at once: kept pieces of each block would lie between its large temporaries and stop their memory's reuse.
    ranks = Ranks(*(torch.zeros(len(texts), dtype=torch.int64) for _ in range(2)))
    matches = Matches.empty(len(texts), min(k, videos), own.dtype)
    occurrences = torch.zeros(videos, dtype=torch.float64)
    counts = _VideoCounts(own.to(scorer.device))
    of_pairs: list[Ranks] = []
    for group, similarity in scorer.similarities(texts, visits):
        for rows in cut(group, scorer.texts_at_once):
            block = similarity[rows.start - group.start : rows.stop - group.start]
            place = slice(rows.start - texts.start, rows.stop - texts.start)
            targets = owners[place].to(scorer.device)
            ranks.put(place, rank_targets(block, targets))
            of_pairs += _rank_pairs(block, relevant.of(rows))
            if k:
                best = best_matches(block, k)
                matches.put(place, best)
                occurrences += expected_occurrences(block, k, best.scores[:, -1:]).cpu()
            after = owners[place.stop : place.stop + 1]
            counts.add(block, targets, bool(len(after) and after[0] == targets[-1]))
        del similarity, block
    nearer, as_near = counts.nearer.cpu(), counts.as_near.cpu()
    return RankedTexts(texts, ranks, matches, occurrences, nearer, as_near, Ranks.concatenate(of_pairs))


def _rank_pairs(block: Tensor, pairs: RelevantPairs) -> list[Ranks]:
    """Ranks of pairs in their rows of (a, N) similarities, of which a quarter is copied at a time."""
    size = -(-len(block) // 4)
    texts, videos = pairs.texts.to(block.device), pairs.videos.to(block.device)
    return [
        rank_targets(block[some], of_some)
        for some, of_some in zip(texts.split(size), videos.split(size), strict=True)
        if len(some)
    ]


class _VideoCounts:
    """Counts, for every video, those whose best caption is nearer to it than its own best, ``own`` (N,)."""

    def __init__(self, own: Tensor) -> None:
        self.own = own
        self.nearer, self.as_near = (torch.zeros(len(own), dtype=torch.int64, device=own.device) for _ in range(2))
        self._held: Tensor | None = None  # similarities of a video's captions of which more are to come

    def add(self, block: Tensor, owners: Tensor, unfinished: bool) -> None:
        """Count texts by their similarities, (a, N), which are overwritten, and their videos, (a,).

        The captions of the last video are ``unfinished`` where more of them follow.
        """
        videos, captions = owners.unique_consecutive(return_inverse=True)
        best = block
        if len(videos) < len(owners):
            best = block.new_full((len(videos), block.shape[1]), -torch.inf)
            fold_captions(best.T, block.T, captions)
        if self._held is not None:
            torch.maximum(best[0], self._held, out=best[0])
            self._held = None
        if unfinished:
            self._held = best[-1].clone()
            best, videos = best[:-1], videos[:-1]
        best[torch.arange(len(videos), device=videos.device), videos] = self.own[videos]  # whatever a tile's last bit
        self.nearer += (best > self.own).sum(0)
        self.as_near += (best >= self.own).sum(0)


def merge(results: Sequence[RankedTexts], text_to_video: Tensor) -> ScoringResult:
    """Join the results of all texts of a set, shared in any way and given in any order.

    Raises:
        ValueError: the shards overlap or leave a gap.
    """
    results = sorted(results, key=lambda result: (result.rows.start, result.rows.stop))
    ends = [0, *(result.rows.stop for result in results)]
    starts = [*(result.rows.start for result in results), len(text_to_video)]
    if starts != ends:
        raise ValueError(f"rows of the shards do not join: they begin at {starts[:-1]} and end at {ends[1:]}")
    nearer, as_near = _sum([result.nearer for result in results]), _sum([result.as_near for result in results])
    captioned = text_to_video.unique()
    return ScoringResult(
        text_to_video=Ranks.concatenate([result.ranks for result in results]),
        video_to_text=video_ranks(nearer, as_near, captioned),
        query_videos=captioned,
        text_matches=Matches.concatenate([result.matches for result in results]),
        occurrences=_sum([result.occurrences for result in results]),
        relevant=Ranks.concatenate([result.relevant for result in results]),
    )


def video_ranks(nearer: Tensor, as_near: Tensor, captioned: Tensor) -> Ranks:
    """Ranks of the captioned videos (Q,) from the counts (N,) of `RankedTexts`, summed over all texts."""
    return Ranks(1 + nearer[captioned], as_near[captioned])


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def evaluate_scores(
    score: ScoreFunction,
    text: Cache,
    video: Cache,
    text_to_video: Tensor,
    *,
    text_block: int = 256,
    video_block: int = 256,
    memory: int = MEMORY,
    k: int = 10,
    relevant: RelevantPairs = NO_PAIRS,
) -> ScoringResult:
    """Rank all texts and videos whose caches are tensors of this process; see `Scorer` and `rank_texts`.

    The result does not depend on the block sizes, as far as ``score`` itself does not (matrix products of different
    shapes may differ in the last bit).
    """
    if k < 1:
        raise ValueError(f"k must be positive, not {k}")
    device = next(iter(text.values())).device
    scorer = Scorer(score, Caches.of(text), Caches.of(video), device, text_block, video_block, memory)
    texts = range(len(scorer.text))
    own = own_scores(scorer, texts, text_to_video)
    return merge([rank_texts(scorer, texts, text_to_video, own, k=k, relevant=relevant)], text_to_video.cpu())


def rank_matrix(
    similarity: Tensor, text_to_video: Tensor, k: int = 10, relevant: RelevantPairs = NO_PAIRS
) -> ScoringResult:
    """Rank texts and videos of a similarity matrix that is held as a whole.

    Args:
        similarity: (A, N) of all texts and videos.
        text_to_video: (A,) the video of each text, which does not decrease.
        k: best videos kept per text.
        relevant: see `rank_texts`.

    Raises:
        UserError: a similarity is NaN.
    """

    def score(text: Cache, video: Cache) -> Tensor:
        (rows, columns) = (slice(int(c["row"][0]), int(c["row"][-1]) + 1) for c in (text, video))
        return similarity[rows, columns]

    texts, videos = ({"row": torch.arange(size)} for size in similarity.shape)
    return evaluate_scores(score, texts, videos, text_to_video, memory=256 << 20, k=k, relevant=relevant)


def _check_owners(scorer: Scorer, texts: range, text_to_video: Tensor) -> Tensor:
    """The video of each of the texts, on the CPU."""
    total = len(scorer.text)
    owners = check_text_to_video(text_to_video, total, len(scorer.video)).cpu()
    if texts.step != 1 or (texts and not 0 <= texts.start < texts.stop <= total):
        raise ValueError(f"texts must be a contiguous part of range({total}), not {texts}")
    if (owners.diff() < 0).any():
        raise ValueError("text_to_video must not decrease: texts are in the order of their videos")
    for end in (texts.start, texts.stop):
        if texts and 0 < end < total and owners[end - 1] == owners[end]:
            raise ValueError(f"{texts} has some captions of video {int(owners[end])}, not all")
    return owners[texts.start : texts.stop]
