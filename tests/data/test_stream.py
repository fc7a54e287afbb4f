"""The training stream over real shards: order, resuming, quarantine, resources."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import pickle
import signal
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import glscl.data.stream as module
from glscl.data import clips
from glscl.data import loader as loaders
from glscl.data.activity import ActivityTable
from glscl.data.augment import ClipAugmentation
from glscl.data.plan import StreamPlan
from glscl.data.quarantine import UnusableSetError
from glscl.data.shards import Shard, ShardSet
from glscl.data.stream import Batch, PairStream, Share, make_loader
from glscl.data.video import Clip, FrameSampling, load_clip, load_frames
from glscl.errors import BrokenRunError, UserError
from glscl.models.tokenizer import tokenize as clip_tokenize

MakeShards = Callable[..., ShardSet]
SAMPLING = FrameSampling(max_frames=3, rate=1.0, size=48)
WORLDS = [(ranks, workers) for ranks in (1, 2, 4) for workers in (0, 1, 2)]


def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Bytes of the caption, at most 16."""
    ids = torch.zeros(len(captions), 16, dtype=torch.int64)
    for row, caption in enumerate(captions):
        data = caption.encode()[:16]
        ids[row, : len(data)] = torch.tensor(list(data), dtype=torch.int64)
    return ids, torch.tensor([len(caption.encode()) > 16 for caption in captions])


def plan_of(shard_sets: Sequence[ShardSet], **changes: Any) -> StreamPlan:
    options: dict[str, Any] = {"weights": [], "global_batch": 16, "virtual_streams": 8, "captions": "all", "seed": 3}
    return StreamPlan([shard_set.manifest for shard_set in shard_sets], **(options | changes))


def loader(
    shard_sets: Sequence[ShardSet], plan: StreamPlan, rank: int, world_size: int, workers: int, start: int
) -> Iterator[Batch]:
    stream = PairStream(shard_sets, plan, SAMPLING, tokenize, rank, world_size, start)
    return make_loader(stream, workers, prefetch=2)


def run(
    shard_sets: Sequence[ShardSet],
    plan: StreamPlan,
    steps: int,
    world_size: int = 1,
    workers: int = 0,
    start: int = 0,
) -> list[Batch]:
    """The global batches of some steps: the ranks' parts joined in rank order."""
    ranks = [
        [kept(batch) for batch in islice(loader(shard_sets, plan, rank, world_size, workers, start), steps)]
        for rank in range(world_size)
    ]
    return [joined(parts) for parts in zip(*ranks, strict=True)]


def kept(batch: Batch) -> Batch:
    """A batch whose frames outlive the next one."""
    return replace(batch, frames=batch.frames.clone(), text=tuple(tensor.clone() for tensor in batch.text))


def joined(parts: Sequence[Batch]) -> Batch:
    """The ranks' parts of a global batch in one."""
    tensors = ("frames", "frame_mask", "video_ids")
    lists = ("names", "quarantined", "repaired")
    return Batch(
        text=tuple(map(torch.cat, zip(*(part.text for part in parts), strict=True))),
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in tensors},
        **{name: [entry for part in parts for entry in getattr(part, name)] for name in lists},
        truncated=sum(part.truncated for part in parts),
    )


def all_tensors(batch: Batch) -> list[Tensor]:
    return [*batch.text, batch.frames, batch.frame_mask, batch.video_ids]


def same(one: Batch, other: Batch) -> bool:
    tensors = zip(all_tensors(one), all_tensors(other), strict=True)
    return one.names == other.names and all(torch.equal(*pair) for pair in tensors)


def test_the_same_global_batches_in_every_world(make_shards: MakeShards) -> None:
    """Uneven shards: 4 videos with 1, 2, 3 or 7 captions each, and a short last one."""
    shard_sets = [make_shards(captions=(1, 2, 3, 7, 1, 1) * 7, per_shard=4)]
    plan = plan_of(shard_sets)
    assert len({entry.pairs for entry in shard_sets[0].manifest.shards}) > 3
    epoch = plan.steps_per_epoch
    assert epoch == 6
    reference = run(shard_sets, plan, 3 * epoch)
    pairs = [f"toy/v{n:03d}#{i}" for n, count in enumerate((1, 2, 3, 7, 1, 1) * 7) for i in range(count)]
    orders = []
    for number in range(3):
        names = [name for batch in reference[number * epoch : (number + 1) * epoch] for name in batch.names]
        assert len(names) == len(set(names)) == epoch * 16 > len(pairs) - 16
        assert set(names) <= set(pairs)
        orders.append(names)
    assert len({tuple(names) for names in orders}) == 3
    for world_size, workers in WORLDS[1:]:
        first = run(shard_sets, plan, epoch, world_size, workers)
        third = run(shard_sets, plan, epoch, world_size, workers, start=2 * epoch)
        assert [batch.names for batch in first] == [batch.names for batch in reference[:epoch]], (world_size, workers)
        assert all(map(same, third, reference[2 * epoch :])), (world_size, workers)


def test_what_a_batch_holds(make_shards: MakeShards, make_video: Callable[..., bytes]) -> None:
    times = {n: [i / 2 for i in range(2 + 2 * (n % 3))] for n in range(12)}
    bad = {n: make_video(times[n], seed=n) for n in range(12)}
    shard_set = make_shards(captions=(2,) * 12, per_shard=3, bad=bad)
    plan = plan_of([shard_set], global_batch=24, virtual_streams=4)
    (batch,) = run([shard_set], plan, 1)
    assert batch.frames.shape == (24, 3, 3, 48, 48)
    assert batch.truncated == 0
    for row, name in enumerate(batch.names):
        number = int(name[5:8])
        frames = load_frames(bad[number], SAMPLING)
        real = int(batch.frame_mask[row].sum())
        assert batch.frame_mask[row].tolist() == [True] * real + [False] * (3 - real)
        assert real == len(frames)
        assert torch.equal(batch.frames[row, :real], frames)
        assert not batch.frames[row, real:].any()
        text = bytes(batch.text[0][row].tolist()).rstrip(b"\0").decode()
        assert text == f"v{number:03d} text {name[-1]}"
    assert set(batch.frame_mask.sum(1).tolist()) == {1, 2, 3}
    videos = [name.split("#")[0] for name in batch.names]
    for row, other in ((row, other) for row in range(24) for other in range(24)):
        assert bool(batch.video_ids[row] == batch.video_ids[other]) == (videos[row] == videos[other])


def test_domains_mix_by_weight_in_every_world(make_shards: MakeShards) -> None:
    small, large = make_shards("small", (1, 2) * 6, 3), make_shards("large", (2, 1, 3) * 8, 4)
    plan = plan_of([small, large], weights=[1, 3])
    reference = run([small, large], plan, 12)
    for batch in reference:
        counts = Counter(name.split("/")[0] for name in batch.names)
        assert counts == {"small": 4, "large": 12}
        domains = {
            name.split("/")[0]: int(number) >> 48 for name, number in zip(batch.names, batch.video_ids, strict=True)
        }
        assert domains == {"small": 0, "large": 1}
    for world_size, workers in ((2, 0), (4, 1), (2, 2)):
        got = run([small, large], plan, 4, world_size, workers, start=8)
        assert all(map(same, got, reference[8:])), (world_size, workers)


def test_one_caption_per_video(make_shards: MakeShards) -> None:
    shard_sets = [make_shards(captions=(5,) * 16, per_shard=3)]
    plan = plan_of(shard_sets, captions="one", global_batch=16)
    reference = run(shard_sets, plan, 4)
    for batch in reference:
        assert len({name.split("#")[0] for name in batch.names}) == 16
        assert len({name.split("#")[1] for name in batch.names}) > 1
    assert len({tuple(sorted(batch.names)) for batch in reference}) == 4  # other captions in other epochs
    assert all(map(same, run(shard_sets, plan, 4, 2, 2), reference))


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 0), (2, 2)])
def test_resuming_continues_exactly(make_shards: MakeShards, world_size: int, workers: int) -> None:
    shard_sets = [make_shards()]
    plan = plan_of(shard_sets)
    epoch = plan.steps_per_epoch
    stop = 2 * epoch + 2  # in epoch 3
    reference = run(shard_sets, plan, stop + epoch)
    resumed = run(shard_sets, plan, epoch, world_size, workers, start=stop)
    assert all(map(same, resumed, reference[stop:]))


def test_resuming_opens_one_shard_per_virtual_stream(make_shards: MakeShards) -> None:
    """The shards are large against a step, so that no step of a stream crosses the end of one."""
    shard_sets = [make_shards(captions=(8,) * 40, per_shard=5)]
    plan = plan_of(shard_sets, global_batch=8)
    assert plan.steps_per_epoch == 40
    for start in (0, 1, 39, 40, 2 * 40 + 17, 2 * 40 + 39, 10**9 + 3):
        stream = PairStream(shard_sets, plan, SAMPLING, tokenize, 0, 1, start)
        next(make_loader(stream, 0, 1))
        assert [number for number, _ in stream.opened] == list(range(8)), start
        half = PairStream(shard_sets, plan, SAMPLING, tokenize, 1, 2, start)
        next(make_loader(half, 0, 1))
        assert half.opened == stream.opened[4:]


class Counting(Shard):
    """Counts the shards that are open."""

    now = most = ever = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        Counting.now += 1
        Counting.ever += 1
        Counting.most = max(Counting.most, Counting.now)

    def close(self) -> None:
        if not self._file.closed:
            Counting.now -= 1
        super().close()


def test_open_shards_do_not_grow_with_the_set(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Shard", Counting)
    for name, shards in (("small", 8), ("eight_times", 64)):
        Counting.now = Counting.most = Counting.ever = 0
        shard_sets = [make_shards(name, captions=(2,) * shards * 2, per_shard=2)]
        plan = plan_of(shard_sets, global_batch=8, virtual_streams=4)
        half = PairStream(shard_sets, plan, SAMPLING, tokenize, 1, 2)  # two of the four virtual streams
        batches = make_loader(half, 0, 1)
        for _ in islice(batches, plan.steps_per_epoch):
            pass
        assert Counting.ever >= shards / 2
        assert Counting.most == 2
        del batches
        assert Counting.now == 0


def broken(make_video: Callable[..., bytes]) -> dict[int, bytes]:
    whole = make_video(seed=1)
    return {2: b"garbage" * 100, 11: whole[:200], 17: whole[: len(whole) // 2]}


def test_bad_videos_are_replaced_alike_in_every_world(
    make_shards: MakeShards, make_video: Callable[..., bytes]
) -> None:
    shard_sets = [make_shards(bad=broken(make_video))]
    plan = plan_of(shard_sets)
    steps = 2 * plan.steps_per_epoch
    reference = run(shard_sets, plan, steps)
    assert {name.split("#")[0] for batch in reference for name in batch.names} == {
        f"toy/v{n:03d}" for n in range(30) if n not in (2, 11, 17)
    }
    listed = [entry for batch in reference for entry in batch.quarantined]
    assert sorted(entry["video_id"] for entry in listed) == ["v002", "v011", "v017"]  # each once, in two epochs
    for entry in listed:
        assert set(entry) == {"domain", "split", "set", "shard", "key", "video_id", "reason"}
        assert entry["reason"].startswith("undecodable")
        assert entry["shard"].startswith("shard-")
    for world_size, workers in ((2, 0), (4, 1), (1, 2)):
        got = run(shard_sets, plan, steps, world_size, workers)
        assert all(map(same, got, reference)), (world_size, workers)
        again = {tuple(sorted(entry.items())) for batch in got for entry in batch.quarantined}
        assert again == {tuple(sorted(entry.items())) for entry in listed}
    resumed = run(shard_sets, plan, 3, 2, 0, start=steps - 3)
    assert all(map(same, resumed, reference[-3:]))


def test_a_zero_length_video_is_replaced(make_shards: MakeShards, tmp_path: Path) -> None:
    """The builder leaves such files out, so the tar is emptied by hand."""
    shard_set = make_shards(captions=(1,) * 8, per_shard=2)
    empty_video(tmp_path / "toy" / "shard-000001.tar")
    shard_set = reopened(shard_set)
    plan = plan_of([shard_set], global_batch=8, virtual_streams=4)
    reference = run([shard_set], plan, 3)
    listed = [entry for batch in reference for entry in batch.quarantined]
    assert [entry["reason"] for entry in listed] == ["empty file"]
    assert all(f"toy/{listed[0]['video_id']}#0" not in batch.names for batch in reference)
    assert all(map(same, run([shard_set], plan, 3, 2, 1), reference))


def empty_video(path: Path) -> None:
    """Rewrite a tar with the first of its videos cut to nothing."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    first = next(name for name, _ in members if name.endswith(".mp4"))
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            content = b"" if name == first else data
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def reopened(shard_set: ShardSet) -> ShardSet:
    """The set with the sizes that its tars have now."""
    entries = tuple(
        entry.model_copy(update={"bytes": Path(shard_set.shard_uri(n)).stat().st_size})
        for n, entry in enumerate(shard_set.manifest.shards)
    )
    return ShardSet(shard_set.uri, shard_set.manifest.model_copy(update={"shards": entries}))


def test_a_whole_shard_of_bad_videos(make_shards: MakeShards, tmp_path: Path) -> None:
    order = make_shards("probe", captions=(2,) * 12, per_shard=3)
    shard = Shard(order, 1)
    numbers = [int(sample.video_id[1:]) for sample in shard.samples]
    shard_set = make_shards(captions=(2,) * 12, per_shard=3, bad=dict.fromkeys(numbers, b"x"))
    plan = plan_of([shard_set], global_batch=8, virtual_streams=4)
    reference = run([shard_set], plan, 3)
    names = {name for batch in reference for name in batch.names}
    assert all(f"toy/v{number:03d}#0" not in names for number in numbers)
    assert len([entry for batch in reference for entry in batch.quarantined]) == 3
    assert all(map(same, run([shard_set], plan, 3, 4, 0), reference))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_set_without_a_usable_video(make_shards: MakeShards, workers: int) -> None:
    shard_set = make_shards(captions=(2,) * 8, per_shard=2, bad={n: b"x" * n for n in range(1, 8)} | {0: b"y"})
    plan = plan_of([shard_set], global_batch=8, virtual_streams=4)
    with pytest.raises(UnusableSetError) as caught:
        run([shard_set], plan, 1, workers=workers)
    assert str(caught.value) == f"{shard_set.uri}: no video of domain 'toy' can be decoded"  # no traceback inside
    assert sorted(entry["video_id"] for entry in caught.value.quarantined) == [f"v{n:03d}" for n in range(8)]
    assert {entry["set"] for entry in caught.value.quarantined} == {shard_set.uri}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_breaks_during_the_run(make_shards: MakeShards, workers: int) -> None:
    shard_set = make_shards(captions=(1,) * 16, per_shard=2)
    plan = plan_of([shard_set])
    tar = Path(shard_set.shard_uri(3))
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match=r"^\S+/shard-000003\.tar: unusable \(.*glscl shards verify") as caught:
        run([shard_set], plan, 2, workers=workers)
    assert "Traceback" not in str(caught.value)
    tar.unlink()
    with pytest.raises(UserError, match=r"^\S+/shard-000003\.tar: listed in manifest\.json but not there"):
        run([shard_set], plan, 2, workers=workers)


def test_text_that_is_no_utf8_is_named(make_shards: MakeShards) -> None:
    shard_set = make_shards(captions=(1,) * 16, per_shard=2)
    tar = Path(shard_set.shard_uri(5))
    tar.write_bytes(tar.read_bytes().replace(b" text 0", b" t\xe9xt 0", 1))
    with pytest.raises(UserError, match=r"shard-000005\.tar: 000000\d\d\.json is not UTF-8 JSON .*build the shards"):
        run([shard_set], plan_of([shard_set]), 1, workers=1)


def test_long_and_odd_captions(make_shards: MakeShards) -> None:
    texts = {
        0: ("word " * 10_000,),
        1: ("\u202eright to left\u202c \x00 \ufffd 👩‍👩‍👧‍👦 ﷽ " + "a" * 50_000,),
        2: ("",),
        3: ("Ｆｕｌｌ ｗｉｄｔｈ",),
    }
    shard_set = make_shards(captions=(1,) * 8, per_shard=2, texts=texts)
    plan = plan_of([shard_set], global_batch=8, virtual_streams=4)
    stream = PairStream([shard_set], plan, SAMPLING, partial(clip_tokenize, max_words=20), 0, 1)
    batch = next(make_loader(stream, 0, 1))
    assert batch.text[0].shape == (8, 20)
    assert batch.truncated == 2
    row = batch.names.index("toy/v000#0")
    assert int((batch.text[0][row] != 0).sum()) == 20


def test_from_a_storage_server(make_shards: MakeShards, bucket: str, tmp_path: Path) -> None:
    local, remote = make_shards(), make_shards(root=f"{bucket}/sets")
    plan = plan_of([local])
    reference = run([local], plan, 5)
    assert all(map(same, run([remote], plan_of([remote]), 5), reference))
    assert all(map(same, run([remote], plan_of([remote]), 5, 1, 2), reference))  # after this process used s3fs
    cached = PairStream([remote], plan, SAMPLING, tokenize, 0, 1, cache_dir=str(tmp_path / "cache"))
    assert all(map(same, islice(make_loader(cached, 0, 1), 5), reference))
    assert list((tmp_path / "cache").iterdir()) == []


def test_no_room_for_the_copy_of_a_remote_shard(
    make_shards: MakeShards, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shard_set = make_shards(captions=[1] * 2, per_shard=2, root=bucket)
    monkeypatch.setattr("glscl.data.shards.shutil.copyfileobj", full)
    with pytest.raises(UserError, match=rf"no room for its copy in {tmp_path} \(No space left on device\).*cache_dir"):
        Shard(shard_set, 0, str(tmp_path))


def test_worlds_that_do_not_fit(make_shards: MakeShards) -> None:
    shard_set = make_shards(captions=(4,) * 6, per_shard=2)
    plan = plan_of([shard_set])
    with pytest.raises(UserError, match=r"data\.virtual_streams \(8\) is not a multiple .* \(3 x 1\)"):
        next(loader([shard_set], plan, 0, 3, 0, 0))
    with pytest.raises(UserError, match="too few shards: 3 for 2 workers x 2 loader workers"):
        next(loader([shard_set], plan, 0, 2, 2, 0))


def test_a_loader_process_that_dies_is_named_with_its_video(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in a native decoder kills the process; the note of what it decoded outlives it."""
    shards = make_shards(captions=[1] * 16, per_shard=4)
    plan = plan_of([shards])
    victims = [name.split("#")[0] for name in run([shards], plan, 2)[1].names]

    def fault(data: bytes, *rest: Any) -> Clip:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.id == 1 and (table.read()[1].what.split()[1] in victims[8:]):
            os.kill(os.getpid(), signal.SIGSEGV)
        return load_clip(data, *rest)

    monkeypatch.setattr(clips, "load_clip", fault)
    table = ActivityTable(2)
    stream = PairStream([shards], plan, SAMPLING, tokenize, 0, 1, activity=table)
    with pytest.raises(BrokenRunError, match=r"a loader process \(pid \d+\)") as error:
        list(islice(make_loader(stream, 2, prefetch=2), 4))
    assert "loader worker 1 (pid" in str(error.value)
    assert any(f"decoding {victim} (sample" in str(error.value) for victim in victims[8:]), error.value
    assert f"of {shards.uri}/shard-" in str(error.value)


def test_a_loader_process_that_hangs_can_be_read(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(captions=[1] * 16, per_shard=4)
    began = torch.multiprocessing.get_context("fork").Event()

    def hang(*_: Any) -> Tensor:
        began.set()
        signal.pause()
        raise AssertionError

    monkeypatch.setattr(clips, "load_clip", hang)
    table = ActivityTable(1)
    stream = PairStream([shards], plan_of([shards]), SAMPLING, tokenize, 0, 1, activity=table)
    stream.make_pages(3, shared=True)
    parts = iter(
        torch.utils.data.DataLoader(
            stream, batch_size=None, num_workers=1, worker_init_fn=loaders.start_loader_worker, timeout=0
        )
    )
    assert began.wait(60)
    busy = table.longest()
    assert busy is not None
    assert busy.what.startswith("decoding toy/v")
    os.kill(busy.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        next(parts)


class Notes:
    """An activity table that keeps every note."""

    workers = 0

    def __init__(self) -> None:
        self.said: list[str] = []
        self.awaited = 7

    def note(self, worker: int, what: str) -> None:
        assert worker == 0
        self.said.append(what)


def test_what_a_reading_process_notes(make_shards: MakeShards) -> None:
    """Each shard it opens, each video it decodes, and that it rests once its batch is ready: a rest is no stall."""
    shards = make_shards(captions=[1] * 4, per_shard=2)
    notes: Any = Notes()
    stream = PairStream(
        [shards], plan_of([shards], global_batch=4, virtual_streams=1), SAMPLING, tokenize, 0, 1, activity=notes
    )
    batches = make_loader(stream, 0, 1)
    names = next(batches).names
    assert notes.awaited == 0
    opened = [f"opening {shards.uri}/shard-00000{shard}.tar" for _, shard in stream.opened]
    decoded = [f"decoding {name.split('#')[0]} (sample " for name in names]
    expected = [opened[0], *decoded[:2], opened[1], *decoded[2:], ""]
    assert len(notes.said) == len(expected)
    assert all(said.startswith(start) for said, start in zip(notes.said, expected, strict=True))
    assert notes.said[-1] == ""
    assert notes.said[1].endswith(f" of {opened[0].removeprefix('opening ')})")


def test_a_bad_video_is_decoded_once(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(captions=[2] * 4, per_shard=4, bad={1: b"torn"})
    bad = 0

    def counting(data: bytes, *rest: Any) -> Clip:
        nonlocal bad
        bad += data == b"torn"
        return load_clip(data, *rest)

    monkeypatch.setattr(clips, "load_clip", counting)
    list(islice(loader([shards], plan_of([shards], global_batch=8, virtual_streams=1), 0, 1, 0, 0), 3))
    assert bad == 1


def test_parts_of_loader_workers_are_joined_in_order(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever looks in knows whose part is awaited; prefetching and the generator are as asked."""
    shards = make_shards(captions=[1] * 16, per_shard=4)
    table, seen, given = ActivityTable(2), [], {}

    def fake(stream: PairStream, **options: Any) -> Iterator[Share]:
        given.update(options)
        for number in range(4):
            seen.append(table.awaited)
            row = np.full((1, 1), number)
            yield Share(row, row[0], row[0], [str(number)], number, [{"video_id": str(number)}], [])

    monkeypatch.setattr(module, "DataLoader", fake)
    stream = PairStream([shards], plan_of([shards]), SAMPLING, tokenize, 0, 1, activity=table)
    batches = list(make_loader(stream, 2, prefetch=3))
    assert [batch.names for batch in batches] == [["0", "1"], ["2", "3"]]
    assert [batch.truncated for batch in batches] == [1, 5]
    assert [[entry["video_id"] for entry in batch.quarantined] for batch in batches] == [["0", "1"], ["2", "3"]]
    assert [batch.video_ids.tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert [batch.frame_mask.sum(1).tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert seen == [0, 1, 0, 1]
    assert (given["batch_size"], given["num_workers"], given["prefetch_factor"]) == (None, 2, 3)
    assert given["worker_init_fn"] is loaders.start_loader_worker
    list(make_loader(stream, 0, prefetch=3))
    assert given["prefetch_factor"] is None  # torch refuses it without processes


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 1), (2, 3)])
def test_frames_are_decoded_where_the_batch_is_read(make_shards: MakeShards, workers: int, prefetch: int) -> None:
    """No byte of a frame is sent or joined: the batch is the page that the processes wrote, and pages are reused."""
    shards = make_shards(captions=[1] * 32, per_shard=4)
    plan = plan_of([shards])
    reference = run([shards], plan, 9)
    stream = PairStream([shards], plan, SAMPLING, tokenize, 0, 1)
    places = []
    for number, batch in enumerate(islice(make_loader(stream, workers, prefetch), 9)):
        places.append(batch.frames.data_ptr())
        time.sleep(0.05)  # the processes are as far ahead as they may be
        assert same(batch, reference[number]), number
    assert batch.frames.untyped_storage().data_ptr() == stream.pages[0][0].untyped_storage().data_ptr()
    assert stream.pages[0][0].is_shared()
    assert places == [places[number % (prefetch + 1)] for number in range(9)]
    assert len(set(places)) == prefetch + 1


@pytest.mark.parametrize(("room", "decodes"), [(0, 32), (1, 8 + 3 * 2), (1000, 8)])
def test_what_fits_into_the_cache_is_decoded_once(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch, room: int, decodes: int
) -> None:
    """Eight videos, four epochs. A megabyte is cut down to six clips here."""
    shards = make_shards(captions=[1] * 8, per_shard=4)
    plan = plan_of([shards], global_batch=8, virtual_streams=1)
    reference = run([shards], plan, 4)
    count = 0

    def counting(*arguments: Any) -> Clip:
        nonlocal count
        count += 1
        return load_clip(*arguments)

    monkeypatch.setattr(clips, "load_clip", counting)
    stream = PairStream([shards], plan, SAMPLING, tokenize, 0, 1, cache_mb=room)
    if room == 1:
        stream.cache = clips.ClipCache(7 * 2 * 3 * 48 * 48 - 1)  # clips have two frames of 48 x 48
    assert all(map(same, map(kept, islice(make_loader(stream, 0, 1), 4)), reference))
    assert count == decodes


def test_augmented_clips_are_not_kept(make_shards: MakeShards) -> None:
    shards = make_shards(captions=[1] * 8, per_shard=4)
    augmentation = ClipAugmentation("rand-m7-n4-mstd0.5-inc1", 3)
    plan = plan_of([shards], global_batch=8, virtual_streams=1)
    stream, plain = (
        PairStream([shards], plan, SAMPLING, tokenize, 0, 1, augmentation=augmentation, cache_mb=room)
        for room in (9, 0)
    )
    cached, others = (map(kept, islice(make_loader(one, 0, 1), 3)) for one in (stream, plain))
    assert all(map(same, cached, others))


def test_what_a_loader_process_sends_holds_no_frames(make_shards: MakeShards) -> None:
    shards = make_shards(captions=[1] * 16, per_shard=4)
    stream = PairStream([shards], plan_of([shards]), SAMPLING, tokenize, 0, 1)
    stream.make_pages(1, shared=False)
    sent = len(pickle.dumps(next(iter(stream))))
    assert sent < 16 * 400 < stream.pages[0][0].nbytes / 16, "token ids, numbers and names"


def test_reading_does_not_move_the_runs_generator(make_shards: MakeShards) -> None:
    shards = make_shards(captions=[1] * 16, per_shard=4)
    before = torch.get_rng_state()
    next(loader([shards], plan_of([shards]), 0, 1, 0, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_of_videos_are_part_of_the_format() -> None:
    assert module.video_number(1, 2, 3) == (1 << 48) | (2 << 24) | 3


def test_which_errors_of_a_loader_mean_a_death() -> None:
    def failing(message: str) -> Iterator[int]:
        yield 1
        raise RuntimeError(message)

    table = ActivityTable(2)
    table.note(1, "decoding toy/a")
    killed = f"DataLoader worker (pid(s) 7, {os.getpid()}) exited unexpectedly. Details follow"
    with pytest.raises(BrokenRunError) as error:
        list(loaders.explain_dead_loaders(failing(killed), table))
    said = str(error.value)
    assert said.startswith(
        f"a loader process (pid 7, {os.getpid()}) exited unexpectedly; last it noted: loader worker 1 "
    )
    assert "decoding toy/a" in said
    assert "lower data.loader_workers or data.prefetch; if it is always the same video, take it out" in said
    with pytest.raises(BrokenRunError, match="last it noted: nothing"):
        list(loaders.explain_dead_loaders(failing("DataLoader worker (pid 7) is killed by signal: Killed."), None))
    with pytest.raises(RuntimeError, match="another"):
        list(loaders.explain_dead_loaders(failing("another DataLoader worker (pid 7) died"), table))


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_loader_process_has_one_thread_and_no_longer_life_than_its_parent() -> None:
    def check(answer: Any) -> None:
        torch.set_num_threads(2)
        loaders.start_loader_worker(0)
        death = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(death), 0, 0, 0)  # PR_GET_PDEATHSIG
        answer.send((torch.get_num_threads(), death.value))

    context = torch.multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=check, args=(there,))
    process.start()
    assert here.recv() == (1, signal.SIGKILL)
    process.join()
