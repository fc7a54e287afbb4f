"""A part of a training set: chosen by ids alone, nested, and the same stream in every world."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from glscl.data.options import DataConfig
from glscl.data.plan import StreamPlan
from glscl.data.shards import Manifest, ShardEntry, ShardSet
from glscl.data.subset import Limit, captions_of_videos, choose
from glscl.errors import UserError
from glscl.options.differences import differing_keys
from glscl.training.checkpoint.format import FREE_KEYS
from tests.data.test_stream import loader

CAPTIONS = (3, 1, 2, 5, 1, 4, 2, 2, 1, 6, 3, 1)


def manifest(ids: list[str], counts: list[int], per_shard: int = 4, **changes: Any) -> Manifest:
    """A manifest of these videos, without tars."""
    parts = [counts[at : at + per_shard] for at in range(0, len(counts), per_shard)]
    shards = tuple(
        ShardEntry(name=f"shard-{n:06d}.tar", samples=len(part), pairs=sum(part), bytes=1, sha256="")
        for n, part in enumerate(parts)
    )
    values: dict[str, Any] = {
        "domain": "d", "split": "train", "reader": "test", "reader_version": 1, "sources": (), "encoding": "as is",
        "videos": len(ids), "pairs": sum(counts), "shards": shards, "video_ids": tuple(ids), "captions": tuple(counts),
    }  # fmt: skip
    return Manifest.model_validate(values | changes)


IDS = [f"v{number:03d}" for number in range(len(CAPTIONS))]
ORDER = sorted(IDS, key=lambda video_id: hashlib.sha256(video_id.encode()).digest())


def taken(ids: list[str], counts: list[int], limit: Limit, captions: Any) -> set[tuple[str, int]]:
    """Pairs of an id and the number of a caption (-1: one is drawn) that a limit takes."""
    described = manifest(ids, counts)
    chosen = choose(described, limit, captions)
    found = set()
    first = 0
    for number, entry in enumerate(described.shards):
        videos = range(first, first + entry.samples)
        all_of = [(ids[v], c) for v in videos for c in (range(counts[v]) if captions == "all" else (-1,))]
        found |= {all_of[index] for index in (range(len(all_of)) if chosen is None else chosen[number])}
        first += entry.samples
    return found


@pytest.mark.parametrize("captions", ["all", "one"])
def test_videos_are_those_whose_ids_have_the_smallest_hashes(captions: str) -> None:
    counts = dict(zip(IDS, CAPTIONS, strict=True))
    for number in range(1, len(IDS) + 2):
        found = taken(IDS, list(CAPTIONS), Limit(videos=number), captions)
        assert {video_id for video_id, _ in found} == set(ORDER[:number])
        expected = sum(counts[video_id] for video_id in ORDER[:number]) if captions == "all" else min(number, len(IDS))
        assert len(found) == expected


def test_pairs_are_taken_video_by_video() -> None:
    counts = dict(zip(IDS, CAPTIONS, strict=True))
    line = [(video_id, number) for video_id in ORDER for number in range(counts[video_id])]
    for pairs in range(1, len(line) + 2):
        assert taken(IDS, list(CAPTIONS), Limit(pairs=pairs), "all") == set(line[:pairs])


def test_the_order_in_which_a_set_was_written_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(IDS)).tolist()
    ids, counts = [IDS[n] for n in order], [CAPTIONS[n] for n in order]
    for limit in (Limit(videos=5), Limit(pairs=11)):
        assert taken(ids, counts, limit, "all") == taken(IDS, list(CAPTIONS), limit, "all")


def test_a_larger_limit_than_the_set_is_the_set() -> None:
    described = manifest(IDS, list(CAPTIONS))
    assert choose(described, Limit(videos=12), "one") is None
    assert choose(described, Limit(pairs=31), "all") is None
    assert Limit(videos=12).describe(described) == Limit().describe(described) == ""
    assert Limit(videos=11).describe(described) == "11 videos of it are taken (data.max_videos)"
    assert Limit(pairs=30).describe(described) == "30 pairs of it are taken (data.max_pairs)"
    twice = choose(manifest(["a"] * 12, list(CAPTIONS)), Limit(videos=5), "one")
    assert twice is not None
    assert sum(map(len, twice)) == 5, "videos that share an id are told apart by their place"


def test_what_a_manifest_does_not_say_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"data\.max_pairs counts captions, of which data\.captions: one draws one"):
        choose(manifest(IDS, list(CAPTIONS)), Limit(pairs=5), "one")
    old = manifest(IDS, list(CAPTIONS), captions=())
    with pytest.raises(UserError, match="domain 'd': the manifest of this set, of an older version, does not say how"):
        choose(old, Limit(videos=5), "all")
    assert choose(old, Limit(videos=5), "one") is not None
    with pytest.raises(UserError, match="choose by ids, and the manifest of this set, of an older version, has none"):
        choose(manifest(IDS, list(CAPTIONS), video_ids=()), Limit(videos=5), "one")
    assert captions_of_videos(manifest(IDS, [1] * 12, captions=())).tolist() == [1] * 12
    with pytest.raises(ValidationError, match="max_videos and max_pairs: give one of them"):
        DataConfig(max_videos=3, max_pairs=3)


def plan(shard_set: ShardSet, seed: int = 3, **limits: int) -> StreamPlan:
    return StreamPlan([shard_set.manifest], [], 8, 4, "all", seed, Limit(**limits))


def names(shard_set: ShardSet, of_plan: StreamPlan, steps: int, world_size: int = 1, start: int = 0) -> list[list[str]]:
    """Names of the pairs of every global batch."""
    ranks = [
        [batch.names for batch in islice(loader([shard_set], of_plan, rank, world_size, 0, start), steps)]
        for rank in range(world_size)
    ]
    return [list(chain(*parts)) for parts in zip(*ranks, strict=True)]


def test_the_stream_of_a_part_is_the_same_in_every_world(make_shards: Callable[..., ShardSet]) -> None:
    shard_set = make_shards(captions=CAPTIONS, per_shard=3)
    counts = dict(zip(IDS, CAPTIONS, strict=True))
    few = plan(shard_set, videos=8)
    expected = {f"toy/{video_id}#{n}" for video_id in ORDER[:8] for n in range(counts[video_id])}
    assert few.pairs_per_epoch == len(expected)
    steps = few.steps_per_epoch
    alone = names(shard_set, few, 3 * steps)
    assert {name for batch in alone for name in batch} == expected, "over three epochs, whose remainders differ"
    for epoch in range(3):
        seen = list(chain(*alone[epoch * steps : (epoch + 1) * steps]))
        assert len(set(seen)) == len(seen) == 8 * steps
    for world_size in (2, 4):
        assert names(shard_set, few, 3 * steps, world_size) == alone
    assert names(shard_set, few, steps, start=steps) == alone[steps : 2 * steps], "a resumed run goes on in it"
    other = names(shard_set, plan(shard_set, 4, videos=8), 3 * steps)
    assert other != alone
    assert {name for batch in other for name in batch} == expected, "another seed, the same part"
    pairs = plan(shard_set, pairs=17)
    assert pairs.pairs_per_epoch == 17


def test_a_run_goes_on_with_the_part_that_it_began_with() -> None:
    begun = {"data": {"max_videos": 5, "max_pairs": None}}
    assert differing_keys(begun, {"data": {"max_videos": 6}}, FREE_KEYS) == ["data.max_videos: 5 -> 6"]
    assert differing_keys({"data": {}}, {"data": {"max_videos": None, "max_pairs": None}}, FREE_KEYS) == []


def test_shards_without_a_chosen_video_have_no_readers(make_shards: Callable[..., ShardSet]) -> None:
    shard_set = make_shards(captions=CAPTIONS, per_shard=1)
    plan(shard_set, videos=8).check_world(4, 1)
    one = plan(make_shards("other", captions=(20, 20, 20, 20), per_shard=1), videos=1)
    with pytest.raises(UserError, match="too few shards: 1 for 2 workers"):
        one.check_world(2, 1)


def test_sets_say_how_many_captions_each_video_has(make_shards: Callable[..., ShardSet]) -> None:
    shard_set = make_shards(captions=CAPTIONS, per_shard=5)
    by_id = dict(zip(shard_set.manifest.video_ids, shard_set.manifest.captions, strict=True))
    assert by_id == dict(zip(IDS, CAPTIONS, strict=True))
    assert captions_of_videos(shard_set.manifest).sum() == sum(CAPTIONS)
    wrong = shard_set.manifest.model_copy(
        update={"captions": (shard_set.manifest.captions[0] + 1, *shard_set.manifest.captions[1:])}
    )
    for manifest_of in (wrong, wrong.model_copy(update={"captions": wrong.captions[:-1]})):
        with pytest.raises(UserError, match="the captions of the videos in its manifest do not add up to its pairs"):
            captions_of_videos(manifest_of)
