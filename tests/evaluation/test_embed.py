"""Embeddings are the same however a set is split, batched and decoded; unusable videos are left out and listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest
import torch
from ray.exceptions import RayTaskError

from glscl.data.gallery import Gallery
from glscl.data.shards import ShardSet
from glscl.data.video import FrameSampling
from glscl.errors import BrokenRunError, UserError
from glscl.evaluation.actors import readable
from glscl.evaluation.caches import Cache, Caches, Piece, join_batches
from glscl.evaluation.embed import Embeddings, concatenate, embed
from glscl.evaluation.scoring import split_rows
from glscl.models import ModelConfig, Retriever
from glscl.models.tokenizer import tokenize

CPU = torch.device("cpu")
CAPTIONS = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    path = tmp_path_factory.mktemp("clip") / "embed-test.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    torch.manual_seed(0)
    head = {"glscl": {"queries": 2, "layers": 1, "attention_heads": 2}}
    return Retriever(ModelConfig.model_validate({"clip": str(path), "max_words": 8, "heads": head})).eval()


def _embed(
    model: Retriever, shard_set: ShardSet, parts: int = 1, batch_size: int = 32, loader_workers: int = 0
) -> Embeddings:
    pieces = []
    for part in reversed(range(parts)):
        rows = split_rows(shard_set.manifest.videos, part, parts)
        sampling = FrameSampling(max_frames=2, rate=1.0, size=model.frame_size)
        gallery = Gallery(shard_set, rows.start, rows.stop, sampling, partial(tokenize, max_words=8), batch_size)
        pieces.append(embed(model, gallery, loader_workers, CPU))
    return concatenate(pieces)


def _same(found: Embeddings, expected: Embeddings) -> None:
    assert found.positions == expected.positions
    assert found.video_ids == expected.video_ids
    assert found.captions == expected.captions
    assert found.attributes == expected.attributes
    assert (found.truncated, found.quarantined) == (expected.truncated, expected.quarantined)
    assert torch.equal(found.caches.text_to_video, expected.caches.text_to_video)
    for one, other in ((found.caches.text, expected.caches.text), (found.caches.video, expected.caches.video)):
        these, those = _read(one), _read(other)
        assert these.keys() == those.keys()
        for name, tensor in those.items():
            torch.testing.assert_close(these[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def _read(caches: Caches) -> Cache:
    return caches.read(range(len(caches)), CPU)


@pytest.fixture
def shard_set(make_shards: Callable[..., ShardSet]) -> ShardSet:
    return make_shards(captions=CAPTIONS, per_shard=4, texts={2: ("many " * 20, "short", "short")})


def test_rows(model: Retriever, shard_set: ShardSet) -> None:
    whole = _embed(model, shard_set)
    assert whole.positions == list(range(11))
    assert sorted(whole.video_ids) == [f"v{n:03d}" for n in range(11)]
    text, video = _read(whole.caches.text), _read(whole.caches.video)
    assert len(whole.captions) == len(whole.caches.text_to_video) == sum(CAPTIONS)
    assert whole.truncated == 1
    assert {len(tensor) for tensor in text.values()} == {sum(CAPTIONS)}
    assert {len(tensor) for tensor in video.values()} == {11}
    for row, caption in zip(whole.caches.text_to_video.tolist(), whole.captions, strict=True):
        owner = caption.split()[0] if caption.startswith("v") else "v002"
        assert whole.video_ids[row] == owner
    ids, _ = tokenize(whole.captions[3:4], 8)
    assert torch.allclose(model.encode_text(ids)["sentence"], text["sentence"][3:4], atol=2e-6)
    assert not torch.allclose(video["frames"][0], video["frames"][1], atol=1e-3), "videos differ"


@pytest.mark.parametrize(
    ("parts", "batch_size", "loader_workers"),
    [(1, 1, 0), (1, 3, 0), (2, 32, 0), (3, 2, 0), (20, 4, 0), (1, 3, 2), (2, 2, 1), (2, 4, 3)],
)
def test_split_batches_and_workers_change_nothing(
    parts: int, batch_size: int, loader_workers: int, model: Retriever, make_shards: Callable[..., ShardSet]
) -> None:
    shard_set = make_shards(captions=CAPTIONS, per_shard=4, bad={1: b"torn", 5: b"torn", 9: b"\0" * 999})
    expected = _embed(model, shard_set)
    assert len(expected.positions) == 8
    _same(_embed(model, shard_set, parts, batch_size, loader_workers), expected)


def test_unusable_videos_are_listed_and_their_captions_left_out(
    model: Retriever, make_shards: Callable[..., ShardSet]
) -> None:
    whole = _embed(model, make_shards(captions=CAPTIONS, per_shard=4, bad={1: b"torn", 5: b"torn"}))
    assert {entry["video_id"] for entry in whole.quarantined} == {"v001", "v005"}
    assert all(entry["domain"] == "toy" and entry["reason"] and entry["shard"] for entry in whole.quarantined)
    assert not {"v001", "v005"} & set(whole.video_ids)
    assert len(whole.captions) == sum(CAPTIONS) - CAPTIONS[1] - CAPTIONS[5]
    assert not any(caption.startswith(("v001", "v005")) for caption in whole.captions)
    order = _embed(model, make_shards("sound", captions=CAPTIONS, per_shard=4)).video_ids
    assert [order[position] for position in whole.positions] == whole.video_ids, "positions are those in the set"
    assert [row for row, name in enumerate(order) if name in ("v001", "v005")] == sorted(
        {*range(11)} - {*whole.positions}
    )


def test_a_part_without_a_usable_video_still_reports_them(
    model: Retriever, make_shards: Callable[..., ShardSet]
) -> None:
    order = _embed(model, make_shards("sound", captions=CAPTIONS, per_shard=4)).video_ids
    last = {int(name[1:]): b"torn" for name in order[-4:]}
    shard_set = make_shards("torn", captions=CAPTIONS, per_shard=4, bad=last)
    _same(_embed(model, shard_set, parts=3), _embed(model, shard_set))
    assert len(_embed(model, shard_set, parts=3).quarantined) == 4


def test_no_usable_video_at_all(model: Retriever, make_shards: Callable[..., ShardSet]) -> None:
    shard_set = make_shards(captions=[1, 1], bad={0: b"torn", 1: b"torn"})
    with pytest.raises(UserError, match=r"no video of the set can be decoded: toy/v00\d \("):
        _embed(model, shard_set, parts=2)


@pytest.mark.parametrize("loader_workers", [0, 1])
def test_embedding_does_not_move_the_random_state(loader_workers: int, model: Retriever, shard_set: ShardSet) -> None:
    state = torch.get_rng_state()
    _embed(model, shard_set, loader_workers=loader_workers)
    assert torch.equal(torch.get_rng_state(), state), "training goes on with the dropout it would have had"


def test_what_an_actor_ends_with_is_a_line_where_it_is_meant_to_be_read() -> None:
    for cause in (UserError("/dev/shm is full"), BrokenRunError("a loader process (pid 7) is killed")):
        found = readable(RayTaskError("embed", "Traceback ...", cause))
        assert type(found) is type(cause)
        assert str(found) == str(cause)
    other = RayTaskError("embed", "Traceback ...", ValueError("x"))
    assert readable(other) is other


def test_embeddings_hold_no_shared_memory(
    model: Retriever, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each such tensor is an open file, and a set has thousands of batches, whose embeddings wait for one another."""
    waiting: list[Cache] = []

    def join(batches: dict[int, Cache], keep: Callable[[Cache], Piece]) -> Caches:
        waiting.extend(batches.values())
        return join_batches(batches, keep)

    monkeypatch.setattr("glscl.evaluation.embed.join_batches", join)
    _embed(model, shard_set, batch_size=4, loader_workers=1)
    assert len(waiting) == 2 * 3, "texts and videos of three batches"
    for cache in waiting:
        assert not any(tensor.is_shared() for tensor in cache.values())
