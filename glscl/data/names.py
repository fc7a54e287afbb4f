"""Distinct names for shard sets: domain/split, with folder, address or number where these are equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from glscl.data.shards import ShardSet


def distinct_names(shard_sets: Sequence[ShardSet]) -> list[str]:
    """Name each set, in their order, all differently.

    A name is the shortest of these that tells all sets apart: ``msrvtt/test``; with the set's folder, ``msrvtt/test
    (test_1k_a)``; with its whole address; with its number in the list.
    """
    names = [f"{item.manifest.domain}/{item.manifest.split}" for item in shard_sets]
    folders = [item.uri.rstrip("/").rpartition("/")[2] for item in shard_sets]
    addresses = [item.uri for item in shard_sets]
    for more in (folders, addresses):
        counts = Counter(names)
        if len(counts) == len(names):
            break
        longer = [f"{name} ({what})" for name, what in zip(names, more, strict=True)]
        if more is addresses or len({*longer}) == len(longer):
            names = [new if counts[old] > 1 else old for old, new in zip(names, longer, strict=True)]
    counts = Counter(names)
    return [f"{name}, number {number}" if counts[name] > 1 else name for number, name in enumerate(names, start=1)]
