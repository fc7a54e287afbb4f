"""Ranks and best matches in both directions, block by block, without the whole similarity matrix.

What a head caches per text and per video is small; the (A, N) similarity matrix need not be. Text-to-video ranks need
one block of texts against all videos, video-to-text ranks one block of videos against all texts, reduced on the fly
to the best caption per video. So every pair is scored twice, once per direction, and the largest similarity held is
``(text_block, N)`` or ``(video_block, N)``.

Processes share the work by row shards: each calls `evaluate_scores` with the ``text_rows`` and ``video_rows`` of its
shard (`split_rows`), and `merge` joins the results.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glscl.evaluation.ranks import (
    Ranks,
    check_similarity,
    check_text_to_video,
    expected_occurrences,
    fold_captions,
    rank_targets,
    skewness,
)

Cache = dict[str, Tensor]
"""What a head caches: tensors of one leading dimension, one row per text or per video."""

ScoreFunction = Callable[[Cache, Cache], Tensor]
"""Blocks of a texts and b videos -> similarity (a, b)."""


@dataclass(frozen=True)
class Matches:
    """The best candidates of each query, best first; equal scores in increasing order of index.

    Attributes:
        indices: (Q, k) int64.
        scores: (Q, k) in the precision of the similarities.
    """

    indices: Tensor
    scores: Tensor


@dataclass(frozen=True)
class ScoringResult:
    """Ranks of some rows of the similarity matrix and of some of its columns; everything is on the CPU.

    Attributes:
        text_rows: the texts ranked here.
        video_rows: the videos ranked here.
        text_to_video: one rank per text of ``text_rows``.
        video_to_text: one rank per captioned video of ``video_rows``.
        query_videos: (Q,) int64, the video that each rank of ``video_to_text`` belongs to.
        text_matches: best videos of each text of ``text_rows``.
        occurrences: (N,) float64, how often each video is expected among the k best of ``text_rows``, ties broken at
            random.
    """

    text_rows: range
    video_rows: range
    text_to_video: Ranks
    video_to_text: Ranks
    query_videos: Tensor
    text_matches: Matches
    occurrences: Tensor

    def hubness_skewness(self) -> float:
        """Skewness of the k-occurrence of the videos among the texts' best matches."""
        return skewness(self.occurrences)


def split_rows(total: int, index: int, count: int) -> range:
    """Return the ``index``-th of ``count`` contiguous ranges of ``range(total)``; sizes differ by at most one."""
    return range(total * index // count, total * (index + 1) // count)


@torch.no_grad()
def evaluate_scores(
    score: ScoreFunction,
    text: Cache,
    video: Cache,
    text_to_video: Tensor,
    *,
    text_block: int = 256,
    video_block: int = 256,
    text_rows: range | None = None,
    video_rows: range | None = None,
    k: int = 10,
) -> ScoringResult:
    """Rank texts and videos block by block.

    The result does not depend on the block sizes, as far as ``score`` itself does not (matrix products of different
    shapes may differ in the last bit).

    Args:
        score: similarity of a block of texts and a block of videos; blocks are slices of the caches, on their device.
        text: caches of all A texts.
        video: caches of all N videos.
        text_to_video: (A,) the video of each text.
        text_block: texts scored at a time.
        video_block: videos scored at a time.
        text_rows: texts to rank; all by default.
        video_rows: videos to rank; all by default.
        k: best matches kept per query (fewer if there are fewer candidates).

    Raises:
        UserError: a similarity is NaN.
        ValueError: caches, rows, ``text_to_video`` and scores do not fit together.
    """
    texts, videos = _length(text, "text"), _length(video, "video")
    text_to_video = check_text_to_video(text_to_video, texts, videos).cpu()
    text_rows = range(texts) if text_rows is None else text_rows
    video_rows = range(videos) if video_rows is None else video_rows
    for name, rows, total in (("text_rows", text_rows, texts), ("video_rows", video_rows, videos)):
        if rows.step != 1 or (rows and not 0 <= rows.start < rows.stop <= total):
            raise ValueError(f"{name} must be a contiguous part of range({total}), not {rows}")
    if text_block < 1 or video_block < 1 or k < 1:
        raise ValueError(f"text_block, video_block and k must be positive, not {text_block}, {video_block}, {k}")

    tiles = _Tiles(score, text, video)
    text_ranks, text_matches, occurrences = _rank_texts(
        tiles, text_to_video, text_rows, videos, text_block, video_block, k
    )
    captioned, group = text_to_video.unique(return_inverse=True)
    video_ranks = _rank_videos(tiles, captioned, group, video_rows, text_block, video_block)
    return ScoringResult(
        text_rows=text_rows,
        video_rows=video_rows,
        text_to_video=text_ranks,
        video_to_text=video_ranks,
        query_videos=captioned[(captioned >= video_rows.start) & (captioned < video_rows.stop)],
        text_matches=text_matches,
        occurrences=occurrences,
    )


@torch.no_grad()
def similarity_rows(
    score: ScoreFunction, text: Cache, video: Cache, rows: range, *, text_block: int = 256, video_block: int = 256
) -> Tensor:
    """Some rows of the similarity matrix, as they are: for what cannot be computed block by block.

    Args:
        score: as for `evaluate_scores`.
        text: caches of all A texts.
        video: caches of all N videos.
        rows: texts to score, a contiguous part of ``range(A)``.
        text_block: texts scored at a time.
        video_block: videos scored at a time.

    Returns:
        (len(rows), N) on the CPU, in the precision that the score function gives (at least fp32).

    Raises:
        UserError: a similarity is NaN.
    """
    tiles = _Tiles(score, text, video)
    similarity = torch.empty(len(rows), _length(video, "video"))
    for block in _blocks(rows, text_block):
        block_rows = slice(block.start - rows.start, block.stop - rows.start)
        for columns in _blocks(range(similarity.shape[1]), video_block):
            tile = tiles(block, columns)
            similarity = similarity.to(tile.dtype)  # of the first; the same for all others
            similarity[block_rows, columns.start : columns.stop] = tile
    return similarity


def rank_matrix(similarity: Tensor, text_to_video: Tensor, k: int = 10) -> ScoringResult:
    """Rank texts and videos of a similarity matrix that is held as a whole.

    Args:
        similarity: (A, N) of all texts and videos.
        text_to_video: (A,) the video of each text.
        k: best videos kept per text.

    Raises:
        UserError: a similarity is NaN.
    """
    texts, videos = ({"row": torch.arange(size)} for size in similarity.shape)
    return evaluate_scores(
        lambda text, video: similarity[text["row"]][:, video["row"]], texts, videos, text_to_video, k=k
    )


def merge(results: Sequence[ScoringResult]) -> ScoringResult:
    """Join the results of contiguous row shards, given in any order, into the result of their union.

    Raises:
        ValueError: the shards overlap or leave a gap.
    """
    if not results:
        raise ValueError("merge needs at least one result")
    by_text = sorted(results, key=lambda result: (result.text_rows.start, result.text_rows.stop))
    by_video = sorted(results, key=lambda result: (result.video_rows.start, result.video_rows.stop))
    return ScoringResult(
        text_rows=_join_ranges("text_rows", [result.text_rows for result in by_text]),
        video_rows=_join_ranges("video_rows", [result.video_rows for result in by_video]),
        text_to_video=Ranks.concatenate([result.text_to_video for result in by_text]),
        video_to_text=Ranks.concatenate([result.video_to_text for result in by_video]),
        query_videos=torch.cat([result.query_videos for result in by_video]),
        text_matches=_concatenate([result.text_matches for result in by_text]),
        occurrences=torch.stack([result.occurrences for result in results]).sum(0),
    )


class _Tiles:
    """Scores one tile of the similarity matrix at a time, checked, in the precision of its ranks."""

    def __init__(self, score: ScoreFunction, text: Cache, video: Cache) -> None:
        self.score, self.text, self.video = score, text, video

    def __call__(self, rows: range, columns: range) -> Tensor:
        similarity = self.score(_rows(self.text, rows), _rows(self.video, columns))
        if similarity.shape != (len(rows), len(columns)):
            raise ValueError(f"score gave {tuple(similarity.shape)} for {len(rows)} texts and {len(columns)} videos")
        return check_similarity(similarity)


def _rank_texts(
    tiles: _Tiles, text_to_video: Tensor, text_rows: range, videos: int, text_block: int, video_block: int, k: int
) -> tuple[Ranks, Matches, Tensor]:
    """Rank blocks of texts against all videos; the block (text_block, N) is held for its ranks and occurrences."""
    ranks: list[Ranks] = []
    matches: list[Matches] = []
    occurrences = torch.zeros(videos, dtype=torch.float64)
    for rows in _blocks(text_rows, text_block):
        row_block = torch.empty(0)
        best: Matches | None = None
        for columns in _blocks(range(videos), video_block):
            similarity = tiles(rows, columns)
            if columns.start == 0:
                row_block = similarity.new_empty(len(rows), videos)
            row_block[:, columns.start : columns.stop] = similarity
            best = _update_matches(best, similarity, columns, k)
        ranks.append(rank_targets(row_block, text_to_video[rows.start : rows.stop].to(row_block.device)))
        occurrences += expected_occurrences(row_block, k).cpu()
        matches.extend([_to_cpu(best)] if best else [])
    return Ranks.concatenate(ranks), _concatenate(matches, min(k, videos)), occurrences


def _rank_videos(
    tiles: _Tiles, captioned: Tensor, group: Tensor, video_rows: range, text_block: int, video_block: int
) -> Ranks:
    """Rank blocks of videos against all texts; only the best caption per video is held, (video_block, G).

    Args:
        tiles: scores a tile.
        captioned: (G,) the videos with captions.
        group: (A,) the place of each text's video among them.
        video_rows: videos to rank.
        text_block: texts scored at a time.
        video_block: videos scored at a time.
    """
    ranks: list[Ranks] = []
    for columns in _blocks(video_rows, video_block):
        folded = torch.empty(0)
        for rows in _blocks(range(len(group)), text_block):
            similarity = tiles(rows, columns).T
            if rows.start == 0:
                folded = similarity.new_full((len(columns), len(captioned)), -torch.inf)
            fold_captions(folded, similarity, group[rows.start : rows.stop].to(similarity.device))
        targets = ((captioned >= columns.start) & (captioned < columns.stop)).nonzero()[:, 0]
        queries = captioned[targets] - columns.start
        if len(targets):
            ranks.append(rank_targets(folded[queries.to(folded.device)], targets.to(folded.device)))
    return Ranks.concatenate(ranks)


def _length(cache: Cache, name: str) -> int:
    lengths = {key: len(value) for key, value in cache.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"the {name} cache needs tensors of one common leading dimension, not {lengths}")
    return next(iter(lengths.values()))


def _rows(cache: Cache, rows: range) -> Cache:
    return {key: value[rows.start : rows.stop] for key, value in cache.items()}


def _blocks(rows: range, size: int) -> Iterator[range]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _update_matches(best: Matches | None, similarity: Tensor, columns: range, k: int) -> Matches:
    """Merge a tile (q, c) of further candidates into the running best k; earlier candidates win ties."""
    indices = torch.arange(columns.start, columns.stop, device=similarity.device).expand(len(similarity), -1)
    if best is not None:
        similarity = torch.cat([best.scores, similarity], 1)
        indices = torch.cat([best.indices, indices], 1)
    order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :k]  # topk does not order ties
    return Matches(indices.gather(1, order), similarity.gather(1, order))


def _to_cpu(matches: Matches) -> Matches:
    return Matches(matches.indices.cpu(), matches.scores.cpu())


def _concatenate(blocks: Sequence[Matches], width: int = 0) -> Matches:
    if not blocks:
        return Matches(torch.zeros(0, width, dtype=torch.int64), torch.zeros(0, width))
    return Matches(torch.cat([block.indices for block in blocks]), torch.cat([block.scores for block in blocks]))


def _join_ranges(name: str, ranges: Sequence[range]) -> range:
    for before, after in itertools.pairwise(ranges):
        if before.stop != after.start:
            raise ValueError(f"{name} of the shards do not join: {before} is followed by {after}")
    return range(ranges[0].start, ranges[-1].stop)
