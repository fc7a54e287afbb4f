"""Ranks and metrics against an independent, slow reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.errors import UserError
from glscl.evaluation.metrics import (
    Ranks,
    RetrievalMetrics,
    hubness_skewness,
    text_to_video_ranks,
    video_to_text_ranks,
)

torch.set_num_threads(1)

Rank = Callable[[torch.Tensor, torch.Tensor], Ranks]


@st.composite
def tied_matrices(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities with many ties, duplicate rows, several captions per video and videos without captions."""
    videos = draw(st.integers(1, 7))
    texts = draw(st.integers(1, 12))
    levels = draw(st.integers(0, 4))
    value = st.integers(-levels, levels).map(lambda v: v / 3)
    rows = [draw(st.lists(value, min_size=videos, max_size=videos)) for _ in range(texts)]
    for _ in range(draw(st.integers(0, 3))):  # duplicate captions
        rows[draw(st.integers(0, texts - 1))] = list(rows[draw(st.integers(0, texts - 1))])
    owners = draw(st.lists(st.integers(0, videos - 1), min_size=texts, max_size=texts))
    return torch.tensor(rows), torch.tensor(owners)


def reference_rank(scores: list[float], right: int) -> tuple[float, int, int]:
    greater = sum(s > scores[right] for s in scores)
    equal = sum(s == scores[right] for i, s in enumerate(scores) if i != right)
    return 1 + greater + equal / 2, 1 + greater, 1 + greater + equal


@settings(max_examples=1000, deadline=None)
@given(tied_matrices())
def test_ranks_match_brute_force(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    similarity, owners = case
    matrix, owner = similarity.tolist(), owners.tolist()
    expected = [reference_rank(row, owner[a]) for a, row in enumerate(matrix)]
    ranks = text_to_video_ranks(similarity, owners)
    assert list(zip(ranks.mid.tolist(), ranks.optimistic.tolist(), ranks.pessimistic.tolist(), strict=True)) == expected

    captioned = sorted(set(owner))
    expected = []
    for place, i in enumerate(captioned):
        best = [max(matrix[a][i] for a in range(len(owner)) if owner[a] == j) for j in captioned]
        expected.append(reference_rank(best, place))
    ranks = video_to_text_ranks(similarity, owners)
    assert list(zip(ranks.mid.tolist(), ranks.optimistic.tolist(), ranks.pessimistic.tolist(), strict=True)) == expected


@pytest.mark.parametrize("rank", [text_to_video_ranks, video_to_text_ranks])
@settings(max_examples=1000, deadline=None)
@given(case=tied_matrices())
def test_metrics_match_brute_force(rank: Rank, case: tuple[torch.Tensor, torch.Tensor]) -> None:
    ranks = rank(*case)
    mid = sorted(ranks.mid.tolist())
    n = len(mid)
    expected = {f"R@{k}": 100 * sum(r <= k for r in mid) / n for k in (1, 5, 10, 50)}
    expected |= {"MdR": (mid[(n - 1) // 2] + mid[n // 2]) / 2, "MnR": math.fsum(mid) / n, "queries": n}
    expected["R@1_optimistic"] = 100 * sum(r == 1 for r in ranks.optimistic.tolist()) / n
    expected["R@1_pessimistic"] = 100 * sum(r == 1 for r in ranks.pessimistic.tolist()) / n
    metrics = RetrievalMetrics.from_ranks(ranks).to_dict()
    assert metrics == pytest.approx(expected)
    assert metrics["R@1_pessimistic"] <= metrics["R@1"] <= metrics["R@1_optimistic"]


def test_single_caption_reduces_to_the_diagonal() -> None:
    similarity = torch.randn(40, 40, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    video_order = torch.arange(40)
    by_text = video_to_text_ranks(similarity, video_order).mid
    by_transpose = text_to_video_ranks(similarity.T, video_order).mid
    assert torch.equal(by_text, by_transpose)


def test_constant_matrix_has_the_mean_rank_and_one_rank_per_query() -> None:
    similarity, owners = torch.full((50, 50), 0.25), torch.arange(50)
    for ranks in (text_to_video_ranks(similarity, owners), video_to_text_ranks(similarity, owners)):
        assert ranks.mid.tolist() == [25.5] * 50
        metrics = RetrievalMetrics.from_ranks(ranks)
        assert (metrics.queries, metrics.median_rank, metrics.recall_at_1) == (50, 25.5, 0.0)
        assert (metrics.recall_at_1_optimistic, metrics.recall_at_1_pessimistic) == (100.0, 0.0)


def test_multi_caption_video_is_found_by_its_best_caption() -> None:
    # Video 0 has a bad caption and a good one; the good one decides.
    similarity = torch.tensor([[0.1, 0.0], [0.9, 0.0], [0.5, 0.6]])
    assert video_to_text_ranks(similarity, torch.tensor([0, 0, 1])).mid.tolist() == [1.0, 1.0]


def test_half_precision_is_ranked_as_stored() -> None:
    similarity = torch.tensor([[1.0, 1.001]], dtype=torch.bfloat16)  # equal in bfloat16
    assert text_to_video_ranks(similarity, torch.tensor([0])).mid.tolist() == [1.5]


@pytest.mark.parametrize("rank", [text_to_video_ranks, video_to_text_ranks])
def test_nan_is_refused(rank: Rank) -> None:
    similarity = torch.eye(3)
    similarity[0, 2] = torch.nan
    with pytest.raises(UserError, match="1 of 9 similarities are NaN"):
        rank(similarity, torch.arange(3))


@pytest.mark.parametrize("owners", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0]), torch.zeros(2)])
def test_text_to_video_must_fit(owners: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="text_to_video must"):
        text_to_video_ranks(torch.zeros(2, 3), owners)


def test_no_queries_is_an_error() -> None:
    with pytest.raises(ValueError, match="no queries"):
        RetrievalMetrics.from_ranks(Ranks.concatenate([]))


def test_hubness_skewness() -> None:
    assert hubness_skewness(torch.arange(6).reshape(6, 1), 6) == 0.0
    # One hub holds all 4 occurrences among 4 videos: counts (4, 0, 0, 0), skewness 2 / sqrt(3).
    assert hubness_skewness(torch.zeros(4, 1, dtype=torch.int64), 4) == pytest.approx(2 / math.sqrt(3))
