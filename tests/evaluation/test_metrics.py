"""Ranks and metrics against an independent, slow reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.errors import UserError
from glscl.evaluation.metrics import METRICS, measure_ranks
from glscl.evaluation.ranks import (
    Ranks,
    check_similarity,
    check_text_to_video,
    expected_occurrences,
    skewness,
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
    spans = [range(a, b + 1) for a, b in zip(ranks.optimistic.tolist(), ranks.pessimistic.tolist(), strict=True)]
    expected = {
        f"R@{k}": 100 * sum(sum(r <= k for r in span) / len(span) for span in spans) / n for k in (1, 5, 10, 50)
    }
    expected |= {"MdR": (mid[(n - 1) // 2] + mid[n // 2]) / 2, "MnR": math.fsum(mid) / n, "queries": n}
    expected["MRR"] = 100 * sum(sum(1 / r for r in span) / len(span) for span in spans) / n
    expected["nDCG@10"] = 100 * sum(sum(1 / math.log2(1 + r) for r in s if r <= 10) / len(s) for s in spans) / n
    expected["R@1_optimistic"] = 100 * sum(r == 1 for r in ranks.optimistic.tolist()) / n
    expected["R@1_pessimistic"] = 100 * sum(r == 1 for r in ranks.pessimistic.tolist()) / n
    metrics = measure_ranks(ranks)
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
        metrics = measure_ranks(ranks)
        assert (metrics["queries"], metrics["MdR"], metrics["R@1"]) == (50, 25.5, pytest.approx(2.0))
        assert (metrics["R@1_optimistic"], metrics["R@1_pessimistic"]) == (100.0, 0.0)


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
        measure_ranks(Ranks.concatenate([]))


def test_skewness() -> None:
    assert skewness(torch.full((6,), 1 / 3)) == 0.0
    # One hub holds all 4 occurrences among 4 videos: counts (4, 0, 0, 0), skewness 2 / sqrt(3).
    assert skewness(torch.tensor([4, 0, 0, 0])) == pytest.approx(2 / math.sqrt(3))
    assert skewness(torch.tensor([0.0, 1e-6, 1e-6, 1e-6])) == pytest.approx(-2 / math.sqrt(3))


def test_occurrences_share_the_last_place() -> None:
    similarity = torch.tensor([[3.0, 2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    assert expected_occurrences(similarity[:1], 2).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert expected_occurrences(similarity, 2).tolist() == [1.5, 1.0, 2.0, 1.5]
    assert expected_occurrences(similarity, 4).tolist() == expected_occurrences(similarity, 9).tolist() == [3.0] * 4


def _recalls(similarity: torch.Tensor, owners: torch.Tensor) -> list[dict[str, float]]:
    both = text_to_video_ranks(similarity, owners), video_to_text_ranks(similarity, owners)
    return [measure_ranks(ranks) for ranks in both]


def test_recall_is_the_expectation_over_breaking_ties() -> None:
    """One duplicated pair of 100 is found in half of the ways to break its tie, each of its two queries."""
    pair = torch.eye(100)
    pair[0, 1] = pair[1, 0] = 1.0
    for metrics in _recalls(pair, torch.arange(100)):
        assert metrics["R@1"] == 99.0
        assert (metrics["R@1_pessimistic"], metrics["R@1_optimistic"], metrics["R@5"]) == (98.0, 100.0, 100.0)
        assert (metrics["MnR"], metrics["MdR"]) == (1.01, 1.0)
    for metrics in _recalls(torch.zeros(60, 60), torch.arange(60)):
        recalls = [metrics[f"R@{k}"] for k in (1, 5, 10, 50)]
        assert recalls == pytest.approx([100 * k / 60 for k in (1, 5, 10, 50)])
        assert (metrics["MnR"], metrics["MdR"]) == (30.5, 30.5)


def test_one_caption_of_several_videos_and_several_captions_of_one() -> None:
    # Texts 0 and 1 say the same of videos 0 and 1; video 2 has two captions that say the same.
    similarity = torch.tensor([[5.0, 5.0, 0.0], [5.0, 5.0, 0.0], [0.0, 0.0, 4.0], [0.0, 0.0, 4.0]])
    forward, backward = _recalls(similarity, torch.tensor([0, 1, 2, 2]))
    assert (forward["R@1"], forward["MnR"]) == (75.0, 1.25)
    assert (backward["R@1"], backward["queries"]) == (
        pytest.approx(200 / 3),
        3,
    )  # its captions do not tie with another's


def test_a_right_answer_below_others_shares_what_is_left_of_the_places() -> None:
    ranks = Ranks(torch.tensor([4, 4, 6, 5]), torch.tensor([6, 4, 9, 5]))
    assert ranks.tied.tolist() == [3, 1, 4, 1]
    assert ranks.within(5).tolist() == pytest.approx([2 / 3, 1, 0, 1])
    assert ranks.within(3).tolist() == [0, 0, 0, 0]


def test_float64_is_ranked_in_float64() -> None:
    near = torch.tensor([[1.0, 1.0 - 1e-12], [1.0 - 1e-12, 1.0]], dtype=torch.float64)
    assert [metrics["R@1"] for metrics in _recalls(near, torch.arange(2))] == [100.0, 100.0]
    assert [metrics["R@1"] for metrics in _recalls(near.float(), torch.arange(2))] == [50.0, 50.0]
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    assert [check_similarity(near.to(dtype)).dtype for dtype in dtypes] == [torch.float64, *[torch.float32] * 3]


def test_owners_are_returned_as_int64_and_may_be_none() -> None:
    assert check_text_to_video(torch.tensor([1, 0], dtype=torch.int32), 2, 2).dtype == torch.int64
    assert check_text_to_video(torch.zeros(0, dtype=torch.int64), 0, 0).shape == (0,)
    with pytest.raises(ValueError, match=r"in \[0, 3\), not \[0, 3\]"):
        check_text_to_video(torch.tensor([0, 3]), 2, 3)
    with pytest.raises(ValueError, match=r"\(2,\) integers, not \(1,\) torch.int64"):
        check_text_to_video(torch.tensor([0]), 2, 3)
    with pytest.raises(ValueError, match=r"not \(2,\) torch.float32"):
        check_text_to_video(torch.zeros(2), 2, 3)


def test_blocks_of_ranks_join_in_their_order() -> None:
    one, two = Ranks(torch.tensor([1]), torch.tensor([2])), Ranks(torch.tensor([3, 4]), torch.tensor([5, 6]))
    joined = Ranks.concatenate([one, two])
    assert (joined.optimistic.tolist(), joined.pessimistic.tolist(), len(joined)) == ([1, 3, 4], [2, 5, 6], 3)
    assert Ranks.concatenate([]).pessimistic.dtype == torch.int64


def test_units_and_bounds_of_metrics() -> None:
    assert (METRICS["R@1"].unit, METRICS["R@1"].bounds) == ("points", (0.0, 100.0))
    assert (METRICS["MnR"].unit, METRICS["MnR"].bounds) == ("ranks", (1.0, math.inf))
