"""The training stream: reads the pairs that `StreamPlan` orders from shards, decodes them and makes batches.

Resuming needs the step number alone: the plan says where every virtual stream stands, and each opens the one shard it
stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from glscl.data.activity import ActivityTable, activity_writer
from glscl.data.augment import ClipAugmentation
from glscl.data.limits import VideoError
from glscl.data.loader import errors_as_items, explain_dead_loaders, raise_items, start_loader_worker
from glscl.data.plan import Slot, StreamPlan
from glscl.data.quarantine import Entry, UnusableSetError, quarantine_entry, repair_entry
from glscl.data.shards import Sample, Shard, ShardSet
from glscl.data.video import Clip, FrameSampling, load_clip
from glscl.errors import UserError

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions to (token ids (A, W) int64, truncated (A,) bool)."""

_Place = tuple[int, int, int]
"""Domain, shard, and position in the shard of a video."""


@dataclass(slots=True)
class Batch:
    """One rank's pairs of a global batch, or one loader worker's share of them.

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
    def concatenate(shares: Sequence[Batch]) -> Batch:
        """Join the loader workers' shares in stream order."""
        if len(shares) == 1:
            return shares[0]
        return Batch(
            torch.cat([share.token_ids for share in shares]),
            torch.cat([share.frames for share in shares]),
            torch.cat([share.frame_mask for share in shares]),
            torch.cat([share.video_ids for share in shares]),
            list(chain.from_iterable(share.names for share in shares)),
            sum(share.truncated for share in shares),
            list(chain.from_iterable(share.quarantined for share in shares)),
            list(chain.from_iterable(share.repaired for share in shares)),
        )


class PairStream(IterableDataset["Batch | UserError"]):
    """Endless batches of one rank, from ``start_step`` on; in a loader process, that worker's share of each.

    Args:
        shard_sets: the training domains, in the order of the plan's manifests.
        plan: which pair stands where.
        sampling: frames per video.
        tokenize: captions to token ids.
        rank: of this process.
        world_size: number of ranks.
        start_step: global step of the first batch.
        cache_dir: folder of the copies of remote shards while they are read.
        activity: where the reading processes note what they do; it has a row for each loader worker.
        augmentation: None leaves pictures as they are.
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
        activity: ActivityTable | None = None,
        augmentation: ClipAugmentation | None = None,
    ) -> None:
        super().__init__()
        self.activity = activity
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
        """Return the frame sampling of the pair at a slot, with its augmentation."""
        if self.augmentation is None:
            return self.sampling
        return replace(self.sampling, augment=self.augmentation.of(slot.epoch, name))

    def __iter__(self) -> Iterator[Batch | UserError]:
        return errors_as_items(self._read_batches())

    def _read_batches(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        streams = self.plan.owned(self.rank, self.world_size, worker, workers)
        note = activity_writer(self.activity, worker)
        readers = {stream: _StreamReader(self, stream, note) for stream in streams}
        reported: set[_Place] = set()
        step = self.start_step
        try:
            while True:
                items = [item for stream in streams for item in readers[stream].read(step)]
                batch = self._collate(items, reported)
                note("")
                yield batch
                step += 1
        finally:
            for reader in readers.values():
                reader.close()

    def _collate(self, items: list[_Item], reported: set[_Place]) -> Batch:
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
    quarantined: list[tuple[_Place, Entry]]
    repaired: tuple[_Place, Entry] | None


class _StreamReader:
    """Reads one virtual stream, and keeps the shard open in which it stands."""

    def __init__(self, stream: PairStream, number: int, note: Callable[[str], None]) -> None:
        self._stream = stream
        self._number = number
        self._note = note
        self._opened: tuple[int, int] | None = None
        self._shard: Shard | None = None
        self._bad: dict[_Place, Entry] = {}

    def read(self, step: int) -> Iterator[_Item]:
        for slot in self._stream.plan.slots(step, self._number):
            yield self._read_slot(slot)

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard = self._opened = None

    def _open(self, slot: Slot) -> Shard:
        if self._opened != (slot.domain, slot.shard) or self._shard is None:
            self.close()
            self._note(f"opening {self._stream.shard_sets[slot.domain].shard_uri(slot.shard)}")
            self._shard = Shard(self._stream.shard_sets[slot.domain], slot.shard, self._stream.cache_dir)
            self._opened = (slot.domain, slot.shard)
            self._stream.opened.append((self._number, slot.shard))
        return self._shard

    def _read_slot(self, slot: Slot) -> _Item:
        """Read the pair at a slot, or the first usable one after it; a bad video is tried once."""
        bad: list[tuple[_Place, Entry]] = []
        for candidate in chain([slot], self._stream.plan.substitutes(slot)):
            item = self._try(candidate, bad)
            if item is not None:
                item.quarantined = bad
                return item
        domain = self._stream.shard_sets[slot.domain]
        error = UnusableSetError(f"{domain.uri}: no video of domain '{domain.manifest.domain}' can be decoded")
        error.quarantined = list(dict(bad).values())
        raise error

    def _try(self, slot: Slot, bad: list[tuple[_Place, Entry]]) -> _Item | None:
        """Read the pair at a slot; None if its video is bad, which is added to ``bad``."""
        shard = self._open(slot)
        position, caption = self._find_pair(slot, shard)
        sample = shard.samples[position]
        shard_set = self._stream.shard_sets[slot.domain]
        name = f"{shard_set.manifest.domain}/{sample.video_id}#{caption}"
        place = (slot.domain, slot.shard, position)
        if place not in self._bad:
            try:
                clip = self._decode(slot, shard, position, sample, name)
            except VideoError as error:
                self._bad[place] = quarantine_entry(shard_set, slot.shard, sample, str(error))
        if place in self._bad:
            bad.append((place, self._bad[place]))
            return None
        repaired = None
        if clip.replaced:
            shard_name = shard_set.manifest.shards[slot.shard].name
            repaired = place, repair_entry(shard_set.manifest.domain, shard_name, sample, clip)
        return _Item(clip.frames, sample.captions[caption], video_number(*place), name, [], repaired)

    def _find_pair(self, slot: Slot, shard: Shard) -> tuple[int, int]:
        """Position of the video in its shard, and number of its caption."""
        plan = self._stream.plan
        index = plan.pair_in_shard(slot)
        if plan.captions == "all":
            return shard.pairs[index]
        return index, plan.caption_of(slot, index, len(shard.samples[index].captions))

    def _decode(self, slot: Slot, shard: Shard, position: int, sample: Sample, name: str) -> Clip:
        domain = self._stream.shard_sets[slot.domain].manifest.domain
        self._note(f"decoding {domain}/{sample.video_id} (sample {sample.key} of {shard.uri})")
        return load_clip(shard.video(position), self._stream.sampling_of(slot, name), sample.start, sample.end)


def video_number(domain: int, shard: int, position: int) -> int:
    """Number a video: two pairs have the same number exactly when they show the same video."""
    return (domain << 48) | (shard << 24) | position


def make_loader(stream: PairStream, loader_workers: int, prefetch: int) -> Iterator[Batch]:
    """Iterate over a rank's batches, joining the shares of its loader workers in stream order.

    Torch hands out the items of iterable data sets in strict rotation over the workers, so the next ``loader_workers``
    items are the shares of one batch. Videos are decoded ``prefetch`` batches ahead.
    """
    stream.plan.check_world(stream.world_size, loader_workers)
    loader: DataLoader[Batch | UserError] = DataLoader(
        stream,
        batch_size=None,
        num_workers=loader_workers,
        prefetch_factor=prefetch if loader_workers else None,
        worker_init_fn=start_loader_worker,
        generator=torch.Generator(),  # or starting to read would move the run's, and a resumed run starts again
    )
    shares: list[Batch] = []
    for share in raise_items(explain_dead_loaders(loader, stream.activity)):
        shares.append(share)
        complete = len(shares) == max(1, loader_workers)
        if stream.activity:
            stream.activity.awaited = 0 if complete else len(shares)
        if complete:
            yield Batch.concatenate(shares)
            shares = []
