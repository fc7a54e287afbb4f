"""Blockwise scoring against the whole matrix."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from glscl.errors import UserError
from glscl.evaluation.caches import Cache, Caches, Layout, LocalPiece, PairCaches, Piece, join_batches
from glscl.evaluation.cost import PeakMemory
from glscl.evaluation.matches import best_matches
from glscl.evaluation.ranks import (
    expected_occurrences,
    rank_targets,
    skewness,
    text_to_video_ranks,
    video_to_text_ranks,
)
from glscl.evaluation.scoring import (
    RankedTexts,
    evaluate_scores,
    merge,
    own_scores,
    rank_matrix,
    rank_texts,
    split_rows,
    split_texts,
)
from glscl.evaluation.similarity import Scorer, similarity_rows
from glscl.models.heads import build_head, head_class

torch.set_num_threads(1)
CPU = torch.device("cpu")


def caches(
    texts: int, videos: int, seed: int = 0
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Small integers: products are exact in any order, so blocks must agree to the bit; there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    text = {"t": torch.randint(-2, 3, (texts, 4), generator=generator).float()}
    video = {"v": torch.randint(-2, 3, (videos, 4), generator=generator).float()}
    return text, video, torch.randint(0, videos, (texts,), generator=generator).sort().values


def scorer(text: Cache, video: Cache, a: int = 256, b: int = 256, memory: int = 1 << 30, pieces: int = 1) -> Scorer:
    """In so many pieces per side."""
    sides = []
    for cache in (text, video):
        cuts = zip(*(tensor.tensor_split(pieces) for tensor in cache.values()), strict=True)
        sides.append(Caches.join([Caches.of(dict(zip(cache, rows, strict=True))) for rows in cuts]))
    return Scorer(score, *sides, CPU, a, b, memory)


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
@given(
    st.integers(1, 30),
    st.integers(1, 15),
    st.integers(1, 31),
    st.integers(1, 16),
    st.sampled_from([1, 400, 4000, 1 << 30]),
    st.integers(0, 9),
)
def test_any_block_size_and_memory_equal_the_whole_matrix(
    texts: int, videos: int, a: int, b: int, memory: int, seed: int
) -> None:
    text, video, owners = caches(texts, videos, seed)
    result = evaluate_scores(score, text, video, owners, text_block=a, video_block=b, memory=memory, k=5)
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
        similarity_rows(scorer(text, video, a, b, 300 * shards, pieces=shards), split_rows(texts, shard, shards))
        for shard in range(shards)
    ]
    assert torch.equal(torch.cat(rows), score(text, video))


def rank_shards(scorer: Scorer, owners: torch.Tensor, shards: int) -> list[RankedTexts]:
    texts = [split_texts(owners, shard, shards) for shard in range(shards)]
    own = torch.stack([own_scores(scorer, rows, owners) for rows in texts]).amax(0)
    return [rank_texts(scorer, rows, owners, own) for rows in texts]


@pytest.mark.parametrize("shards", [2, 3, 40])  # 40: more processes than videos
def test_shards_merge_to_the_whole(shards: int) -> None:
    text, video, owners = caches(50, 20)
    whole = evaluate_scores(score, text, video, owners, text_block=7, video_block=3)
    for pieces in (1, shards):
        results = rank_shards(scorer(text, video, 7, 3, 1000, pieces), owners, shards)
        assert_same(merge(results[::-1], owners), whole)
    with pytest.raises(ValueError, match="rows of the shards do not join"):
        merge([results[0], results[-1], results[-1]], owners)
    with pytest.raises(ValueError, match="rows of the shards do not join"):
        merge(results[:-1], owners)


def test_split_texts_parts_no_video() -> None:
    _, _, owners = caches(50, 12)
    for shards in (1, 2, 3, 40):
        parts = [split_texts(owners, shard, shards) for shard in range(shards)]
        assert [row for part in parts for row in part] == list(range(50))
        assert len({int(owners[row]) for part in parts for row in part[:1]}) == sum(map(bool, parts))
        if shards < 4:
            assert all(abs(len(part) - 50 / shards) <= 2 * owners.bincount().max() for part in parts)
    assert split_texts(torch.zeros(0, dtype=torch.int64), 0, 2) == range(0)


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
        evaluate_scores(spy, text, video, owners, text_block=a, video_block=b, memory=2 * 12 * a * videos)
    assert max(rows for rows, _ in tiles) == a
    assert max(columns for _, columns in tiles) == b
    assert 3 * a * videos >= mode.largest  # one group of texts; the matrix is 12 times as much
    assert mode.largest >= a * videos  # the recorder does see the row block
    again = len(tiles) - -(-texts // a) * -(-videos // b)
    assert 0 < again <= -(-texts // a) + -(-videos // b), "once, and for each video's own captions before"


def test_nan_is_refused() -> None:
    text, video, owners = caches(4, 4)
    text["t"][2, 0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        evaluate_scores(score, text, video, owners)
    with pytest.raises(UserError, match="NaN"):
        similarity_rows(scorer(text, video), range(4))


def test_what_does_not_fit_is_refused() -> None:
    text, video, owners = caches(4, 4)
    with pytest.raises(ValueError, match="score gave"):
        evaluate_scores(lambda t, v: t["t"], text, video, owners, video_block=3)
    with pytest.raises(ValueError, match="common leading dimension"):
        evaluate_scores(score, text | {"x": torch.zeros(3)}, video, owners)
    with pytest.raises(ValueError, match="must not decrease"):
        evaluate_scores(score, text, video, torch.tensor([0, 1, 1, 0]))
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
    single = Scorer(score, Caches.of(index), Caches.of(index), CPU, 1, 1)
    assert torch.equal(similarity_rows(single, range(2)), near)
    half = replace(single, score=lambda t, v: score(t, v).half())
    assert similarity_rows(half, range(2)).dtype == torch.float32


def test_ranks_know_their_texts_and_videos() -> None:
    """Rows that start late, an uncaptioned video, and k larger than what there is."""
    text, video, _ = caches(6, 5)
    owners = torch.tensor([0, 0, 2, 3, 3, 4])  # nobody describes video 1
    whole = score(text, video)
    by_block = scorer(text, video, 2, 2)
    own = own_scores(by_block, range(6), owners)
    best = torch.stack([whole[owners == number].amax(0) for number in (0, 2, 3, 4)])  # (4, N)
    assert own.tolist() == [best[0, 0], -torch.inf, best[1, 2], best[2, 3], best[3, 4]]
    result = rank_texts(by_block, range(2, 5), owners, own, k=9)
    assert result.rows == range(2, 5)
    assert_same(result.ranks, rank_targets(whole[2:5], owners[2:5]))
    for counts, condition in ((result.nearer, best[1:3] > own), (result.as_near, best[1:3] >= own)):
        assert counts.tolist() == condition.sum(0).tolist()
    assert result.matches.indices.shape == (3, 5)
    assert result.occurrences.tolist() == [3.0] * 5
    assert evaluate_scores(score, text, video, owners).query_videos.tolist() == [0, 2, 3, 4]
    without = rank_texts(by_block, range(0), owners, own)
    assert (len(without.ranks), int(without.as_near.sum())) == (0, 0)
    assert without.matches.indices.shape == (0, 5)


@pytest.mark.parametrize("wrong", [{"text_block": 0}, {"video_block": 0}, {"memory": 0}, {"k": 0}])
def test_blocks_and_k_are_positive(wrong: dict[str, int]) -> None:
    text, video, owners = caches(4, 4)
    with pytest.raises(ValueError, match="must be positive"):
        evaluate_scores(score, text, video, owners, **wrong)  # type: ignore[arg-type]
    one = dict.fromkeys(wrong, 1)
    assert len(evaluate_scores(score, text, video, owners, **one).text_to_video) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [range(0, 4, 2), range(-1, 3), range(1, 5)])
def test_rows_are_a_part_of_what_there_is(rows: range) -> None:
    text, video, owners = caches(4, 4)
    with pytest.raises(ValueError, match="texts must be a contiguous part of range"):
        own_scores(scorer(text, video), rows, owners)


@pytest.mark.parametrize("rows", [range(1, 4), range(1)])
def test_a_videos_captions_are_ranked_together(rows: range) -> None:
    text, video, _ = caches(4, 4)
    with pytest.raises(ValueError, match="has some captions of video 2, not all"):
        own_scores(scorer(text, video), rows, torch.tensor([2, 2, 3, 3]))


def test_no_rows_have_the_shape_of_none() -> None:
    text, video, owners = caches(6, 5)
    assert similarity_rows(scorer(text, video), range(0)).shape == (0, 5)
    nothing = rank_texts(scorer(text, video), range(0), owners, torch.zeros(5), k=3)
    assert nothing.matches.scores.shape == nothing.matches.indices.shape == (0, 3)
    assert nothing.occurrences.tolist() == [0.0] * 5


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 14), st.integers(0, 99))
def test_best_matches_are_the_first_of_a_stable_sort(queries: int, candidates: int, k: int, seed: int) -> None:
    similarity = torch.randint(-1, 2, (queries, candidates), generator=torch.Generator().manual_seed(seed)).float()
    expected = similarity.sort(dim=1, descending=True, stable=True)
    found = best_matches(similarity, k)
    assert torch.equal(found.indices, expected.indices[:, :k])
    assert torch.equal(found.scores, expected.values[:, :k])


@dataclass(frozen=True)
class Counting:
    """A piece that counts how often each of its rows is read."""

    piece: Piece
    reads: Counter[int]

    @property
    def layout(self) -> Layout:
        return self.piece.layout

    def __len__(self) -> int:
        return len(self.piece)

    def read(self, rows: range, device: torch.device) -> Cache:
        self.reads.update(rows)
        return self.piece.read(rows, device)


def glscl_caches(pairs: int, width: int, frames: int) -> tuple[Scorer, torch.Tensor]:
    """A GLSCL head and its caches of random features, three captions of each third video."""
    torch.manual_seed(0)
    options = head_class("glscl").Options.model_validate({"queries": 2, "layers": 1, "attention_heads": 1})
    head = build_head("glscl", width, options, (4, frames)).eval()
    owners = torch.arange(pairs)
    owners[: pairs // 2] = owners[: pairs // 2] // 3 * 3
    with torch.no_grad():
        text = head.encode_text(torch.randn(pairs, width), torch.randn(pairs, 4, width), torch.ones(pairs, 4))
        video = head.encode_video(torch.randn(pairs, frames, width), torch.ones(pairs, frames))
    return Scorer(head, Caches.of(text), Caches.of(video), CPU, 128, 128), owners


def test_memory_of_4000_by_4000_is_what_was_chosen() -> None:
    """In few groups and in many, with the same results; each cache is read once per visit, and not once per tile."""
    pairs, mebibyte = 4000, 1 << 20
    whole, owners = glscl_caches(pairs, 8, 3)
    texts, results, peaks, visits = range(pairs), [], [], []
    for memory in (200 * mebibyte, 24 * mebibyte, 14 * mebibyte):
        reads: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        text = Caches((Counting(whole.text.pieces[0], reads[0]),))
        video = Caches((Counting(whole.video.pieces[0], reads[1]),))
        chosen = replace(whole, text=text, video=video, memory=memory)
        with PeakMemory() as tensors:
            own = own_scores(chosen, texts, owners)
            before = tuple(side.copy() for side in reads)
            ranked = rank_texts(chosen, texts, owners, own)
        groups = len(chosen.groups(texts))
        assert set((reads[0] - before[0]).values()) == {1}, "texts are read once"
        assert set((reads[1] - before[1]).values()) == {groups}, "videos once for each group"
        assert max(before[0].values()) <= 2
        assert set(before[1].values()) <= {0, 1}
        results.append(merge([ranked], owners))
        peaks.append(tensors.peak)
        visits.append(groups)
        assert tensors.peak < memory
    assert visits[0] == 1
    assert visits[1] >= 5
    assert visits[2] > visits[1]
    assert peaks[0] > 4 * pairs**2, "with enough memory the matrix is held"
    for result in results[1:]:
        assert_same(result, results[0])


def test_caches_in_pieces_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text, video, _ = caches(17, 6)
    captions = (3, 0, 5, 1, 0, 8)
    keep = torch.tensor([True, False, True, False, True, True])
    one = PairCaches(Caches.of(text), Caches.of(video), captions)
    assert one.text_to_video.tolist() == [0] * 3 + [2] * 5 + [3] + [5] * 8
    parts = [
        PairCaches(
            Caches.of({"t": text["t"][first:last]}), Caches.of({"v": video["v"][begin:end]}), captions[begin:end]
        )
        for (first, last), (begin, end) in (((0, 8), (0, 3)), ((8, 17), (3, 6)))
    ]
    for whole in (PairCaches.join(parts), PairCaches.join(parts).select(keep)):
        chosen = keep if len(whole.video) < 6 else torch.ones(6, dtype=torch.bool)
        rows = text["t"][chosen[one.text_to_video]]
        assert len(whole.text) == len(rows) == len(whole.text_to_video) == sum(whole.captions)
        for first in range(len(rows)):
            for last in range(first + 1, len(rows) + 1):
                assert torch.equal(whole.text.read(range(first, last), CPU)["t"], rows[first:last])
        assert torch.equal(whole.video.read(range(len(whole.video)), CPU)["v"], video["v"][chosen])
    apart = Caches((*parts[0].video.pieces, *parts[1].video.pieces), apart=True)
    assert list(apart.blocks(2)) == [range(2), range(2, 3), range(3, 5), range(5, 6)]
    assert list(one.video.blocks(4)) == [range(4), range(4, 6)]
    assert one.video.read(range(1, 3), CPU)["v"].data_ptr() == video["v"][1].data_ptr(), "no copy"
    monkeypatch.setattr("glscl.evaluation.caches.PIECE_BYTES", 4 * 4 * 4)
    batches = {start: {"v": video["v"][start : start + 2]} for start in (4, 0, 2)}
    joined = join_batches(batches, LocalPiece)
    assert [len(piece) for piece in joined.pieces] == [4, 2]
    assert batches == {}
    assert torch.equal(joined.read(range(6), CPU)["v"], video["v"])
