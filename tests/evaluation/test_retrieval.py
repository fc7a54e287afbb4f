"""Numbers of a set from its embeddings, against ranks counted one by one; the same however the rows are shared."""

from __future__ import annotations

import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.evaluation.embed import Embeddings, RowShard, measure, score_rows
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.scoring import merge

VIDEOS = 13
CPU = torch.device("cpu")


def score(text: dict[str, Tensor], video: dict[str, Tensor]) -> Tensor:
    return text["t"] @ video["v"].T


@pytest.fixture
def embeddings() -> Embeddings:
    """One to three captions per video, near their video, with a tie: two videos are the same."""
    generator = torch.Generator().manual_seed(0)
    video = F.normalize(torch.randn(VIDEOS, 6, generator=generator), dim=-1)
    video[4] = video[9]
    owners = torch.tensor([row for row in range(VIDEOS) for _ in range(row % 3 + 1)])
    text = F.normalize(video[owners] + 0.6 * torch.randn(len(owners), 6, generator=generator), dim=-1)
    names = [f"v{row}" for row in range(VIDEOS)]
    return Embeddings({"t": text}, {"v": video}, owners, [*range(VIDEOS)], names, ["x"] * len(owners), [], 0, [])


def _rank(scores: list[float], right: int) -> float:
    others = [value for index, value in enumerate(scores) if index != right]
    return 1 + sum(value > scores[right] for value in others) + 0.5 * sum(value == scores[right] for value in others)


def _ranks(embeddings: Embeddings) -> tuple[list[float], list[float]]:
    """Counted from the whole matrix: every text among videos, every video among videos' best captions."""
    matrix = score(embeddings.text, embeddings.video)
    owners = embeddings.text_to_video.tolist()
    best = torch.stack([matrix[embeddings.text_to_video == row].max(0).values for row in range(VIDEOS)])
    by_text = [_rank(row, right) for row, right in zip(matrix.tolist(), owners, strict=True)]
    return by_text, [_rank(best[:, row].tolist(), row) for row in range(VIDEOS)]


@pytest.mark.parametrize(("parts", "block"), [(1, 256), (2, 4), (3, 1), (40, 5)])
def test_metrics(parts: int, block: int, embeddings: Embeddings) -> None:
    config = EvaluationConfig(text_block=block, video_block=block)
    results = [score_rows(score, embeddings, config, RowShard(index, parts), CPU) for index in range(parts)]
    metrics = measure(merge(results))
    assert sorted(metrics) == ["text_to_video", "video_to_text"]
    for direction, ranks in zip(("text_to_video", "video_to_text"), _ranks(embeddings), strict=True):
        assert 1 < statistics.mean(ranks) < VIDEOS / 2
        assert metrics[direction]["queries"] == len(ranks)
        assert metrics[direction]["MnR"] == pytest.approx(statistics.mean(ranks))
        assert metrics[direction]["MdR"] == pytest.approx(statistics.median(ranks))
    by_text, _ = _ranks(embeddings)
    clear = [rank for rank in by_text if rank == int(rank)]
    assert len(clear) < len(by_text), "the tie is there"
    for k in (5, 10):
        bounds = [100 * sum(rank + shift <= k for rank in by_text) / len(by_text) for shift in (0.5, -0.5)]
        assert bounds[0] <= metrics["text_to_video"][f"R@{k}"] <= bounds[1]


def test_the_right_order_is_perfect(embeddings: Embeddings) -> None:
    embeddings.video["v"] = torch.eye(VIDEOS)
    embeddings.text["t"] = torch.eye(VIDEOS)[embeddings.text_to_video]
    metrics = measure(score_rows(score, embeddings, EvaluationConfig(), RowShard(0, 1), CPU))
    for direction in metrics.values():
        assert (direction["R@1"], direction["MdR"], direction["MnR"]) == (100.0, 1.0, 1.0)
