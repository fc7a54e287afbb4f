"""Exact retrieval numbers of one shard set from its embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glscl.evaluation.embed import Embeddings
from glscl.evaluation.metrics import RetrievalMetrics
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.scoring import ScoringResult, evaluate_scores, similarity_rows, split_rows

Score = Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """Which share of the rows this process scores: ``index`` of ``count``."""

    index: int
    count: int


def score_part(
    score: Score, embeddings: Embeddings, config: EvaluationConfig, part: Part, device: torch.device
) -> ScoringResult:
    """Rank this part's texts among all videos and this part's videos among all texts."""
    return evaluate_scores(
        _on_device(score, device),
        embeddings.text,
        embeddings.video,
        embeddings.text_to_video,
        text_block=config.text_block,
        video_block=config.video_block,
        text_rows=split_rows(len(embeddings.captions), part.index, part.count),
        video_rows=split_rows(len(embeddings.video_ids), part.index, part.count),
    )


def similarity_part(
    score: Score, texts: Embeddings, videos: Embeddings, config: EvaluationConfig, part: Part, device: torch.device
) -> Tensor:
    """Similarities (a, N) of this part's texts of one set with all N videos of the same or another set."""
    return similarity_rows(
        _on_device(score, device),
        texts.text,
        videos.video,
        split_rows(len(texts.captions), part.index, part.count),
        text_block=config.text_block,
        video_block=config.video_block,
    )


def _on_device(score: Score, device: torch.device) -> Score:
    """``score`` of caches that lie on the CPU."""

    def on_device(text: dict[str, Tensor], video: dict[str, Tensor]) -> Tensor:
        move = [{key: value.to(device, non_blocking=True) for key, value in side.items()} for side in (text, video)]
        return score(move[0], move[1])

    return on_device


def metrics_of(result: ScoringResult) -> dict[str, dict[str, float | int]]:
    """Both directions' metrics of a merged result."""
    return {
        "text_to_video": RetrievalMetrics.from_ranks(result.text_to_video).to_dict(),
        "video_to_text": RetrievalMetrics.from_ranks(result.video_to_text).to_dict(),
    }
