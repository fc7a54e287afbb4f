"""The training stream: what `StreamPlan` orders, read from shards, decoded and batched.

Resuming needs the step number alone: the arithmetic says where every virtual stream stands, and each opens the one
shard it stands in.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from glscl.data.activity import ActivityTable, activity_writer
from glscl.data.augment import ClipAugmentation
from glscl.data.limits import VideoError
from glscl.data.plan import Slot, StreamPlan
from glscl.data.quarantine import UnusableSetError, quarantine_entry
from glscl.data.repairs import repair_entry
from glscl.data.shards import Shard, ShardSet
from glscl.data.shared_memory import handover_error, report_lost_batches
from glscl.data.video import FrameSampling, load_clip
from glscl.errors import BrokenRunError, UserError

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions to (token ids (A, W) int64, truncated (A,) bool)."""


_Part = TypeVar("_Part")
_DEAD = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (.*)", re.DOTALL)
_HANDOVER = re.compile("Too many open files|unable to mmap|shared memory|No space left")


@dataclass(slots=True)
class Batch:
    """One rank's contiguous part of a global batch.

    Attributes:
        token_ids: (A, W) int64.
        frames: (A, F, 3, S, S) uint8, zero where masked.
        frame_mask: (A, F) bool, True = real.
        video_ids: (A,) int64; equal numbers are the same video, whose captions are all positives.
        names: ``domain/video_id#caption`` of every pair, for logs and tests.
        truncated: captions cut to ``max_words`` tokens.
        quarantined: videos met for the first time by this loader that could not be used (`quarantine_entry`).
        repaired: videos met for the first time by this loader some of whose frames stand for pictures that do not
            decode (`repair_entry`).
    """

    token_ids: Tensor
    frames: Tensor
    frame_mask: Tensor
    video_ids: Tensor
    names: list[str]
    truncated: int = 0
    quarantined: list[dict[str, str]] = field(default_factory=list)
    repaired: list[dict[str, str]] = field(default_factory=list)

    @staticmethod
    def concatenate(parts: Sequence[Batch]) -> Batch:
        """Join the loader workers' parts in stream order."""
        if len(parts) == 1:
            return parts[0]
        return Batch(
            torch.cat([part.token_ids for part in parts]),
            torch.cat([part.frames for part in parts]),
            torch.cat([part.frame_mask for part in parts]),
            torch.cat([part.video_ids for part in parts]),
            [name for part in parts for name in part.names],
            sum(part.truncated for part in parts),
            [entry for part in parts for entry in part.quarantined],
            [entry for part in parts for entry in part.repaired],
        )


class PairStream(IterableDataset["Batch | UserError"]):
    """Endless parts of global batches for one rank, from ``start_step`` on.

    Args:
        shard_sets: the training domains, in the order of the plan's manifests.
        plan: the order.
        sampling: frames per video.
        tokenize: captions to token ids.
        rank: this rank.
        world_size: number of ranks.
        start_step: global step of the first batch.
        cache_dir: where copies of remote shards live while they are read.
        board: where the processes that read say what they do; it has a place for each loader worker.
        augmentation: see `ClipAugmentation`; None leaves pictures as they are.
    """

    def __init__(
        self,
        shard_sets: Sequence[ShardSet],
        plan: StreamPlan,
        sampling: FrameSampling,
        tokenize: Tokenize,
        rank: int,
        world_size: int,
        start_step: int = 0,
        cache_dir: str | None = None,
        board: ActivityTable | None = None,
        augmentation: ClipAugmentation | None = None,
    ) -> None:
        super().__init__()
        self.board = board
        self.augmentation = augmentation
        self.shard_sets = tuple(shard_sets)
        self.plan = plan
        self.sampling = sampling
        self.tokenize = tokenize
        self.rank, self.world_size = rank, world_size
        self.start_step = start_step
        self.cache_dir = cache_dir
        self.opened: list[tuple[int, int]] = []
        """(stream, shard) in the order opened, for tests and diagnosis (of this process)."""

    def sampling_of(self, slot: Slot, name: str) -> FrameSampling:
        """How the frames of the pair at a slot are taken."""
        if self.augmentation is None:
            return self.sampling
        return replace(self.sampling, augment=self.augmentation.of(slot.epoch, name))

    def __iter__(self) -> Iterator[Batch | UserError]:
        return errors_as_items(self._parts())

    def _parts(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        streams = self.plan.owned(self.rank, self.world_size, worker, workers)
        say = activity_writer(self.board, worker)
        readers = {stream: _StreamReader(self, stream, say) for stream in streams}
        reported: set[tuple[int, int, int]] = set()
        step = self.start_step
        try:
            while True:
                items = [item for stream in streams for item in readers[stream].read(step)]
                batch = self._collate(items, reported)
                say("")
                yield batch
                step += 1
        finally:
            for reader in readers.values():
                reader.close()

    def _collate(self, items: list[_Item], reported: set[tuple[int, int, int]]) -> Batch:
        token_ids, truncated = self.tokenize([item.caption for item in items])
        size, count = self.sampling.size, self.sampling.max_frames
        frames = torch.zeros(len(items), count, 3, size, size, dtype=torch.uint8)
        mask = torch.zeros(len(items), count, dtype=torch.bool)
        quarantined, repaired = [], []
        for row, item in enumerate(items):
            frames[row, : len(item.frames)] = item.frames
            mask[row, : len(item.frames)] = True
            for place, entry in item.quarantined:
                if place not in reported:
                    reported.add(place)
                    quarantined.append(entry)
            if item.repaired is not None and item.repaired[0] not in reported:
                reported.add(item.repaired[0])
                repaired.append(item.repaired[1])
        video_ids = torch.tensor([item.video_number for item in items], dtype=torch.int64)
        names = [item.name for item in items]
        return Batch(token_ids, frames, mask, video_ids, names, int(truncated.sum()), quarantined, repaired)


@dataclass(slots=True)
class _Item:
    frames: Tensor
    caption: str
    video_number: int
    name: str
    quarantined: list[tuple[tuple[int, int, int], dict[str, str]]]
    repaired: tuple[tuple[int, int, int], dict[str, str]] | None


class _StreamReader:
    """One virtual stream: keeps the shard it stands in open."""

    def __init__(self, stream: PairStream, number: int, say: Callable[[str], None]) -> None:
        self._stream = stream
        self._number = number
        self._say = say
        self._at: tuple[int, int] | None = None
        self._shard: Shard | None = None
        self._bad: dict[tuple[int, int, int], dict[str, str]] = {}

    def read(self, step: int) -> Iterator[_Item]:
        for slot in self._stream.plan.slots(step, self._number):
            yield self._item(slot)

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard = self._at = None

    def _open(self, slot: Slot) -> Shard:
        if self._at != (slot.domain, slot.shard) or self._shard is None:
            self.close()
            self._say(f"opening {self._stream.shard_sets[slot.domain].shard_uri(slot.shard)}")
            self._shard = Shard(self._stream.shard_sets[slot.domain], slot.shard, self._stream.cache_dir)
            self._at = (slot.domain, slot.shard)
            self._stream.opened.append((self._number, slot.shard))
        return self._shard

    def _item(self, slot: Slot) -> _Item:
        """The pair at a slot, or the first usable one after it; a bad video is tried once."""
        met: list[tuple[tuple[int, int, int], dict[str, str]]] = []
        item = self._try(slot, met)
        if item is None:
            for substitute in self._stream.plan.substitutes(slot):
                item = self._try(substitute, met)
                if item is not None:
                    break
        if item is None:
            domain = self._stream.shard_sets[slot.domain]
            error = UnusableSetError(f"{domain.uri}: no video of domain '{domain.manifest.domain}' can be decoded")
            error.quarantined = list(dict(met).values())
            raise error
        item.quarantined = met
        return item

    def _try(self, slot: Slot, met: list[tuple[tuple[int, int, int], dict[str, str]]]) -> _Item | None:
        plan, stream = self._stream.plan, self._stream
        shard = self._open(slot)
        index = plan.pair_in_shard(slot)
        if plan.captions == "all":
            position, caption = shard.pairs[index]
        else:
            position, caption = index, plan.caption_of(slot, index, len(shard.samples[index].captions))
        sample = shard.samples[position]
        name = f"{stream.shard_sets[slot.domain].manifest.domain}/{sample.video_id}#{caption}"
        place = (slot.domain, slot.shard, position)
        entry = self._bad.get(place)
        if entry is None:
            domain = stream.shard_sets[slot.domain].manifest.domain
            self._say(f"decoding {domain}/{sample.video_id} (sample {sample.key} of {shard.uri})")
            try:
                sampling = stream.sampling_of(slot, name)
                clip = load_clip(shard.video(position), sampling, sample.start, sample.end)
            except VideoError as error:
                entry = quarantine_entry(stream.shard_sets[slot.domain], slot.shard, sample, str(error))
                self._bad[place] = entry
        if entry is not None:
            met.append((place, entry))
            return None
        repaired = None
        if clip.replaced:
            manifest = stream.shard_sets[slot.domain].manifest
            repaired = place, repair_entry(manifest.domain, manifest.shards[slot.shard].name, sample, clip)
        return _Item(clip.frames, sample.captions[caption], video_number(*place), name, [], repaired)


def video_number(domain: int, shard: int, position: int) -> int:
    """A number that two pairs share exactly when they show the same video."""
    return (domain << 48) | (shard << 24) | position


def make_loader(stream: PairStream, loader_workers: int, prefetch: int) -> Iterator[Batch]:
    """Iterate over a rank's batches, joining the parts of its loader workers in stream order.

    Torch hands out the items of iterable data sets in strict rotation over the workers, so the next ``loader_workers``
    items are the parts of one batch. Videos are decoded ``prefetch`` batches ahead.
    """
    stream.plan.check_world(stream.world_size, loader_workers)
    loader: DataLoader[Any] = DataLoader(
        stream,
        batch_size=None,
        num_workers=loader_workers,
        prefetch_factor=prefetch if loader_workers else None,
        worker_init_fn=start_loader_worker,
        generator=torch.Generator(),  # or starting to read would move the run's, and a resumed run starts again
    )
    parts: list[Batch] = []
    for part in raise_items(explain_dead_loaders(loader, stream.board)):
        parts.append(part)
        if len(parts) == max(1, loader_workers):
            if stream.board:
                stream.board.awaited = 0
            yield Batch.concatenate(parts)
            parts = []
        elif stream.board:
            stream.board.awaited = len(parts)


def errors_as_items(parts: Iterator[_Part]) -> Iterator[_Part | UserError]:
    """In a loader process, end with the error as an item: torch would pack a traceback into its message."""
    try:
        yield from parts
    except UserError as error:
        if get_worker_info() is None:
            raise
        yield error


def raise_items(parts: Iterable[_Part | UserError]) -> Iterator[_Part]:
    """Undo `errors_as_items` in the process that reads the loader."""
    for part in parts:
        if isinstance(part, UserError):
            try:
                raise part
            finally:
                del part  # or error and frame hold each other, and the loader's processes live until they are collected
        yield part


def explain_dead_loaders(parts: Iterable[_Part], board: ActivityTable | None) -> Iterator[_Part]:
    """Say what a loader process was doing when it died, which torch does not know.

    Raises:
        BrokenRunError: a loader process was killed (by the kernel for its memory, or by a fault in native code).
        UserError: there is no room for a batch on its way, or too many files are open.
    """
    try:
        yield from parts
    except RuntimeError as error:
        # One error or two, whether or not torch was waiting: "is killed by signal: ..." and "exited unexpectedly".
        causes = [match for one in (error.__cause__, error) if (match := _DEAD.match(str(one)))]
        if not causes:
            if not _HANDOVER.search(str(error)) or str(error).startswith("Caught "):  # that is the data set's own
                raise
            raise handover_error(error) from error
        dead = causes[0]
        if "Bus error" in dead[2]:
            raise handover_error(RuntimeError(dead[0])) from error
        pids = {int(pid) for pid in dead[1].split(",")}
        doing = "; ".join(str(one) for one in (board.read() if board else []) if one.pid in pids)
        how = dead[2].split(". ")[0].rstrip(".")
        raise BrokenRunError(
            f"a loader process (pid {dead[1]}) {how}; last it noted: {doing or 'nothing'}. If memory ran out, lower "
            f"data.loader_workers or data.prefetch; if it is always the same video, take it out of the shards"
        ) from error


def start_loader_worker(_: int) -> None:
    """What a loader process does first: one thread, and no longer life than the process that started it."""
    torch.set_num_threads(1)
    report_lost_batches()
    if sys.platform == "linux":  # torch's own check runs between batches, so never in a process that hangs
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
