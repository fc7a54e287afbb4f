"""Batches on their way to a device: in order, valid while they are computed with, and one ahead of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from glscl.data import feed as module
from glscl.data.feed import CudaCopies, Feed
from glscl.data.shards import ShardSet
from glscl.data.stream import Batch, PairStream
from glscl.errors import UserError
from tests.data.test_stream import SAMPLING, plan_of, run, same, tokenize

MakeShards = Callable[..., ShardSet]
CPU = torch.device("cpu")


class LateCopies:
    """As late as a GPU may be: memory is read no sooner than someone waits for it, and until then the copy is noise."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._open: list[tuple[Tensor, Tensor]] = []

    def start(self, batch: Batch) -> Batch:
        self.log.append("start")
        copied = {name: self._later(getattr(batch, name)) for name in ("frames", "frame_mask", "video_ids")}
        return replace(batch, text=tuple(map(self._later, batch.text)), **copied)

    def _later(self, source: Tensor) -> Tensor:
        copied = torch.full_like(source, 1)
        self._open.append((source, copied))
        return copied

    def use(self, batch: Batch) -> None:
        self.log.append("use")
        self._copy()

    def settle(self) -> None:
        self.log.append("settle")
        self._copy()

    def _copy(self) -> None:
        for source, target in self._open:
            target.copy_(source)
        self._open = []


@pytest.fixture
def shards(make_shards: MakeShards) -> ShardSet:
    return make_shards(captions=[1] * 32, per_shard=4)


def feed_of(shards: ShardSet, workers: int, copies: Any = None) -> Feed:
    return Feed(PairStream([shards], plan_of([shards]), SAMPLING, tokenize, 0, 1), workers, 1, CPU, copies)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ahead", [True, False])
def test_copies_are_done_before_their_source_is_written_to(shards: ShardSet, workers: int, ahead: bool) -> None:
    reference = run([shards], plan_of([shards]), 8)
    feed = feed_of(shards, workers, LateCopies())
    kept = []
    for _ in range(8):
        kept.append(next(feed))
        if ahead:
            feed.fetch()
    assert all(map(same, kept, reference)), "on a device batches outlive their pages"


def test_the_next_batch_is_copied_before_it_is_asked_for(shards: ShardSet) -> None:
    copies = LateCopies()
    feed = feed_of(shards, 0, copies)
    for _ in range(3):
        next(feed)
        feed.fetch()
        feed.fetch()
    assert copies.log == ["settle", "start", "use"] + ["settle", "start", "use"] * 2 + ["settle", "start"]


@pytest.mark.parametrize("workers", [0, 1])
def test_on_a_cpu_a_batch_is_its_page(shards: ShardSet, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CudaCopies", lambda *_: pytest.fail("copied"))
    reference = run([shards], plan_of([shards]), 4)
    feed = feed_of(shards, workers)
    places = set()
    for expected in reference:
        batch = next(feed)
        feed.fetch()
        assert same(batch, expected)
        places.add(batch.frames.data_ptr())
    assert len(places) == (2 if workers else 1)


def test_an_error_of_the_next_batch_waits_until_it_is_asked_for(shards: ShardSet, monkeypatch: Any) -> None:
    (expected,) = run([shards], plan_of([shards]), 1)

    def failing(*_: Any) -> Iterator[Batch]:
        yield expected
        raise UserError("torn")

    monkeypatch.setattr(module, "make_loader", failing)
    feed = feed_of(shards, 0, LateCopies())
    assert same(next(feed), expected)
    feed.fetch()
    with pytest.raises(UserError, match="torn"):
        next(feed)


class FakeCuda:
    """What `CudaCopies` asks of torch.cuda, written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
        self.log: list[Any] = []
        log = self.log

        class Stream:
            def __init__(self, name: str) -> None:
                self.name = name

            def __enter__(self) -> None:
                log.append(f"on {self.name}")

            def __exit__(self, *_: object) -> None:
                log.append(f"off {self.name}")

            def wait_event(self, event: Any) -> None:
                log.append(f"{self.name} waits")

        class Event:
            def record(self, stream: Stream) -> None:
                log.append(f"{stream.name} records")

            def synchronize(self) -> None:
                log.append("host waits")

        class Runtime:
            def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
                log.append(("pin", address, size))
                return code

        monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream("copies"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("present"))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "cudart", Runtime)
        monkeypatch.setattr(Tensor, "pin_memory", lambda self: log.append("pinned copy") or self.clone())
        monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: log.append(f"kept for {stream.name}"))


def test_cuda_copies_pin_pages_once_and_order_the_streams(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    stream = PairStream([shards], plan_of([shards]), SAMPLING, tokenize, 0, 1)
    feed = Feed(stream, 2, 1, CPU, CudaCopies(CPU))
    for _ in range(3):
        next(feed)
    pins = [entry for entry in cuda.log if isinstance(entry, tuple)]
    pages = stream.pages[0][0].untyped_storage()
    assert pins == [("pin", pages.data_ptr(), pages.nbytes())]
    cuda.log.clear()
    next(feed)
    assert cuda.log == [
        *("host waits", "on copies", *["pinned copy"] * 3, "copies records", "off copies"),
        *("present waits", *["kept for present"] * 4),
    ]


def test_memory_that_cannot_be_pinned_ends_the_run(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, code=2)
    feed = feed_of(shards, 0, CudaCopies(CPU))
    with pytest.raises(Exception, match=r"cannot pin [\d,]+ bytes for batches \(error 2\)"):
        next(feed)
