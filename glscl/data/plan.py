"""The order of the training stream: pure arithmetic over manifests, no files.

V virtual streams together fill every global batch of B pairs, and each contributes ``B / V`` consecutive pairs to it.
Any rank (and any loader worker of it) that owns a contiguous run of streams owns a contiguous run of every global
batch. Hence the global batch at a step is the same list of pairs whatever the number of ranks and workers.

One epoch of a domain: its shards are permuted, the pairs inside each shard are permuted, and the resulting line of
pairs is cut into equal contiguous ranges, one per virtual stream of the domain. Every stream therefore has exactly the
same number of batches; the fewer-than-B pairs at the end of the line wait for the next epoch, whose order differs. A
shard that a cut goes through is read by two streams.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from glscl.data.shards import Manifest
from glscl.data.subset import Captions, Integers, Limit, choose
from glscl.errors import UserError

_EPOCHS_KNOWN = 3
"""Of a domain: loader workers, and those who look ahead, are never further apart."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one pair of the stream lies."""

    domain: int  # index of the manifest
    epoch: int  # of this domain, from 0
    shard: int  # index of the tar in the manifest
    rank_in_shard: int  # position in the shard's permuted order


class StreamPlan:
    """Which pair stands where, for every step, stream and place; one of ``manifests`` per training domain.

    ``weights`` are the shares of every global batch per domain, empty in proportion to the domains' pairs;
    ``global_batch`` is pairs per step over all ranks (B), a multiple of ``virtual_streams`` (V). With ``captions``
    ``all`` every caption is a pair of the epoch; ``one`` draws one per video and epoch. ``limit`` takes a part of every
    domain. Raises `UserError`: B is no multiple of V, a domain is too small for one step, or its weight is below 1/V;
    and as `choose`.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        weights: Sequence[float],
        global_batch: int,
        virtual_streams: int,
        captions: Captions,
        seed: int,
        limit: Limit = Limit(),  # noqa: B008 (frozen)
    ) -> None:
        if not manifests:
            raise UserError("data.train is empty: name at least one shard set")
        if global_batch % virtual_streams:
            raise UserError(
                f"training.global_batch ({global_batch}) is not a multiple of data.virtual_streams "
                f"({virtual_streams}): change one of them"
            )
        self.manifests = tuple(manifests)
        self.virtual_streams = virtual_streams
        self.pairs_per_stream_step = global_batch // virtual_streams
        self.captions = captions
        self.seed = seed
        self.limit = limit
        self._chosen = [choose(manifest, limit, captions) for manifest in manifests]
        self._sizes = [_sizes(*pair, captions) for pair in zip(manifests, self._chosen, strict=True)]
        self._lines: list[dict[int, tuple[Integers, Integers]]] = [{} for _ in manifests]
        totals = [int(sizes.sum()) for sizes in self._sizes]
        self.streams_of_domain = _apportion(weights or totals, virtual_streams, [m.domain for m in manifests])
        self.owner = _interleave(self.streams_of_domain)
        self.domain_steps = []
        for manifest, total, streams in zip(manifests, totals, self.streams_of_domain, strict=True):
            steps = total // (streams * self.pairs_per_stream_step)
            if not steps:
                raise UserError(
                    f"domain '{manifest.domain}' has {total} pairs but takes {streams * self.pairs_per_stream_step} "
                    f"places of every global batch: lower training.global_batch or its weight in data.weights"
                )
            self.domain_steps.append(steps)
        self.pairs_per_epoch = sum(totals)
        self.steps_per_epoch = self.pairs_per_epoch // global_batch

    def slots(self, step: int, stream: int) -> list[Slot]:
        """The pairs that one virtual stream contributes to global step ``step`` (counted from the run's start)."""
        domain, place = self.owner[stream]
        epoch, step_in_epoch = divmod(step, self.domain_steps[domain])
        length = self.domain_steps[domain] * self.pairs_per_stream_step
        first = place * length + step_in_epoch * self.pairs_per_stream_step
        order, ends = self._line(domain, epoch)
        slots = []
        for position in range(first, first + self.pairs_per_stream_step):
            at = int(np.searchsorted(ends, position, side="right"))
            before = int(ends[at - 1]) if at else 0
            slots.append(Slot(domain, epoch, int(order[at]), position - before))
        return slots

    def pair_in_shard(self, slot: Slot) -> int:
        """Index, in file order, of the pair (``all``) or sample (``one``) that stands at the slot."""
        size = self.shard_size(slot.domain, slot.shard)
        index = int(_permutation(size, self.seed, 2, slot.domain, slot.epoch, slot.shard)[slot.rank_in_shard])
        chosen = self._chosen[slot.domain]
        return index if chosen is None else int(chosen[slot.shard][index])

    def shard_size(self, domain: int, shard: int) -> int:
        """Places that a shard fills in one epoch."""
        return int(self._sizes[domain][shard])

    def caption_of(self, slot: Slot, sample: int, captions: int) -> int:
        """Which of a video's captions the epoch uses when ``captions`` is ``one``."""
        return int(_mix(self.seed, 3, slot.domain, slot.epoch, slot.shard, sample)) % captions

    def substitutes(self, slot: Slot) -> Iterator[Slot]:
        """Slots to try, in order, when the pair at ``slot`` is unusable: the rest of its shard, then other shards."""
        size = self.shard_size(slot.domain, slot.shard)
        for offset in range(1, size):
            yield Slot(slot.domain, slot.epoch, slot.shard, (slot.rank_in_shard + offset) % size)
        order, _ = self._line(slot.domain, slot.epoch)
        here = int(np.flatnonzero(order == slot.shard)[0])
        for offset in range(1, len(order)):
            shard = int(order[(here + offset) % len(order)])
            for place in range(self.shard_size(slot.domain, shard)):
                yield Slot(slot.domain, slot.epoch, shard, place)

    def owned(self, rank: int, world_size: int, worker: int, workers: int) -> range:
        """Virtual streams of one loader worker of one rank (``workers`` counts at least 1)."""
        self.check_world(world_size, workers)
        count = self.virtual_streams // (world_size * workers)
        first = (rank * workers + worker) * count
        return range(first, first + count)

    def check_world(self, world_size: int, workers: int) -> None:
        """Refuse a world that does not divide the virtual streams, or that outnumbers the shards."""
        readers = world_size * max(1, workers)
        if self.virtual_streams % readers:
            raise UserError(
                f"data.virtual_streams ({self.virtual_streams}) is not a multiple of workers x loader workers "
                f"({world_size} x {max(1, workers)}): change training.num_workers, data.loader_workers or "
                f"data.virtual_streams"
            )
        shards = sum(int(np.count_nonzero(sizes)) for sizes in self._sizes)
        if shards < readers:
            raise UserError(
                f"too few shards: {shards} for {world_size} workers x {max(1, workers)} loader workers; lower "
                f"data.loader_workers, or build the shards again with a smaller --samples-per-shard"
            )

    def _line(self, domain: int, epoch: int) -> tuple[Integers, Integers]:
        """The domain's shards in the order of the epoch, and where each ends; a million of them take 16 MB."""
        known = self._lines[domain]
        if epoch not in known:
            if len(known) == _EPOCHS_KNOWN:
                del known[next(iter(known))]
            order = _permutation(len(self._sizes[domain]), self.seed, 1, domain, epoch)
            known[epoch] = order, np.cumsum(self._sizes[domain][order])
        return known[epoch]


def _sizes(manifest: Manifest, chosen: list[Integers] | None, captions: Captions) -> Integers:
    """Places that each shard fills in one epoch."""
    if chosen is not None:
        return np.array([len(part) for part in chosen])
    return np.array([entry.pairs if captions == "all" else entry.samples for entry in manifest.shards])


Words = TypeVar("Words", np.uint64, npt.NDArray[np.uint64])


def _mix(*numbers: int) -> np.uint64:
    """Hash integers to one uint64 (splitmix64, public domain): the same on every machine and library version."""
    state = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for number in numbers:
            state = _scramble(state ^ np.uint64(number & 0xFFFFFFFFFFFFFFFF))
    return state


def _scramble(value: Words) -> Words:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@lru_cache(maxsize=128)
def _permutation(size: int, *key: int) -> Integers:
    """Permutation of ``range(size)``: the order of hashed indices, so no library's generator is part of the format."""
    with np.errstate(over="ignore"):
        hashed = _scramble(np.arange(size, dtype=np.uint64) + _mix(*key))
    return np.argsort(hashed, kind="stable")


def _apportion(weights: Sequence[float], places: int, names: Sequence[str]) -> list[int]:
    """Share ``places`` by weight, largest remainder first; every domain gets at least one."""
    if len(weights) != len(names):
        raise UserError(f"data.weights has {len(weights)} numbers for {len(names)} training domains in data.train")
    if any(not weight > 0 for weight in weights):
        raise UserError(f"data.weights must be positive, got {list(weights)}")
    exact = np.array(weights, dtype=float) / sum(weights) * places
    shares = np.floor(exact).astype(int)
    for index in np.argsort(-(exact - shares), kind="stable")[: places - int(shares.sum())]:
        shares[index] += 1
    if (shares == 0).any():
        name = names[int(np.flatnonzero(shares == 0)[0])]
        raise UserError(
            f"domain '{name}' would get less than one of {places} virtual streams: raise data.virtual_streams or its "
            f"weight in data.weights"
        )
    return shares.tolist()  # type: ignore[no-any-return]


def _interleave(shares: Sequence[int]) -> list[tuple[int, int]]:
    """Spread the domains' streams evenly, so that every rank carries a like mixture: (domain, place in domain)."""
    keyed = [((place + 0.5) / share, domain, place) for domain, share in enumerate(shares) for place in range(share)]
    return [(domain, place) for _, domain, place in sorted(keyed)]
