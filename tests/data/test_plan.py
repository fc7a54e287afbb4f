"""The arithmetic of the stream's order, without files."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.data.plan import Slot, StreamPlan
from glscl.data.shards import Manifest, ShardEntry
from glscl.errors import UserError


def manifest(domain: str, sizes: list[tuple[int, int]]) -> Manifest:
    """A manifest of shards with (samples, pairs)."""
    return Manifest(
        domain=domain,
        split="train",
        reader="test",
        reader_version=1,
        sources=(),
        encoding="as is",
        videos=sum(samples for samples, _ in sizes),
        pairs=sum(pairs for _, pairs in sizes),
        shards=tuple(
            ShardEntry(name=f"shard-{n:06d}.tar", samples=samples, pairs=pairs, bytes=1, sha256="")
            for n, (samples, pairs) in enumerate(sizes)
        ),
    )


def plan(*manifests: Manifest, **changes: Any) -> StreamPlan:
    options: dict[str, Any] = {"weights": [], "global_batch": 8, "virtual_streams": 4, "captions": "all", "seed": 0}
    return StreamPlan(manifests, **(options | changes))


def step_of(p: StreamPlan, step: int) -> list[Slot]:
    return [slot for stream in range(p.virtual_streams) for slot in p.slots(step, stream)]


UNEVEN = [(1, 1), (3, 17), (2, 2), (5, 5), (1, 40), (2, 3), (4, 4), (1, 1)]
CAPTIONS = [172, 485, 657, 348, 202, 589]
ORDER = [
    [(2, 0), (2, 1), (4, 20), (4, 31), (4, 35), (4, 16), (1, 2), (1, 7)],
    [(5, 2), (5, 1), (1, 4), (1, 7), (4, 13), (4, 15), (4, 36), (4, 39)],
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=12),
    st.sampled_from([(1, 1), (4, 2), (8, 8), (12, 4)]),
    st.integers(0, 2**63),
)
def test_an_epoch_is_every_pair_once_but_a_remainder(sizes: list[int], batch: tuple[int, int], seed: int) -> None:
    pairs, (global_batch, streams) = sum(sizes), batch
    domain = manifest("a", [(size, size) for size in sizes])
    if pairs < global_batch:
        with pytest.raises(UserError, match=f"domain 'a' has {pairs} pairs but takes {global_batch} places"):
            plan(domain, global_batch=global_batch, virtual_streams=streams, seed=seed)
        return
    p = plan(domain, global_batch=global_batch, virtual_streams=streams, seed=seed)
    assert p.steps_per_epoch == pairs // global_batch
    for epoch in (0, 2):
        seen = Counter(
            (slot.shard, p.pair_in_shard(slot))
            for step in range(epoch * p.steps_per_epoch, (epoch + 1) * p.steps_per_epoch)
            for slot in step_of(p, step)
        )
        assert set(seen.values()) == {1}
        assert pairs - global_batch < len(seen) <= pairs
        assert all(0 <= place < sizes[shard] for shard, place in seen)


def test_streams_read_their_shards_one_after_another() -> None:
    """A stream opens a shard once an epoch; a shard that a cut goes through has two readers, a whole one has one."""
    p = plan(manifest("a", UNEVEN))
    readers: Counter[int] = Counter()
    for stream in range(4):
        shards = [slot.shard for step in range(p.steps_per_epoch) for slot in p.slots(step, stream)]
        runs = [shard for n, shard in enumerate(shards) if n == 0 or shards[n - 1] != shard]
        assert len(runs) == len(set(runs))
        readers.update(runs)
    assert sum(readers.values()) <= len(UNEVEN) + 3


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = set()
    for seed in (0, 1):
        p = plan(manifest("a", UNEVEN), seed=seed)
        for epoch in range(4):
            steps = range(epoch * p.steps_per_epoch, (epoch + 1) * p.steps_per_epoch)
            orders.add(tuple((s.shard, p.pair_in_shard(s)) for step in steps for s in step_of(p, step)))
    assert len(orders) == 8


def test_the_remainder_of_an_epoch_is_not_always_the_same() -> None:
    p = plan(manifest("a", [(10, 10)] * 3), global_batch=16)
    left_out = []
    for epoch in range(12):
        seen = {(s.shard, p.pair_in_shard(s)) for s in step_of(p, epoch)}
        left_out.append({(shard, place) for shard in range(3) for place in range(10)} - seen)
    assert all(len(missing) == 14 for missing in left_out)
    assert not set.intersection(*left_out)


def test_the_order_is_part_of_the_format() -> None:
    """A checkpoint of an older version resumes only if this stays as it is, on every machine."""
    p = plan(manifest("a", UNEVEN), seed=7)
    assert [(s.shard, p.pair_in_shard(s)) for s in step_of(p, 0)] == ORDER[0]
    assert [(s.shard, p.pair_in_shard(s)) for s in step_of(p, 20)] == ORDER[1]


def test_weights() -> None:
    small, large = manifest("small", [(20, 20)] * 2), manifest("large", [(100, 100)] * 4)
    for weights, shares in (([], [3, 29]), ([1, 1], [16, 16]), ([3, 1], [24, 8]), ([0.1, 0.3], [8, 24])):
        p = plan(small, large, weights=weights, virtual_streams=32, global_batch=32)
        assert p.streams_of_domain == shares
        for step in (0, 5, 100):
            counts = Counter(slot.domain for slot in step_of(p, step))
            assert [counts[0], counts[1]] == shares
    for start in range(0, 32, 4):  # equal weights: every rank of eight has half of either
        p = plan(small, large, weights=[1, 1], virtual_streams=32, global_batch=32)
        assert sorted(p.owner[stream][0] for stream in range(start, start + 4)) == [0, 0, 1, 1]


def test_a_small_domain_goes_round_more_often() -> None:
    p = plan(manifest("small", [(8, 8)] * 2), manifest("large", [(32, 32)] * 2), weights=[1, 1])
    assert p.domain_steps == [4, 16]
    assert p.steps_per_epoch == 10
    per_epoch: dict[int, list[tuple[int, int]]] = {}
    for step in range(16):
        for slot in step_of(p, step):
            if slot.domain == 0:
                per_epoch.setdefault(slot.epoch, []).append((slot.shard, p.pair_in_shard(slot)))
    assert list(per_epoch) == [0, 1, 2, 3]
    assert all(len(seen) == len(set(seen)) == 16 for seen in per_epoch.values())
    assert len({tuple(seen) for seen in per_epoch.values()}) == 4


def test_one_caption_per_video() -> None:
    p = plan(manifest("a", [(6, 60), (10, 10)]), captions="one")
    assert (p.captions, p.pairs_per_epoch) == ("one", 16)
    assert p.steps_per_epoch == 2
    drawn: Counter[int] = Counter()
    for epoch in range(200):
        for slot in step_of(p, 2 * epoch) + step_of(p, 2 * epoch + 1):
            if slot.shard == 0 and p.pair_in_shard(slot) == 0:
                drawn[p.caption_of(slot, 0, 10)] += 1
    assert sum(drawn.values()) == 200
    assert set(drawn) == set(range(10))
    assert max(drawn.values()) < 45  # about 20 each


def test_substitutes_reach_every_other_pair_once() -> None:
    p = plan(manifest("a", UNEVEN))
    slot = step_of(p, 3)[2]
    found = [(s.shard, p.pair_in_shard(s)) for s in p.substitutes(slot)]
    assert len(found) == len(set(found)) == sum(pairs for _, pairs in UNEVEN) - 1
    assert (slot.shard, p.pair_in_shard(slot)) not in found
    near = p.shard_size(0, slot.shard) - 1
    assert {shard for shard, _ in found[:near]} <= {slot.shard}


def test_ownership_covers_every_stream_in_order() -> None:
    p = plan(manifest("a", [(4, 4)] * 16), virtual_streams=16, global_batch=32)
    for world_size in (1, 2, 4):
        for workers in (1, 2, 4):
            owned = [list(p.owned(r, world_size, w, workers)) for r in range(world_size) for w in range(workers)]
            assert [stream for part in owned for stream in part] == list(range(16))
            assert len({len(part) for part in owned}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 10}, r"training\.global_batch \(10\) is not a multiple of data\.virtual_streams \(4\)"),
        ({"global_batch": 160}, r"domain 'a' has 73 pairs but takes 160 places .*lower training\.global_batch"),
        ({"weights": [1, 2]}, r"data\.weights has 2 numbers for 1 training domains in data\.train"),
        ({"weights": [0]}, r"data\.weights must be positive, got \[0\]"),
        ({"weights": [float("nan")]}, r"data\.weights must be positive"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(manifest("a", UNEVEN), **changes)


def test_domains_that_are_refused() -> None:
    with pytest.raises(UserError, match=r"^data\.train is empty"):
        plan()
    a, b = manifest("a", [(100, 100)]), manifest("b", [(3, 3)])
    with pytest.raises(UserError, match=r"domain 'b' would get less than one of 4 virtual streams: raise data\.virt"):
        plan(a, b)
    with pytest.raises(UserError, match=r"domain 'b' has 3 pairs but takes 4 places .*or its weight in data\.weights"):
        plan(a, b, weights=[1, 1])


def test_worlds_that_are_refused() -> None:
    p = plan(manifest("a", [(10, 10)] * 3))
    p.check_world(1, 2)
    for world_size, workers in ((3, 1), (1, 3), (4, 2)):
        with pytest.raises(UserError, match=rf"data\.virtual_streams \(4\) .* \({world_size} x {workers}\): change tr"):
            p.check_world(world_size, workers)
    with pytest.raises(UserError, match=r"too few shards: 3 for 2 workers x 2 loader workers; lower data\.loader_wo"):
        p.check_world(2, 2)
    with pytest.raises(UserError, match="too few shards: 3 for 4 workers x 1 loader"):
        p.check_world(4, 0)
    with pytest.raises(UserError, match=r"data\.virtual_streams \(4\) is not a multiple"):
        p.owned(0, 3, 0, 1)


def test_the_captions_drawn_are_part_of_the_format() -> None:
    p = plan(manifest("a", [(6, 60), (10, 10)]), captions="one", seed=7)
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (3, 2, 5, 4)]
    drawn = [p.caption_of(Slot(domain, epoch, shard, 9), sample, 1000) for domain, epoch, shard, sample in places]
    assert drawn == CAPTIONS


def test_the_order_of_substitutes_is_part_of_the_format() -> None:
    """The rest of its shard from its place on, then the other shards as the epoch's line goes on, round its end."""
    p = plan(manifest("a", [(1, 1), (3, 3), (2, 2)]), global_batch=4)
    slots = step_of(p, 0)
    assert [(slot.shard, slot.rank_in_shard) for slot in slots] == [(1, 0), (1, 1), (1, 2), (0, 0)]
    found = [[(s.shard, s.rank_in_shard) for s in p.substitutes(slot)] for slot in slots]
    assert found[1] == [(1, 2), (1, 0), (0, 0), (2, 0), (2, 1)]
    assert found[3] == [(2, 0), (2, 1), (1, 0), (1, 1), (1, 2)]
    assert {(s.domain, s.epoch) for s in p.substitutes(Slot(0, 3, 1, 0))} == {(0, 3)}


def test_remainders_go_to_the_first_and_domains_alternate() -> None:
    domains = [manifest(name, [(40, 40)] * 2) for name in "abc"]
    p = plan(*domains, virtual_streams=8, global_batch=8)
    assert p.streams_of_domain == [3, 3, 2]
    assert p.owner == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2), (1, 2)]
