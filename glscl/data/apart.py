"""Held-out, training and test sets of a domain are kept apart: nothing is chosen on what is trained or tested on.

`glscl train`, `study` and `sweep` all ask here. Sets are compared by content, by name (domain and split) and by the ids
of their videos. Ids are compared within a domain only: in another, the same id names another video. They come from the
manifest, so no tar of a remote set is read; sets built before manifests listed ids are read through if they are local
and not large, and named in a note otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from glscl.data.shards import Manifest, Shard, ShardSet, open_shard_set
from glscl.errors import UserError
from glscl.system import storage

SHOWN = 3
"""Shared ids that an error names."""
MOST_READ = 20_000
"""Videos of a local set without ids in its manifest that are looked through for them: some seconds."""

ADVICE = "choose on a held-out part of the training split (`glscl shards build --hold-out` makes one)"


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A shard set and the configuration key that names it, such as ``data.validation``."""

    key: str
    shard_set: ShardSet

    @classmethod
    def open(cls, key: str, uri: str) -> NamedSet:
        """Open the shard set that ``key`` names.

        Raises:
            UserError: as `open_shard_set`.
        """
        return cls(key, open_shard_set(uri))

    @property
    def manifest(self) -> Manifest:
        """The set's manifest."""
        return self.shard_set.manifest

    def __str__(self) -> str:
        return f"{self.key}: {self.shard_set.uri}"


def check_held_out(held_out: Sequence[NamedSet], trained: Sequence[NamedSet], tested: Sequence[NamedSet]) -> list[str]:
    """See that checkpoints and trials are chosen on sets that are neither tested nor trained on.

    Args:
        held_out: sets to choose on.
        trained: training sets.
        tested: test sets.

    Returns:
        one note per pair of sets whose ids could not be compared.

    Raises:
        UserError: a set to choose on is a test split by its name, is one of the test or training sets, has the name of
            a test set, or shares videos with one; names both sets, the videos and the remedy.
    """
    for own in held_out:
        if same := _same_content(own, tested):
            raise UserError(f"{own} is also in {same}; {ADVICE}")
        if is_test_split(own.manifest):
            raise UserError(f"{own} is the test split {_name(own)}; {ADVICE}")
        if same := next((other for other in tested if _name(other) == _name(own)), None):
            raise UserError(f"{own} is {_name(own)}, and so is {same}; {ADVICE}")
        if same := _same_content(own, trained):
            raise UserError(f"{own} is also in {same}; {ADVICE}")
    return [note for other in (tested, trained) for note in _share_nothing(held_out, other, ADVICE)]


def check_not_trained(tested: Sequence[NamedSet], trained: Sequence[NamedSet], advice: str) -> list[str]:
    """See that no test set is trained on, nor any of its videos.

    Args:
        tested: test sets.
        trained: training sets.
        advice: what to do, as the end of the error.

    Returns:
        as `check_held_out`.

    Raises:
        UserError: naming both sets and the videos.
    """
    for own in tested:
        if same := _same_content(own, trained):
            raise UserError(f"{own} is also in {same}; {advice}")
    return list(_share_nothing(tested, trained, advice))


def is_test_split(manifest: Manifest) -> bool:
    """Whether a split is one that papers test on, by its name; ActivityNet's is its first validation part."""
    activitynet = "activitynet" in (manifest.domain, manifest.reader)
    return "test" in re.split("[^a-z]+", manifest.split.lower()) or (activitynet and manifest.split.startswith("val_1"))


def video_ids(shard_set: ShardSet) -> frozenset[str] | None:
    """Ids of a set's videos; None if its manifest has none and to read them would take long.

    Raises:
        UserError: a tar that has to be read is torn.
    """
    return _video_ids(shard_set.uri, shard_set.manifest.fingerprint())


@lru_cache(maxsize=64)
def _video_ids(uri: str, _: str) -> frozenset[str] | None:
    """For a study, which asks again for every training."""
    shard_set = open_shard_set(uri)
    manifest = shard_set.manifest
    if len(manifest.video_ids) == manifest.videos:
        return frozenset(manifest.video_ids)
    if storage.is_remote(uri) or manifest.videos > MOST_READ:
        return None
    ids: set[str] = set()
    for index in range(len(manifest.shards)):
        shard = Shard(shard_set, index)
        ids.update(sample.video_id for sample in shard.samples)
        shard.close()
    return frozenset(ids)


def _name(own: NamedSet) -> str:
    return f"{own.manifest.domain}/{own.manifest.split}"


def _same_content(own: NamedSet, others: Sequence[NamedSet]) -> NamedSet | None:
    fingerprint = own.manifest.fingerprint()
    return next((other for other in others if other.manifest.fingerprint() == fingerprint), None)


def _share_nothing(firsts: Sequence[NamedSet], seconds: Sequence[NamedSet], advice: str) -> Iterator[str]:
    for first, second in product(firsts, seconds):
        if first.manifest.domain != second.manifest.domain:
            continue
        one, two = (video_ids(named.shard_set) for named in (first, second))
        if one is None or two is None:
            lacking = first if one is None else second
            yield (
                f"{first.key} was not compared with {second.key}: the manifest of {lacking.shard_set.uri} lists no ids "
                f"(build the shards again)"
            )
        elif shared := sorted(one & two):
            some = ", ".join(ascii(name)[1:-1] for name in shared[:SHOWN]) + (", ..." if len(shared) > SHOWN else "")
            videos = "1 video" if len(shared) == 1 else f"{len(shared):,} videos"
            raise UserError(f"{first} shares {videos} of {len(one):,} with {second} ({some}); {advice}")
