"""Reading an evaluation set in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glscl.data.gallery import Gallery, GalleryBatch
from glscl.data.shards import Shard, ShardSet
from glscl.data.video import FrameSampling, load_frames
from glscl.errors import UserError

MakeShards = Callable[..., ShardSet]
SAMPLING = FrameSampling(max_frames=3, rate=1.0, size=48)


def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The video's and the caption's number."""
    rows = [[int(caption[1:4]), int(caption.split()[-1])] for caption in captions]
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2), torch.zeros(len(captions), dtype=torch.bool)


def gallery(shard_set: ShardSet, first: int = 0, last: int | None = None, batch_size: int = 4) -> Gallery:
    end = shard_set.manifest.videos if last is None else last
    return Gallery(shard_set, first, end, SAMPLING, tokenize, batch_size)


def in_order(shard_set: ShardSet) -> list[str]:
    return [s.video_id for n in range(len(shard_set.manifest.shards)) for s in Shard(shard_set, n).samples]


def rows(batches: list[GalleryBatch]) -> dict[int, tuple[str, Tensor, list[list[int]]]]:
    found = {}
    for batch in batches:
        for row, (position, sample) in enumerate(zip(batch.positions, batch.samples, strict=True)):
            captions = batch.text[0][batch.text_to_video == row].tolist()
            assert position not in found
            found[position] = (sample.video_id, batch.frames[row][batch.frame_mask[row]], captions)
    return found


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_video_once_with_its_captions(
    make_shards: MakeShards, make_video: Callable[..., bytes], workers: int
) -> None:
    shard_set = make_shards(captions=(1, 3, 2) * 4, per_shard=5)
    found = rows(list(gallery(shard_set).batches(workers)))
    assert sorted(found) == list(range(12))
    assert [found[position][0] for position in range(12)] == in_order(shard_set)
    for video_id, frames, captions in found.values():
        number = int(video_id[1:])
        assert torch.equal(frames, load_frames(make_video(seed=number), SAMPLING))
        assert captions == [[number, n] for n in range((1, 3, 2)[number % 3])]


def test_order_and_batch_sizes(make_shards: MakeShards) -> None:
    batches = list(gallery(make_shards(captions=(1,) * 11, per_shard=4)).batches(0))
    assert [batch.positions for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize("cuts", [[0, 12], [0, 5, 12], [0, 1, 2, 11, 12], [0, 0, 6, 6, 12]])
def test_ranges_make_up_the_whole(make_shards: MakeShards, cuts: list[int]) -> None:
    shard_set = make_shards(captions=(1,) * 12, per_shard=5)
    parts = [rows(list(gallery(shard_set, first, last).batches(0))) for first, last in pairwise(cuts)]
    assert [position for part in parts for position in sorted(part)] == list(range(12))
    assert [part[p][0] for part in parts for p in sorted(part)] == in_order(shard_set)


def test_on_a_storage_server(make_shards: MakeShards, bucket: str) -> None:
    local, remote = make_shards(captions=(2,) * 6), make_shards(captions=(2,) * 6, root=bucket)
    ours, theirs = (rows(list(gallery(shard_set).batches(1))) for shard_set in (local, remote))
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[n][1], theirs[n][1]) and ours[n][2] == theirs[n][2] for n in ours)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_videos_are_left_out_and_listed(make_shards: MakeShards, workers: int) -> None:
    shard_set = make_shards(captions=(2,) * 9, per_shard=4, bad={3: b"x", 8: b"y"})
    batches = list(gallery(shard_set).batches(workers))
    found = rows(batches)
    assert {video_id for video_id, _, _ in found.values()} == {f"v{n:03d}" for n in range(9)} - {"v003", "v008"}
    assert [in_order(shard_set)[position] for position in found] == [video_id for video_id, _, _ in found.values()]
    listed = [entry for batch in batches for entry in batch.quarantined]
    assert sorted(entry["video_id"] for entry in listed) == ["v003", "v008"]
    assert all(entry["reason"].startswith("undecodable") for entry in listed)


def test_a_set_of_bad_videos_alone_gives_an_empty_batch(make_shards: MakeShards) -> None:
    (batch,) = gallery(make_shards(captions=(1,) * 3, bad=dict.fromkeys(range(3), b"x"))).batches(0)
    assert batch.samples == []
    assert batch.frames.shape == (0, 3, 3, 48, 48)
    assert len(batch.quarantined) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torn_shard_is_one_line(make_shards: MakeShards, workers: int) -> None:
    shard_set = make_shards(captions=(1,) * 6, per_shard=2)
    tar = Path(shard_set.shard_uri(1))
    tar.write_bytes(tar.read_bytes()[:800])
    with pytest.raises(UserError, match=r"^\S+/shard-000001\.tar: unusable \(") as caught:
        list(gallery(shard_set).batches(workers))
    assert "Traceback" not in str(caught.value)
