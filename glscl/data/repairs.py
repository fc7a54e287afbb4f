"""List videos of which some pictures do not decode, with how many frames were replaced by the nearest picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from glscl.data.shards import Sample

if TYPE_CHECKING:
    from glscl.data.video import Clip  # with what decodes, seconds to import

LISTED = 3
Entry = dict[str, str]
"""``domain``, ``shard``, ``key``, ``video_id`` and ``frames`` (``3 of 12``)."""


def repair_entry(domain: str, shard: str, sample: Sample, clip: Clip) -> Entry:
    """Build one line of the list."""
    frames = f"{clip.replaced} of {len(clip.frames)}"
    return {"domain": domain, "shard": shard, "key": sample.key, "video_id": sample.video_id, "frames": frames}


def describe_repairs(what: str, videos: int, entries: Sequence[Mapping[str, str]]) -> str:
    """Say in one line which of a set's ``videos`` show the nearest picture for some that do not decode.

    Args:
        what: names the set, as ``test set msvd/test``.
        videos: how many of the set were used.
        entries: at least one.
    """
    names = ", ".join(f"{entry['video_id']} ({entry['frames']} frames)" for entry in entries[:LISTED])
    more = f" and {len(entries) - LISTED} more" if len(entries) > LISTED else ""
    return (
        f"repaired: in {len(entries)} of {videos} videos of {what} the nearest picture stands for some that do not "
        f"decode: {names}{more}"
    )
