"""Embeddings of one shard set to ranks and metrics: what each process does for its row shard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glscl.evaluation.embed import Embeddings
from glscl.evaluation.metrics import Direction, RetrievalMetrics
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.results import Metrics
from glscl.evaluation.scoring import ScoringResult, evaluate_scores, similarity_rows, split_rows

Score = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class RowShard:
    """The rows that one of several processes works on: range ``index`` of ``count``."""

    index: int
    count: int

    def rows(self, total: int) -> range:
        """Its rows of ``total``."""
        return split_rows(total, self.index, self.count)


def score_rows(
    score: Score, embeddings: Embeddings, config: EvaluationConfig, shard: RowShard, device: torch.device
) -> ScoringResult:
    """Rank this shard's texts among all videos and this shard's videos among all texts."""
    return evaluate_scores(
        _on_device(score, device),
        embeddings.text,
        embeddings.video,
        embeddings.text_to_video,
        text_block=config.text_block,
        video_block=config.video_block,
        text_rows=shard.rows(len(embeddings.captions)),
        video_rows=shard.rows(len(embeddings.video_ids)),
    )


def similarity_of_rows(
    score: Score, texts: Embeddings, videos: Embeddings, config: EvaluationConfig, shard: RowShard, device: torch.device
) -> Tensor:
    """Similarities (a, N) of this shard's texts of one set with all N videos of the same or another set."""
    return similarity_rows(
        _on_device(score, device),
        texts.text,
        videos.video,
        shard.rows(len(texts.captions)),
        text_block=config.text_block,
        video_block=config.video_block,
    )


def _on_device(score: Score, device: torch.device) -> Score:
    """``score`` of caches that lie on the CPU."""

    def on_device(text: dict[str, Tensor], video: dict[str, Tensor]) -> Tensor:
        text, video = (
            {key: value.to(device, non_blocking=True) for key, value in side.items()} for side in (text, video)
        )
        return score(text, video)

    return on_device


def measure(result: ScoringResult) -> dict[Direction, Metrics]:
    """Both directions' metrics of a merged result."""
    return {
        "text_to_video": RetrievalMetrics.from_ranks(result.text_to_video).to_dict(),
        "video_to_text": RetrievalMetrics.from_ranks(result.video_to_text).to_dict(),
    }
