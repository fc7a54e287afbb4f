"""Test-time controls: other orders of a video's frames, the same whoever reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from glscl.data.frame_changes import FrameChange, Reorder
from glscl.data.gallery import Gallery
from glscl.data.shards import ShardSet
from tests.data.test_gallery import SAMPLING, gallery, rows

IDS = [f"v{n}" for n in range(600)]


def _order(order: str, count: int, video_id: str = "v") -> list[int]:
    frames = torch.arange(count)[:, None, None, None].expand(-1, 3, 2, 2)
    return [int(frame[0, 0, 0]) for frame in Reorder(order).apply(frames, video_id)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "middle"), [(1, 0), (2, 1), (3, 1), (6, 3), (7, 3)])
def test_one_frame_or_backwards(count: int, middle: int) -> None:
    assert _order("single", count) == [middle]
    assert _order("reversed", count) == list(range(count))[::-1]


def test_a_shuffle_is_of_the_video_and_any_is_as_likely() -> None:
    orders = {video_id: tuple(_order("shuffled", 3, video_id)) for video_id in IDS}
    assert orders == {video_id: tuple(_order("shuffled", 3, video_id)) for video_id in reversed(IDS)}
    counts = Counter(orders.values())
    assert len(counts) == 6
    assert all(70 < count < 130 for count in counts.values()), counts


def changed(shard_set: ShardSet, change: FrameChange, workers: int) -> dict[int, Tensor]:
    """Frames of every video by its position."""
    sampling = change.sampling(SAMPLING)
    plain = gallery(shard_set)
    own = Gallery(shard_set, plain.first, plain.last, sampling, plain.tokenize, 2 + workers, change=change)
    return {position: frames for position, (_, frames, _) in rows(list(own.batches(workers))).items()}


def test_a_set_is_read_in_another_order_by_any_number_of_processes(make_shards: Callable[..., ShardSet]) -> None:
    shard_set = make_shards(captions=(1,) * 9, per_shard=4)
    sampled = replace(gallery(shard_set), sampling=replace(SAMPLING, rate=4.0))
    plain = {position: frames for position, (_, frames, _) in rows(list(sampled.batches(0))).items()}
    for order in ("single", "shuffled", "reversed"):
        alone = replace(sampled, change=Reorder(order))  # type: ignore[arg-type]
        together = replace(alone, batch_size=3)
        found, same = (
            {p: own[1] for p, own in rows(list(g.batches(w))).items()} for g, w in ((alone, 0), (together, 2))
        )
        assert found.keys() == same.keys() == plain.keys()
        for position, frames in found.items():
            assert torch.equal(frames, same[position])
            expected = {"single": plain[position][1:2], "reversed": plain[position].flip(0)}.get(order)
            assert expected is None or torch.equal(frames, expected)
            assert order != "shuffled" or sorted(map(_sum, frames)) == sorted(map(_sum, plain[position]))
        assert order != "shuffled" or any(not torch.equal(found[p], plain[p]) for p in plain)


def _sum(frame: Tensor) -> int:
    return int(frame.long().sum())
