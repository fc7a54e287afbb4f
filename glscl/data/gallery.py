"""Read a test or held-out set in order, every video once, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from glscl.data.activity import ActivityTable, activity_writer
from glscl.data.clips import Sampling, read_clip, stack_clips
from glscl.data.features import FeatureSampling, read_texts
from glscl.data.frame_changes import FrameChange
from glscl.data.limits import VideoError
from glscl.data.loader import errors_as_items, explain_dead_loaders, raise_items, start_loader_worker
from glscl.data.quarantine import Entry, quarantine_entry, repair_entry
from glscl.data.shards import Sample, Shard, ShardSet
from glscl.data.shared_memory import GALLERY_PREFETCH, check_room, gallery_bytes
from glscl.data.stream import Tokenize
from glscl.data.video import Clip
from glscl.errors import UserError


@dataclass(slots=True)
class GalleryBatch:
    """Consecutive videos of a set with all their captions."""

    positions: list[int]  # (B,) index of each video in the set (manifest order)
    frames: Tensor  # (B, F, 3, S, S) uint8, zero where masked; or features (B, F, D)
    frame_mask: Tensor  # (B, F) bool
    text: tuple[Tensor, ...]
    """The captions of these videos in order: token ids (A, W) int64; or features (A, 1 + W, D), token mask (A, W)."""
    text_to_video: Tensor  # (A,) row of each caption's video in this batch
    samples: list[Sample]
    truncated: int  # captions cut to ``max_words`` tokens
    quarantined: list[Entry]
    repaired: list[Entry] = field(default_factory=list)
    bad: list[tuple[int, Sample]] = field(default_factory=list)
    """Position and sample of each of those that are quarantined."""


@dataclass(slots=True)
class _Video:
    """One video that could be read."""

    position: int
    shard: str  # name of its tar
    sample: Sample
    clip: Clip
    texts: Tensor | None  # features (C, 1 + W, D) of its captions, if they are stored
    token_mask: Tensor | None  # (C, W)
    truncated: int


class _BadVideo(NamedTuple):
    """One video that could not be read."""

    position: int
    sample: Sample
    entry: Entry


@dataclass(eq=False)
class Gallery(IterableDataset["GalleryBatch | UserError"]):
    """Videos ``first`` to ``last`` (exclusive, in manifest order) of a shard set, in batches of so many videos."""

    shard_set: ShardSet
    first: int
    last: int
    sampling: Sampling
    tokenize: Tokenize
    batch_size: int
    activity: ActivityTable | None = None
    """Where the reading processes note what they do; it has a row for each loader worker."""
    change: FrameChange | None = None
    """Of every video's frames; ``sampling`` is as the change has it."""

    def __iter__(self) -> Iterator[GalleryBatch | UserError]:
        return errors_as_items(self._read_batches())

    def _read_batches(self) -> Iterator[GalleryBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        note = activity_writer(self.activity, worker)
        cuts = np.linspace(self.first, self.last, workers + 1).round().astype(int)
        pending: list[_Video] = []
        bad: list[_BadVideo] = []
        for result in self._read(int(cuts[worker]), int(cuts[worker + 1]), note):
            if isinstance(result, _BadVideo):
                bad.append(result)
            else:
                pending.append(result)
            if len(pending) == self.batch_size:
                batch = self._collate(pending, bad)
                note("")
                yield batch
                pending, bad = [], []
        note("")
        if pending or bad:
            yield self._collate(pending, bad)

    def _read(self, first: int, last: int, note: Callable[[str], None]) -> Iterator[_Video | _BadVideo]:
        """Yield each video, or what is wrong with it."""
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
                        try:
                            yield self._read_video(shard, row, before + row, entry.name)
                        except VideoError as error:
                            entry_of_list = quarantine_entry(self.shard_set, index, sample, str(error))
                            yield _BadVideo(before + row, sample, entry_of_list)
            before += entry.samples

    def _read_video(self, shard: Shard, row: int, position: int, name: str) -> _Video:
        sample, sampling = shard.samples[row], self.sampling
        clip = read_clip(shard, row, sampling)
        if self.change is not None:
            clip = replace(clip, frames=self.change.apply(clip.frames, sample.video_id))
        if not isinstance(sampling, FeatureSampling) or not sampling.words:
            return _Video(position, name, sample, clip, None, None, 0)
        captions = range(len(sample.captions))
        texts = torch.empty(len(captions), *sampling.text_shape, dtype=sampling.dtype)
        token_mask, truncated = read_texts(shard, row, captions, sampling, texts)
        return _Video(position, name, sample, clip, texts, token_mask, truncated)

    def _collate(self, videos: list[_Video], bad: list[_BadVideo]) -> GalleryBatch:
        frames, mask = stack_clips([video.clip for video in videos], self.sampling)
        text, truncated = self._collate_texts(videos)
        domain = self.shard_set.manifest.domain
        return GalleryBatch(
            positions=[video.position for video in videos],
            frames=frames,
            frame_mask=mask,
            text=text,
            text_to_video=torch.tensor([row for row, v in enumerate(videos) for _ in v.sample.captions]).long(),
            samples=[video.sample for video in videos],
            truncated=truncated,
            quarantined=[video.entry for video in bad],
            repaired=[repair_entry(domain, v.shard, v.sample, v.clip) for v in videos if v.clip.replaced],
            bad=[(video.position, video.sample) for video in bad],
        )

    def _collate_texts(self, videos: list[_Video]) -> tuple[tuple[Tensor, ...], int]:
        """What the model is given of all captions, and how many of them were cut."""
        stored = [(v.texts, v.token_mask) for v in videos if v.texts is not None and v.token_mask is not None]
        if stored:
            texts, masks = zip(*stored, strict=True)
            return (torch.cat(texts), torch.cat(masks)), sum(video.truncated for video in videos)
        token_ids, truncated = self.tokenize([caption for video in videos for caption in video.sample.captions])
        return (token_ids,), int(truncated.sum())

    def batches(self, loader_workers: int) -> Iterator[GalleryBatch]:
        """Iterate with ``loader_workers`` decoding processes (0 decodes in this one); order of batches may vary."""
        captions = self.shard_set.manifest.pairs / self.shard_set.manifest.videos
        needed = gallery_bytes(self.last - self.first, self.batch_size, loader_workers, self.sampling, captions)
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
