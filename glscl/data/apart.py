"""Check that held-out, training and test sets of a domain share no videos, and tell sets apart by name.

Sets are compared by content, by name (domain and split) and by the ids of their videos. Ids are compared within a
domain only: in another, the same id names another video. They come from the manifest, so no tar of a remote set is
read. Sets built before manifests listed ids are read through if they are local and not large, and named in a note
otherwise. Every error names both sets, the videos and the remedy.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from glscl.data.shards import Manifest, Shard, ShardSet, open_shard_set
from glscl.errors import UserError
from glscl.system import storage

SHOWN = 3  # most shared ids that an error names
MOST_READ = 20_000
"""Most videos of a local set whose tars are read for ids that its manifest does not list: some seconds."""

ADVICE = "choose on a held-out part of the training split (`glscl shards build --hold-out` makes one)"


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A shard set and the configuration key that names it, such as ``data.validation``."""

    key: str
    shard_set: ShardSet

    @classmethod
    def open(cls, key: str, uri: str) -> NamedSet:
        """Open the shard set that ``key`` names; errors are those of `open_shard_set`."""
        return cls(key, open_shard_set(uri))

    @property
    def manifest(self) -> Manifest:
        """The set's manifest."""
        return self.shard_set.manifest

    def __str__(self) -> str:
        return f"{self.key}: {self.shard_set.uri}"


def check_held_out(held_out: Sequence[NamedSet], trained: Sequence[NamedSet], tested: Sequence[NamedSet]) -> list[str]:
    """Check that sets to choose on are neither tested nor trained on; returns a note per pair that cannot be compared.

    Raises:
        UserError: a set to choose on is a test split by its name, is one of the test or training sets, has the name of
            a test set, or shares videos with one.
    """
    for chosen in held_out:
        name = split_name(chosen.manifest)
        if same := _same_content(chosen, tested):
            raise UserError(f"{chosen} is also in {same}; {ADVICE}")
        if is_test_split(chosen.manifest):
            raise UserError(f"{chosen} is the test split {name}; {ADVICE}")
        if same := next((other for other in tested if split_name(other.manifest) == name), None):
            raise UserError(f"{chosen} is {name}, and so is {same}; {ADVICE}")
        if same := _same_content(chosen, trained):
            raise UserError(f"{chosen} is also in {same}; {ADVICE}")
    return [note for others in (tested, trained) for note in _check_disjoint(held_out, others, ADVICE)]


def check_not_trained(tested: Sequence[NamedSet], trained: Sequence[NamedSet], advice: str) -> list[str]:
    """Check that no test set is trained on, nor any of its videos; as `check_held_out`, with its own advice."""
    for test in tested:
        if same := _same_content(test, trained):
            raise UserError(f"{test} is also in {same}; {advice}")
    return list(_check_disjoint(tested, trained, advice))


def is_test_split(manifest: Manifest) -> bool:
    """Whether papers test on a split, by its name; for ActivityNet that is the first validation split."""
    activitynet = "activitynet" in (manifest.domain, manifest.reader)
    return "test" in re.split("[^a-z]+", manifest.split.lower()) or (activitynet and manifest.split.startswith("val_1"))


def video_ids(shard_set: ShardSet) -> frozenset[str] | None:
    """Ids of a set's videos; None if its manifest has none and to read them would take long."""
    return _video_ids(shard_set.uri, shard_set.manifest.fingerprint())


@lru_cache(maxsize=64)
def _video_ids(uri: str, _: str) -> frozenset[str] | None:
    """Cached, because a study asks again for every training."""
    shard_set = open_shard_set(uri)
    manifest = shard_set.manifest
    if len(manifest.video_ids) == manifest.videos:
        return frozenset(manifest.video_ids)
    if storage.is_remote(uri) or manifest.videos > MOST_READ:
        return None
    ids: set[str] = set()
    for index in range(len(manifest.shards)):
        with closing(Shard(shard_set, index)) as shard:
            ids.update(sample.video_id for sample in shard.samples)
    return frozenset(ids)


def split_name(manifest: Manifest) -> str:
    """Write ``msrvtt/train_9k``."""
    return f"{manifest.domain}/{manifest.split}"


def distinct_names(shard_sets: Sequence[ShardSet]) -> list[str]:
    """Name each set, in their order, all differently.

    A name is the shortest of these that tells all sets apart: ``msrvtt/test``; with the set's folder, ``msrvtt/test
    (test_1k_a)``; with its whole address; with its number in the list.
    """
    names = [split_name(item.manifest) for item in shard_sets]
    addresses = [item.uri for item in shard_sets]
    folders = [uri.rstrip("/").rpartition("/")[2] for uri in addresses]
    for more in (folders, addresses):
        counts = Counter(names)
        if len(counts) == len(names):
            break
        longer = [f"{name} ({what})" for name, what in zip(names, more, strict=True)]
        if more is addresses or len({*longer}) == len(longer):
            names = [new if counts[old] > 1 else old for old, new in zip(names, longer, strict=True)]
    counts = Counter(names)
    return [f"{name}, number {number}" if counts[name] > 1 else name for number, name in enumerate(names, start=1)]


def _same_content(named: NamedSet, others: Sequence[NamedSet]) -> NamedSet | None:
    fingerprint = named.manifest.fingerprint()
    return next((other for other in others if other.manifest.fingerprint() == fingerprint), None)


def _check_disjoint(firsts: Sequence[NamedSet], seconds: Sequence[NamedSet], advice: str) -> Iterator[str]:
    for first, second in product(firsts, seconds):
        if first.manifest.domain != second.manifest.domain:
            continue
        one, two = (video_ids(named.shard_set) for named in (first, second))
        if one is None or two is None:
            unlisted = first if one is None else second
            yield (
                f"{first.key} was not compared with {second.key}: the manifest of {unlisted.shard_set.uri} lists no "
                f"ids (build the shards again)"
            )
        elif shared := sorted(one & two):
            some = ", ".join(ascii(name)[1:-1] for name in shared[:SHOWN]) + (", ..." if len(shared) > SHOWN else "")
            videos = "1 video" if len(shared) == 1 else f"{len(shared):,} videos"
            raise UserError(f"{first} shares {videos} of {len(one):,} with {second} ({some}); {advice}")
