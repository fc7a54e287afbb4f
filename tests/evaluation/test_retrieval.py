"""Numbers of a set from its embeddings, against ranks counted one by one; the same however the rows are shared."""

from __future__ import annotations

import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.evaluation.caches import Caches, PairCaches
from glscl.evaluation.embed import RowShard, measure, own_scores_of_rows, rank_rows
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.scoring import ScoringResult, merge

VIDEOS = 13
CPU = torch.device("cpu")


def score(text: dict[str, Tensor], video: dict[str, Tensor]) -> Tensor:
    return text["t"] @ video["v"].T


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, list[int]]:
    """One to three captions per video, near their video, with a tie: two videos are the same."""
    generator = torch.Generator().manual_seed(0)
    video = F.normalize(torch.randn(VIDEOS, 6, generator=generator), dim=-1)
    video[4] = video[9]
    owners = torch.tensor([row for row in range(VIDEOS) for _ in range(row % 3 + 1)])
    text = F.normalize(video[owners] + 0.6 * torch.randn(len(owners), 6, generator=generator), dim=-1)
    return text, video, owners.tolist()


def _rank_all(text: Tensor, video: Tensor, owners: list[int], config: EvaluationConfig, parts: int) -> ScoringResult:
    """In that many shards, from caches in two pieces each."""
    halves = [Caches.join([Caches.of({key: half}) for half in t.split(7)]) for key, t in (("t", text), ("v", video))]
    caches = PairCaches(*halves, tuple(owners.count(row) for row in range(VIDEOS)))
    shards = [RowShard(index, parts) for index in range(parts)]
    own = torch.stack([own_scores_of_rows(score, caches, config, shard, CPU) for shard in shards]).amax(0)
    return merge([rank_rows(score, caches, config, shard, CPU, own) for shard in shards], caches.text_to_video)


def _rank(scores: list[float], right: int) -> float:
    others = [value for index, value in enumerate(scores) if index != right]
    return 1 + sum(value > scores[right] for value in others) + 0.5 * sum(value == scores[right] for value in others)


def _ranks(text: Tensor, video: Tensor, owners: list[int]) -> tuple[list[float], list[float]]:
    """Counted from the whole matrix: every text among videos, every video among videos' best captions."""
    matrix = text @ video.T
    best = torch.stack([matrix[torch.tensor(owners) == row].max(0).values for row in range(VIDEOS)])
    by_text = [_rank(row, right) for row, right in zip(matrix.tolist(), owners, strict=True)]
    return by_text, [_rank(best[:, row].tolist(), row) for row in range(VIDEOS)]


@pytest.mark.parametrize(("parts", "block"), [(1, 256), (2, 4), (3, 1), (40, 5)])
def test_metrics(parts: int, block: int, tensors: tuple[Tensor, Tensor, list[int]]) -> None:
    config = EvaluationConfig(text_block=block, video_block=block)
    metrics = measure(_rank_all(*tensors, config, parts))
    assert sorted(metrics) == ["text_to_video", "video_to_text"]
    by_text, by_video = _ranks(*tensors)
    for direction, ranks in (("text_to_video", by_text), ("video_to_text", by_video)):
        assert 1 < statistics.mean(ranks) < VIDEOS / 2
        assert metrics[direction]["queries"] == len(ranks)
        assert metrics[direction]["MnR"] == pytest.approx(statistics.mean(ranks))
        assert metrics[direction]["MdR"] == pytest.approx(statistics.median(ranks))
    clear = [rank for rank in by_text if rank == int(rank)]
    assert len(clear) < len(by_text), "the tie is there"
    for k in (5, 10):
        bounds = [100 * sum(rank + shift <= k for rank in by_text) / len(by_text) for shift in (0.5, -0.5)]
        assert bounds[0] <= metrics["text_to_video"][f"R@{k}"] <= bounds[1]


def test_the_right_order_is_perfect(tensors: tuple[Tensor, Tensor, list[int]]) -> None:
    owners = tensors[2]
    metrics = measure(_rank_all(torch.eye(VIDEOS)[owners], torch.eye(VIDEOS), owners, EvaluationConfig(), 1))
    for direction in metrics.values():
        assert (direction["R@1"], direction["MdR"], direction["MnR"]) == (100.0, 1.0, 1.0)
