"""The training stream: reads the pairs that `StreamPlan` orders from shards, decodes them and makes batches.

Resuming needs the step number alone: the plan says where every virtual stream stands, and each opens the one shard it
stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, cycle

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from glscl.data.activity import ActivityTable, activity_writer
from glscl.data.augment import ClipAugmentation
from glscl.data.clips import ClipCache, Place, Sampling, read_clip
from glscl.data.features import FeatureSampling, read_texts
from glscl.data.limits import VideoError
from glscl.data.loader import errors_as_items, explain_dead_loaders, raise_items, start_loader_worker
from glscl.data.plan import Slot, StreamPlan
from glscl.data.quarantine import Entry, UnusableSetError, quarantine_entry, repair_entry
from glscl.data.shards import Shard, ShardSet
from glscl.data.shared_memory import handover_error
from glscl.data.subset import Integers
from glscl.errors import UserError

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions to (token ids (A, W) int64, truncated (A,) bool)."""
Page = tuple[Tensor, Tensor]
"""Room for the frames of a batch, (A, F, 3, S, S) or features (A, F, D); and for features of texts, (A, 1 + W, D)."""


@dataclass(slots=True)
class Batch:
    """One rank's pairs of a global batch."""

    text: tuple[Tensor, ...]  # token ids (A, W) int64; or features (A, 1 + W, D) with their token mask (A, W)
    frames: Tensor  # (A, F, 3, S, S) uint8, zero where masked; or features (A, F, D)
    frame_mask: Tensor  # (A, F) bool, True = real
    video_ids: Tensor  # (A,) int64; equal numbers are the same video, whose captions are all positives
    names: list[str]  # ``domain/video_id#caption`` of every pair, for logs and tests
    truncated: int = 0  # captions cut to ``max_words`` tokens
    quarantined: list[Entry] = field(default_factory=list)
    """Videos met for the first time by this loader that could not be used (`quarantine_entry`)."""
    repaired: list[Entry] = field(default_factory=list)
    """Videos met for the first time by this loader some of whose frames stand for others (`repair_entry`)."""

    @staticmethod
    def of(shares: Sequence[Share], page: Page) -> Batch:
        """Build the batch of all loader workers' shares, in stream order, and of the page that they have written."""
        frames, texts = page
        counts = np.concatenate([share.counts for share in shares])
        words = torch.from_numpy(np.concatenate([share.words for share in shares]))
        return Batch(
            (texts, words) if texts.numel() else (words,),
            frames,
            torch.from_numpy(np.arange(frames.shape[1]) < counts[:, None]),
            torch.from_numpy(np.concatenate([share.video_ids for share in shares])),
            list(chain.from_iterable(share.names for share in shares)),
            sum(share.truncated for share in shares),
            list(chain.from_iterable(share.quarantined for share in shares)),
            list(chain.from_iterable(share.repaired for share in shares)),
        )


@dataclass(slots=True)
class Share:
    """One loader worker's part of a batch without its frames and features, which lie in the pages.

    Arrays, not tensors: torch would open a file in shared memory for each.
    """

    words: Integers | npt.NDArray[np.bool_]  # (A, W) token ids; of features, which tokens are real
    counts: Integers  # (A,) real frames of each row
    video_ids: Integers  # (A,)
    names: list[str]
    truncated: int
    quarantined: list[Entry]
    repaired: list[Entry]


class PairStream(IterableDataset["Share | UserError"]):
    """Endless batches of one rank, from ``start_step`` on; in a loader process, that worker's share of each.

    Frames and features are read into ``pages``, the place in memory of each batch on its way, in turn.

    Args:
        shard_sets: the training domains, in the order of the plan's manifests.
        plan: which pair stands where.
        sampling: what is taken of a sample.
        tokenize: captions to token ids.
        rank: of this process.
        world_size: number of ranks.
        start_step: global step of the first batch.
        cache_dir: folder of the copies of remote shards while they are read.
        activity: where the reading processes note what they do; it has a row for each loader worker.
        augmentation: None leaves pictures as they are.
        cache_mb: megabytes of decoded clips that each reading process keeps; none where they are augmented.
    """

    def __init__(
        self,
        shard_sets: Sequence[ShardSet],
        plan: StreamPlan,
        sampling: Sampling,
        tokenize: Tokenize,
        rank: int,
        world_size: int,
        start_step: int = 0,
        cache_dir: str | None = None,
        activity: ActivityTable | None = None,
        augmentation: ClipAugmentation | None = None,
        cache_mb: int = 0,
    ) -> None:
        super().__init__()
        self.cache = ClipCache(0 if augmentation or isinstance(sampling, FeatureSampling) else cache_mb << 20)
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
        self.pages: list[Page] = []
        """Room for what is read of the batches on their way."""

    @property
    def _streams_of_rank(self) -> range:
        return self.plan.owned(self.rank, self.world_size, 0, 1)

    def make_pages(self, count: int, shared: bool) -> None:
        """Make the pages, which are used in turn; ``shared`` ones are written to by loader processes.

        Raises:
            UserError: there is not enough shared memory.
        """
        pairs = self.plan.pairs_per_stream_step * len(self._streams_of_rank)
        sampling = self.sampling
        shapes = (sampling.max_frames, *sampling.frame_shape), sampling.text_shape
        frames, texts = (torch.empty(count, pairs, *shape, dtype=sampling.dtype) for shape in shapes)
        try:
            for tensor in (frames, texts):
                if shared and tensor.numel():
                    tensor.share_memory_()
        except (RuntimeError, OSError) as error:
            raise handover_error(error) from error
        self.pages = list(zip(frames, texts, strict=True))

    def sampling_of(self, slot: Slot, name: str) -> Sampling:
        """Return the sampling of the pair at a slot, with its augmentation."""
        if self.augmentation is None or isinstance(self.sampling, FeatureSampling):
            return self.sampling
        return replace(self.sampling, augment=self.augmentation.of(slot.epoch, name))

    def __iter__(self) -> Iterator[Share | UserError]:
        return errors_as_items(self._read_shares())

    def _read_shares(self) -> Iterator[Share]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        streams = self.plan.owned(self.rank, self.world_size, worker, workers)
        note = activity_writer(self.activity, worker)
        readers = {stream: _StreamReader(self, stream, note) for stream in streams}
        reported: set[Place] = set()
        first = (streams.start - self._streams_of_rank.start) * self.plan.pairs_per_stream_step
        try:
            for number in count():
                frames, texts = self.pages[number % len(self.pages)]
                rows = zip(frames[first:], texts[first:], strict=True)
                items = [
                    readers[stream].read(slot, next(rows))
                    for stream in streams
                    for slot in self.plan.slots(self.start_step + number, stream)
                ]
                share = self._collate(items, reported)
                note("")
                yield share
        finally:
            for reader in readers.values():
                reader.close()

    def _collate(self, items: list[_Item], reported: set[Place]) -> Share:
        words, truncated = self._words(items)
        quarantined, repaired = [], []
        for item in items:
            for place, entry in item.quarantined:
                if place not in reported:
                    reported.add(place)
                    quarantined.append(entry)
            if item.repaired is not None and item.repaired[0] not in reported:
                reported.add(item.repaired[0])
                repaired.append(item.repaired[1])
        return Share(
            words.numpy(),
            np.array([item.frames for item in items]),
            np.array([item.video_number for item in items]),
            [item.name for item in items],
            truncated,
            quarantined,
            repaired,
        )

    def _words(self, items: list[_Item]) -> tuple[Tensor, int]:
        """Token ids, or the token masks of features, and how many captions were cut."""
        masks = [item.token_mask for item in items if item.token_mask is not None]
        if masks:
            return torch.stack(masks), sum(item.truncated for item in items)
        token_ids, cut = self.tokenize([item.caption for item in items])
        return token_ids, int(cut.sum())


@dataclass(slots=True)
class _Item:
    frames: int
    caption: str
    token_mask: Tensor | None  # of the caption's features; None where it is tokenized
    truncated: int
    video_number: int
    name: str
    quarantined: list[tuple[Place, Entry]]
    repaired: tuple[Place, Entry] | None


class _StreamReader:
    """Reads one virtual stream, and keeps the shard open in which it stands."""

    def __init__(self, stream: PairStream, number: int, note: Callable[[str], None]) -> None:
        self._stream = stream
        self._number = number
        self._note = note
        self._opened: tuple[int, int] | None = None
        self._shard: Shard | None = None
        self._bad: dict[tuple[Place, int], Entry] = {}  # by video and caption

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

    def read(self, slot: Slot, into: Page) -> _Item:
        """Read the pair at a slot, or the first usable one after it; a bad video is tried once.

        Its frames and features are written to ``into``, a row of a page.
        """
        bad: list[tuple[Place, Entry]] = []
        for candidate in chain([slot], self._stream.plan.substitutes(slot)):
            item = self._try(candidate, bad, into)
            if item is not None:
                item.quarantined = bad
                return item
        domain = self._stream.shard_sets[slot.domain]
        error = UnusableSetError(f"{domain.uri}: no video of domain '{domain.manifest.domain}' can be decoded")
        error.quarantined = list(dict(bad).values())
        raise error

    def _try(self, slot: Slot, bad: list[tuple[Place, Entry]], into: Page) -> _Item | None:
        """Read the pair at a slot; None if its video is bad, which is added to ``bad``."""
        shard = self._open(slot)
        position, caption = self._find_pair(slot, shard)
        sample = shard.samples[position]
        shard_set = self._stream.shard_sets[slot.domain]
        name = f"{shard_set.manifest.domain}/{sample.video_id}#{caption}"
        place = (slot.domain, slot.shard, position)
        frames, texts = into
        sampling = self._stream.sampling_of(slot, name)
        text: tuple[Tensor | None, int] = None, 0
        clip = self._stream.cache.get(place, frames)
        if clip is None and (place, caption) not in self._bad:
            self._note(f"decoding {name.rpartition('#')[0]} (sample {sample.key} of {shard.uri})")
            try:
                clip = read_clip(shard, position, sampling, frames)
                if isinstance(sampling, FeatureSampling):
                    mask, cut = read_texts(shard, position, range(caption, caption + 1), sampling, texts[None])
                    text = mask[0], cut
                self._stream.cache.put(place, clip)
            except VideoError as error:
                clip = None
                entry = quarantine_entry(shard_set, slot.shard, sample, str(error))
                # A video is tried once; of features, each caption, or it would depend on the order which pairs are bad.
                every = [caption] if isinstance(sampling, FeatureSampling) else range(len(sample.captions))
                self._bad |= dict.fromkeys(((place, number) for number in every), entry)
        if clip is None:
            bad.append((place, self._bad[place, caption]))
            return None
        repaired = None
        if clip.replaced:
            shard_name = shard_set.manifest.shards[slot.shard].name
            repaired = place, repair_entry(shard_set.manifest.domain, shard_name, sample, clip)
        frames[len(clip.frames) :] = sampling.padding
        return _Item(len(clip.frames), sample.captions[caption], *text, video_number(*place), name, [], repaired)

    def _find_pair(self, slot: Slot, shard: Shard) -> tuple[int, int]:
        """Position of the video in its shard, and number of its caption."""
        plan = self._stream.plan
        index = plan.pair_in_shard(slot)
        if plan.captions == "all":
            return shard.pairs[index]
        return index, plan.caption_of(slot, index, len(shard.samples[index].captions))


def video_number(domain: int, shard: int, position: int) -> int:
    """Number a video: two pairs have the same number exactly when they show the same video."""
    return (domain << 48) | (shard << 24) | position


def make_loader(stream: PairStream, loader_workers: int, prefetch: int) -> Iterator[Batch]:
    """Iterate over a rank's batches; **the frames of one are valid until the next is asked for**.

    Torch hands out the items of iterable data sets in strict rotation over the workers, so the next ``loader_workers``
    items are the shares of one batch. A worker begins a share when that of ``prefetch`` batches before is taken. So of
    ``prefetch`` + 1 pages none is written to while it is read.
    """
    stream.plan.check_world(stream.world_size, loader_workers)
    stream.make_pages(prefetch + 1 if loader_workers else 1, shared=loader_workers > 0)
    loader: DataLoader[Share | UserError] = DataLoader(
        stream,
        batch_size=None,
        num_workers=loader_workers,
        prefetch_factor=prefetch if loader_workers else None,
        worker_init_fn=start_loader_worker,
        generator=torch.Generator(),  # or starting to read would move the run's, and a resumed run starts again
    )
    shares: list[Share] = []
    pages = cycle(stream.pages)
    for share in raise_items(explain_dead_loaders(loader, stream.activity)):
        shares.append(share)
        complete = len(shares) == max(1, loader_workers)
        if stream.activity:
            stream.activity.awaited = 0 if complete else len(shares)
        if complete:
            yield Batch.of(shares, next(pages))
            shares = []
