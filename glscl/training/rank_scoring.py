"""Ranks of a held-out set whose embeddings stay in the training workers that made them.

Every rank has some videos and their captions. It ranks its own texts; the videos of all ranks go round, one block at a
time, broadcast by the rank that has them. Texts do not travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from glscl.evaluation.caches import Cache, Caches, Layout, PairCaches
from glscl.evaluation.embed import make_scorer
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.ranks import Ranks
from glscl.evaluation.scoring import own_scores, rank_texts, video_ranks
from glscl.evaluation.similarity import ScoreFunction
from glscl.training.collectives import max_over_ranks, rank, sum_over_ranks


@dataclass(frozen=True, slots=True)
class RankShare:
    """What every rank must know of the caches that one rank has."""

    captions: tuple[int, ...]  # of each of its videos
    layout: Layout  # of its videos; of no tensors where it has none

    @classmethod
    def of(cls, caches: PairCaches) -> RankShare:
        """Describe this rank's caches."""
        return cls(caches.captions, caches.video.layout)


@dataclass(frozen=True, slots=True)
class RankPiece:
    """Caches that one rank has. Reading is collective: all ranks read the same rows at the same time."""

    rank: int
    rows: int
    layout: Layout
    own: Caches | None  # on that rank

    def __len__(self) -> int:
        return self.rows

    def read(self, rows: range, device: torch.device) -> Cache:
        """The rows, on the device."""
        cache = self.layout.empty(len(rows), device) if self.own is None else self.own.read(rows, device)
        for name, _, _ in self.layout.tensors:
            sent = cache[name].contiguous()
            dist.broadcast(sent.unsqueeze(1).flatten(1).view(torch.uint8), self.rank)  # not every backend has all types
            cache[name] = sent
        return cache


def rank_over_ranks(
    score: ScoreFunction,
    caches: PairCaches,
    shares: Sequence[RankShare],
    config: EvaluationConfig,
    device: torch.device,
) -> tuple[Ranks, Ranks]:
    """Rank all texts and all captioned videos (collective), in the order of ranks; the same everywhere.

    Args:
        score: similarity of a block of texts and a block of videos on the device.
        caches: this rank's.
        shares: of all ranks.
        config: blocks and memory.
        device: of the computation, and of the collectives.

    Raises:
        UserError: a similarity is NaN.
    """
    captions = torch.tensor([count for share in shares for count in share.captions], dtype=torch.int64)
    before = shares[: rank()]
    first_video = sum(len(share.captions) for share in before)
    first_text = sum(sum(share.captions) for share in before)
    texts = range(len(caches.text))
    mine = slice(first_video, first_video + len(caches.video))

    scorer = make_scorer(score, caches.text, _videos_of_all(caches, shares), config, device)
    blocks = {"text_block": scorer.texts_at_once, "video_block": scorer.videos_at_once}  # the same tiles
    local = make_scorer(score, caches.text, caches.video, config.model_copy(update=blocks), device)
    own = torch.full((len(captions),), -torch.inf, device=device)
    own[mine] = own_scores(local, texts, caches.text_to_video)
    visits = max_over_ranks(torch.tensor(len(scorer.groups(texts)), device=device))
    ranked = rank_texts(scorer, texts, caches.text_to_video + first_video, max_over_ranks(own), k=0, visits=int(visits))
    by_text = torch.zeros(2, int(captions.sum()), dtype=torch.int64)
    by_text[:, first_text : first_text + len(texts)] = torch.stack([ranked.ranks.optimistic, ranked.ranks.pessimistic])
    by_text = sum_over_ranks(by_text.to(device)).cpu()
    by_video = sum_over_ranks(torch.stack([ranked.nearer, ranked.as_near]).to(device)).cpu()
    return Ranks(by_text[0], by_text[1]), video_ranks(by_video[0], by_video[1], captions.nonzero()[:, 0])


def _videos_of_all(caches: PairCaches, shares: Sequence[RankShare]) -> Caches:
    """The videos of all ranks, which any of them may read together."""
    if len(shares) == 1:
        return caches.video
    pieces = tuple(
        RankPiece(number, len(share.captions), share.layout, caches.video if number == rank() else None)
        for number, share in enumerate(shares)
        if share.captions
    )
    return Caches(pieces, apart=True)
