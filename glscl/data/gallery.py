"""Read a test or held-out set in order, every video once, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from glscl.data.activity import ActivityTable, activity_writer
from glscl.data.limits import VideoError
from glscl.data.loader import errors_as_items, explain_dead_loaders, raise_items, start_loader_worker
from glscl.data.quarantine import Entry, quarantine_entry, repair_entry
from glscl.data.shards import Sample, Shard, ShardSet
from glscl.data.shared_memory import GALLERY_PREFETCH, check_room, gallery_bytes
from glscl.data.stream import Tokenize
from glscl.data.video import Clip, FrameSampling, load_clip
from glscl.errors import UserError


@dataclass(slots=True)
class GalleryBatch:
    """Consecutive videos of a set with all their captions."""

    positions: list[int]  # (B,) index of each video in the set (manifest order)
    frames: Tensor  # (B, F, 3, S, S) uint8, zero where masked
    frame_mask: Tensor  # (B, F) bool
    token_ids: Tensor  # (A, W) int64, the captions of these videos in order
    text_to_video: Tensor  # (A,) row of each caption's video in this batch
    samples: list[Sample]
    truncated: int  # captions cut to ``max_words`` tokens
    quarantined: list[Entry]
    repaired: list[Entry] = field(default_factory=list)


@dataclass(eq=False)
class Gallery(IterableDataset["GalleryBatch | UserError"]):
    """Videos ``first`` to ``last`` (exclusive, in manifest order) of a shard set, in batches of so many videos."""

    shard_set: ShardSet
    first: int
    last: int
    sampling: FrameSampling
    tokenize: Tokenize
    batch_size: int
    activity: ActivityTable | None = None
    """Where the reading processes note what they do; it has a row for each loader worker."""

    def __iter__(self) -> Iterator[GalleryBatch | UserError]:
        return errors_as_items(self._read_batches())

    def _read_batches(self) -> Iterator[GalleryBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        note = activity_writer(self.activity, worker)
        cuts = np.linspace(self.first, self.last, workers + 1).round().astype(int)
        pending: list[tuple[int, Sample, Tensor]] = []
        quarantined: list[Entry] = []
        repaired: list[Entry] = []
        for position, shard, sample, result in self._read(int(cuts[worker]), int(cuts[worker + 1]), note):
            if isinstance(result, dict):
                quarantined.append(result)
            else:
                pending.append((position, sample, result.frames))
                if result.replaced:
                    repaired.append(repair_entry(self.shard_set.manifest.domain, shard, sample, result))
            if len(pending) == self.batch_size:
                batch = self._collate(pending, quarantined, repaired)
                note("")
                yield batch
                pending, quarantined, repaired = [], [], []
        note("")
        if pending or quarantined:
            yield self._collate(pending, quarantined, repaired)

    def _read(
        self, first: int, last: int, note: Callable[[str], None]
    ) -> Iterator[tuple[int, str, Sample, Clip | Entry]]:
        """Yield each video's position, the name of its shard, and its frames or what is wrong with it."""
        manifest = self.shard_set.manifest
        before = 0
        for index, entry in enumerate(manifest.shards):
            begin, end = max(first, before), min(last, before + entry.samples)
            if begin < end:
                note(f"opening {self.shard_set.shard_uri(index)}")
                with closing(Shard(self.shard_set, index)) as shard:
                    for row in range(begin - before, end - before):
                        sample = shard.samples[row]
                        note(f"decoding {manifest.domain}/{sample.video_id} (sample {sample.key} of {shard.uri})")
                        result: Clip | Entry
                        try:
                            result = load_clip(shard.video(row), self.sampling, sample.start, sample.end)
                        except VideoError as error:
                            result = quarantine_entry(self.shard_set, index, sample, str(error))
                        yield before + row, entry.name, sample, result
            before += entry.samples

    def _collate(
        self, items: list[tuple[int, Sample, Tensor]], quarantined: list[Entry], repaired: list[Entry]
    ) -> GalleryBatch:
        size, count = self.sampling.size, self.sampling.max_frames
        frames = torch.zeros(len(items), count, 3, size, size, dtype=torch.uint8)
        mask = torch.zeros(len(items), count, dtype=torch.bool)
        for row, (_, _, pictures) in enumerate(items):
            frames[row, : len(pictures)] = pictures
            mask[row, : len(pictures)] = True
        samples = [sample for _, sample, _ in items]
        token_ids, truncated = self.tokenize([caption for sample in samples for caption in sample.captions])
        owners = torch.tensor([row for row, sample in enumerate(samples) for _ in sample.captions], dtype=torch.int64)
        positions = [position for position, _, _ in items]
        truncations = int(truncated.sum())
        return GalleryBatch(positions, frames, mask, token_ids, owners, samples, truncations, quarantined, repaired)

    def batches(self, loader_workers: int) -> Iterator[GalleryBatch]:
        """Iterate with ``loader_workers`` decoding processes (0 decodes in this one); order of batches may vary."""
        needed = gallery_bytes(self.last - self.first, self.batch_size, loader_workers, self.sampling)
        check_room(needed, f"{loader_workers} loader processes of an evaluation", "evaluation.batch_size")
        loader: DataLoader[GalleryBatch | UserError] = DataLoader(
            self,
            batch_size=None,
            num_workers=loader_workers,
            prefetch_factor=GALLERY_PREFETCH if loader_workers else None,
            worker_init_fn=start_loader_worker,
            generator=torch.Generator(),  # the run's stays unmoved
        )
        yield from raise_items(explain_dead_loaders(loader, self.activity))
