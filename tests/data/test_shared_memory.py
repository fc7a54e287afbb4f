"""Batches on their way from loader processes: room for them, and errors that nobody swallows."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from glscl.data import clips, shared_memory
from glscl.data.gallery import Gallery
from glscl.data.loader import explain_dead_loaders
from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet
from glscl.data.shared_memory import check_room, gallery_bytes, handover_error, stream_bytes
from glscl.data.stream import PairStream, make_loader
from glscl.data.video import Clip, FrameSampling
from glscl.errors import UserError

SAMPLING = FrameSampling(max_frames=2, rate=1.0, size=32)
ONE = 2 * 3 * 32 * 32
FULL = RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")
Batches = Callable[[], Iterator[Any]]


def tokenize(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Nothing of the captions."""
    return torch.zeros(len(captions), 4, dtype=torch.int64), torch.zeros(len(captions), dtype=torch.bool)


@pytest.fixture(params=["training", "evaluation"])
def batches(request: pytest.FixtureRequest, make_shards: Callable[..., ShardSet]) -> Batches:
    """What reads with one loader process."""
    shard_set = make_shards(captions=[1] * 8, per_shard=4)

    def start() -> Iterator[Any]:
        if request.param == "evaluation":
            return Gallery(shard_set, 0, 8, SAMPLING, tokenize, 2).batches(1)
        plan = StreamPlan([shard_set.manifest], weights=[], global_batch=4, virtual_streams=1, captions="all", seed=0)
        return make_loader(PairStream([shard_set], plan, SAMPLING, tokenize, 0, 1), 1, prefetch=2)

    return start


def end_of(batches: Iterator[Any]) -> str:
    """Class and words of what reading ends with; without its traceback, in which the loader would live on."""
    try:
        next(batches)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FULL,
            r"\(/dev/shm of \S+ is full; RuntimeError: unable to .* \(28\)\): lower data.prefetch .*shm-size",
        ),
        (OSError(errno.ENOSPC, "No space left"), r"/dev/shm of \S+ is full; OSError: .*No space left.*shm-size"),
        (OSError(errno.EMFILE, "Too many open files"), r"\(OSError: .*Too many open files\): raise .*ulimit -n"),
    ],
)
def test_want_of_shared_memory_reaches_the_reader(
    error: Exception, said: str, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training when pages are made; in evaluation in the thread that sends, and without help it waits for ever."""

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", fail)
    assert re.fullmatch(f"UserError: a batch could not pass from its loader process .*{said}.*", end_of(batches()))


def test_what_cannot_be_pickled_reaches_the_reader(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "load_clip", lambda *_: Clip(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 1))
    monkeypatch.setattr("glscl.data.stream.repair_entry", lambda *_: lambda: None)
    monkeypatch.setattr("glscl.data.gallery.repair_entry", lambda *_: lambda: None)
    said = end_of(batches())
    assert re.match(r"UserError: a batch could not pass .* pickle .*: set data.loader_workers to 0", said), said


def test_what_the_reader_itself_meets(
    batches: Batches, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training's frames are not sent, so there is nothing to meet."""

    def fail(*_: object) -> None:
        raise RuntimeError("Too many open files. Communication with the workers is no longer possible.")

    monkeypatch.setattr(torch.UntypedStorage, "_new_shared_fd_cpu", fail)
    words = "" if "training" in request.node.name else r"UserError: .*Communication with the workers .*ulimit -n.*"
    assert re.fullmatch(words, end_of(batches()))


def test_a_bus_error_is_a_want_of_shared_memory(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "load_clip", lambda *_: os.kill(os.getpid(), signal.SIGBUS))
    said = end_of(batches())
    assert re.match(r"UserError: .*/dev/shm of \S+ is full; RuntimeError: DataLoader worker .*Bus error", said), said


def test_an_error_of_the_data_keeps_its_own_words() -> None:
    def parts() -> Iterator[int]:
        yield 1
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0. No space left in somebody's head")

    with pytest.raises(RuntimeError, match=r"^Caught .* head$"):
        list(explain_dead_loaders(parts(), None))


def test_what_batches_need() -> None:
    assert stream_bytes(10, SAMPLING, prefetch=2) == 30 * ONE
    assert gallery_bytes(1000, 32, 2, SAMPLING, 3.5) == 2 * 3 * 32 * ONE
    assert gallery_bytes(7, 32, 2, SAMPLING, 1) == 7 * ONE, "a small set is not read twice"
    assert gallery_bytes(7, 32, 0, SAMPLING, 1) == 0


def test_what_does_not_fit_is_refused(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 64 << 20)
    check_room(64 << 20, "2 training workers", "data.prefetch (2)")
    with pytest.raises(UserError) as caught:
        check_room((64 << 20) + 1, "2 training workers", "data.prefetch (2)")
    message = str(caught.value)
    assert message.startswith(
        f"/dev/shm of {os.uname().nodename} has 64 MiB free, and 2 training workers need up to 65"
    )
    assert "lower data.prefetch (2), set data.loader_workers to 0, or give the machine more" in message
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: None)
    check_room(1 << 60, "2 training workers", "data.prefetch (2)")


def test_an_evaluation_looks_before_it_reads(make_shards: Callable[..., ShardSet], monkeypatch: Any) -> None:
    shard_set = make_shards(captions=[1] * 4, per_shard=2)
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 4 * ONE - 1)
    with pytest.raises(UserError, match=r"1 loader processes of an evaluation .* lower evaluation.batch_size"):
        next(Gallery(shard_set, 0, 4, SAMPLING, tokenize, 2).batches(1))
    assert len(list(Gallery(shard_set, 0, 4, SAMPLING, tokenize, 2).batches(0))) == 2


def test_the_free_room_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    there = os.statvfs("/dev/shm")
    assert 0 < (shared_memory.free_bytes() or 0) <= there.f_blocks * there.f_frsize
    monkeypatch.setattr(shared_memory, "FOLDER", "/nowhere")
    assert shared_memory.free_bytes() is None


def test_errors_are_one_line() -> None:
    assert "\n" not in str(handover_error(RuntimeError("a\nb")))
