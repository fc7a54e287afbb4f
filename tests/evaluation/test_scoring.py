"""Blockwise scoring against the whole matrix."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from glscl.errors import UserError
from glscl.evaluation.ranks import (
    expected_occurrences,
    rank_targets,
    skewness,
    text_to_video_ranks,
    video_to_text_ranks,
)
from glscl.evaluation.scoring import (
    evaluate_scores,
    merge,
    rank_matrix,
    similarity_rows,
    split_rows,
)

torch.set_num_threads(1)


def caches(
    texts: int, videos: int, seed: int = 0
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Small integers: products are exact in any order, so blocks must agree to the bit; there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    text = {"t": torch.randint(-2, 3, (texts, 4), generator=generator).float()}
    video = {"v": torch.randint(-2, 3, (videos, 4), generator=generator).float()}
    return text, video, torch.randint(0, videos, (texts,), generator=generator)


def score(text: dict[str, torch.Tensor], video: dict[str, torch.Tensor]) -> torch.Tensor:
    return text["t"] @ video["v"].T


def assert_same(a: object, b: object) -> None:
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # sums of shares; all else are whole numbers
    elif is_dataclass(a):
        for field in fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    else:
        assert a == b


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 15), st.integers(1, 31), st.integers(1, 16), st.integers(0, 9))
def test_any_block_size_equals_the_whole_matrix(texts: int, videos: int, a: int, b: int, seed: int) -> None:
    text, video, owners = caches(texts, videos, seed)
    result = evaluate_scores(score, text, video, owners, text_block=a, video_block=b, k=5)
    whole = score(text, video)
    assert_same(result.text_to_video, text_to_video_ranks(whole, owners))
    assert_same(result.video_to_text, video_to_text_ranks(whole, owners))
    assert result.query_videos.tolist() == sorted(set(owners.tolist()))
    assert result.text_matches.indices.shape == (texts, min(5, videos))
    assert result.occurrences.tolist() == pytest.approx(expected_occurrences(whole, 5).tolist())
    assert result.hubness_skewness() == pytest.approx(skewness(expected_occurrences(whole, 5)), abs=1e-9)
    by_text = whole.sort(dim=1, descending=True, stable=True)
    assert torch.equal(result.text_matches.indices, by_text.indices[:, :5])
    assert torch.equal(result.text_matches.scores, by_text.values[:, :5])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 270), st.integers(0, 99))
def test_a_matrix_that_is_there_is_ranked_like_its_blocks(texts: int, videos: int, seed: int) -> None:
    text, video, owners = caches(texts, videos, seed)
    assert_same(rank_matrix(score(text, video), owners), evaluate_scores(score, text, video, owners))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(1, 15), st.integers(1, 31), st.integers(1, 16), st.integers(1, 40))
def test_shards_of_the_matrix_join_to_the_whole(texts: int, videos: int, a: int, b: int, shards: int) -> None:
    text, video, _ = caches(texts, videos)
    rows = [
        similarity_rows(score, text, video, split_rows(texts, shard, shards), text_block=a, video_block=b)
        for shard in range(shards)
    ]
    assert torch.equal(torch.cat(rows), score(text, video))


@pytest.mark.parametrize("shards", [2, 3, 40])  # 40: more processes than videos
def test_shards_merge_to_the_whole(shards: int) -> None:
    text, video, owners = caches(50, 20)
    blocks = {"text_block": 7, "video_block": 3}
    whole = evaluate_scores(score, text, video, owners, **blocks)  # type: ignore[arg-type]
    results = [
        evaluate_scores(
            score,
            text,
            video,
            owners,
            text_rows=split_rows(50, shard, shards),
            video_rows=split_rows(20, shard, shards),
            **blocks,  # type: ignore[arg-type]
        )
        for shard in range(shards)
    ]
    assert_same(merge(results[::-1]), whole)
    with pytest.raises(ValueError, match="text_rows of the shards do not join"):
        merge([results[0], results[-1], results[-1]])


def test_split_rows_covers_everything_evenly() -> None:
    for total in (0, 1, 7, 100):
        for parts in (1, 2, 3, 8):
            ranges = [split_rows(total, part, parts) for part in range(parts)]
            assert [i for r in ranges for i in r] == list(range(total))
            assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operation gives."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            # A view of a cache is no new memory.
            if isinstance(value, torch.Tensor) and not value._is_view():
                self.largest = max(self.largest, value.numel())
        return out


def test_memory_follows_the_block_and_not_the_matrix() -> None:
    texts, videos, a, b = 600, 300, 16, 20
    text, video, owners = caches(texts, videos)
    tiles: list[tuple[int, int]] = []

    def spy(text: dict[str, torch.Tensor], video: dict[str, torch.Tensor]) -> torch.Tensor:
        tiles.append((len(text["t"]), len(video["v"])))
        return score(text, video)

    with LargestTensor() as mode:
        evaluate_scores(spy, text, video, owners, text_block=a, video_block=b)
    assert max(rows for rows, _ in tiles) == a
    assert max(columns for _, columns in tiles) == b
    assert max(a, b) * videos >= mode.largest  # one row block or one block of maxima; the matrix is 30 times as much
    assert mode.largest >= a * videos  # the recorder does see the row block
    assert len(tiles) == 2 * -(-texts // a) * -(-videos // b), "once in each direction"


def test_nan_is_refused() -> None:
    text, video, owners = caches(4, 4)
    text["t"][2, 0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        evaluate_scores(score, text, video, owners)
    with pytest.raises(UserError, match="NaN"):
        similarity_rows(score, text, video, range(4))


def test_what_does_not_fit_is_refused() -> None:
    text, video, owners = caches(4, 4)
    with pytest.raises(ValueError, match="score gave"):
        evaluate_scores(lambda t, v: t["t"], text, video, owners, video_block=3)
    with pytest.raises(ValueError, match="common leading dimension"):
        evaluate_scores(score, text | {"x": torch.zeros(3)}, video, owners)
    with pytest.raises(ValueError, match="text_rows must be"):
        evaluate_scores(score, text, video, owners, text_rows=range(2, 9))
    with pytest.raises(ValueError, match="must be positive"):
        evaluate_scores(score, text, video, owners, text_block=0)


def test_scores_in_float64_are_ranked_and_kept_in_float64() -> None:
    near = torch.tensor([[1.0, 1.0 - 1e-12], [1.0 - 1e-12, 1.0]], dtype=torch.float64)
    index = {"row": torch.arange(2)}

    def score(text: dict[str, torch.Tensor], video: dict[str, torch.Tensor]) -> torch.Tensor:
        return near[text["row"]][:, video["row"]]

    result = rank_matrix(near, torch.arange(2))
    assert result.text_to_video.pessimistic.tolist() == result.video_to_text.pessimistic.tolist() == [1, 1]
    assert result.text_matches.scores.dtype == torch.float64
    assert torch.equal(similarity_rows(score, index, index, range(2), text_block=1, video_block=1), near)
    assert similarity_rows(lambda t, v: score(t, v).half(), index, index, range(2)).dtype == torch.float32


def test_ranks_know_their_texts_and_videos() -> None:
    """Rows that start late, an uncaptioned video, and k larger than what there is."""
    text, video, _ = caches(6, 5)
    owners = torch.tensor([0, 0, 2, 3, 3, 4])  # nobody describes video 1
    whole = score(text, video)
    result = evaluate_scores(
        score, text, video, owners, text_rows=range(2, 5), video_rows=range(1, 4), text_block=2, video_block=2, k=9,
    )  # fmt: skip
    assert (result.text_rows, result.video_rows) == (range(2, 5), range(1, 4))
    assert_same(result.text_to_video, rank_targets(whole[2:5], owners[2:5]))
    assert result.query_videos.tolist() == [2, 3]
    every = video_to_text_ranks(whole, owners)
    assert result.video_to_text.optimistic.tolist() == every.optimistic[1:3].tolist()
    assert result.text_matches.indices.shape == (3, 5)
    assert result.occurrences.tolist() == [3.0] * 5
    without = evaluate_scores(score, text, video, owners, text_rows=range(0), video_rows=range(0))
    assert (len(without.text_to_video), len(without.query_videos)) == (0, 0)
    assert without.text_matches.indices.shape == (0, 5)


def test_one_result_merges_to_itself() -> None:
    text, video, owners = caches(6, 5)
    with pytest.raises(ValueError, match="at least one"):
        merge([])
    whole = evaluate_scores(score, text, video, owners)
    assert_same(merge([whole]), whole)


@pytest.mark.parametrize("wrong", [{"text_block": 0}, {"video_block": 0}, {"k": 0}])
def test_blocks_and_k_are_positive(wrong: dict[str, int]) -> None:
    text, video, owners = caches(4, 4)
    with pytest.raises(ValueError, match="must be positive"):
        evaluate_scores(score, text, video, owners, **wrong)  # type: ignore[arg-type]
    one = dict.fromkeys(wrong, 1)
    assert len(evaluate_scores(score, text, video, owners, **one).text_to_video) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [range(0, 4, 2), range(-1, 3), range(1, 5)])
def test_rows_are_a_part_of_what_there_is(rows: range) -> None:
    text, video, owners = caches(4, 4)
    for name in ("text_rows", "video_rows"):
        with pytest.raises(ValueError, match=f"{name} must be a contiguous part of range"):
            evaluate_scores(score, text, video, owners, **{name: rows})  # type: ignore[arg-type]


def test_no_rows_have_the_shape_of_none() -> None:
    text, video, owners = caches(6, 5)
    assert similarity_rows(score, text, video, range(0)).shape == (0, 5)
    nothing = evaluate_scores(score, text, video, owners, text_rows=range(0), k=3)
    assert nothing.text_matches.scores.shape == nothing.text_matches.indices.shape == (0, 3)
    assert nothing.occurrences.tolist() == [0.0] * 5
