"""The part of a training set that a run learns from: so many of its videos or pairs, chosen by the videos' ids.

Videos are taken in the order of the hashes of their ids. So what is taken is the same for every seed and every number
of workers, and in whatever order the set was written; a smaller number takes part of what a larger one takes. Pairs are
taken video by video in that order, the captions of a video in file order, so that the last video may give only some.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from glscl.data.shards import Manifest
from glscl.errors import UserError

Captions = Literal["all", "one"]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Limit:
    """What every training set gives at most; None is no limit, and at most one of them is given."""

    videos: int | None = None
    pairs: int | None = None

    def describe(self, manifest: Manifest) -> str:
        """What is taken of a set, for the log; empty where it is the whole set."""
        if self.videos is not None and self.videos < manifest.videos:
            return f"{self.videos:,} videos of it are taken (data.max_videos)"
        if self.pairs is not None and self.pairs < manifest.pairs:
            return f"{self.pairs:,} pairs of it are taken (data.max_pairs)"
        return ""


def choose(manifest: Manifest, limit: Limit, captions: Captions) -> list[Integers] | None:
    """What is learnt of every shard: rising numbers, in file order, of its samples (``one``) or pairs (``all``).

    None is all of them. Raises `UserError`: the manifest does not say what the choice needs, or ``one`` caption per
    video is drawn and pairs are to be counted.
    """
    if limit.pairs is not None and captions == "one":
        raise UserError(
            "data.max_pairs counts captions, of which data.captions: one draws one per video and epoch: give "
            "data.max_videos, or set data.captions to all"
        )
    if not limit.describe(manifest):
        return None
    order = _order_of_videos(manifest)
    if captions == "one":
        chosen = np.zeros(manifest.videos, dtype=bool)
        chosen[order[: limit.videos]] = True
        return _cut(chosen, [entry.samples for entry in manifest.shards])
    counts = captions_of_videos(manifest)
    taken = np.zeros(manifest.videos, dtype=np.int64)
    if limit.videos is not None:
        first = order[: limit.videos]
        taken[first] = counts[first]
    else:
        before = np.cumsum(counts[order]) - counts[order]
        taken[order] = np.clip((limit.pairs or 0) - before, 0, counts[order])
    number = np.arange(manifest.pairs) - np.repeat(np.cumsum(counts) - counts, counts)  # of a caption in its video
    return _cut(number < np.repeat(taken, counts), [entry.pairs for entry in manifest.shards])


def _order_of_videos(manifest: Manifest) -> Integers:
    """Numbers of the videos, in file order, by the hash of the id; videos of one id in file order."""
    if len(manifest.video_ids) != manifest.videos:
        raise UserError(
            f"domain '{manifest.domain}': data.max_videos and data.max_pairs choose by ids, and the manifest of this "
            f"set, of an older version, has none: build or index it again"
        )
    hashes = [hashlib.sha256(video_id.encode()).digest() for video_id in manifest.video_ids]
    return np.array(sorted(range(manifest.videos), key=lambda number: (hashes[number], number)), dtype=np.int64)


def captions_of_videos(manifest: Manifest) -> Integers:
    """(videos,) how many captions each video has. Raises `UserError`: the manifest does not say, or is wrong."""
    if manifest.captions:
        counts = np.array(manifest.captions, dtype=np.int64)
        parts = np.split(counts, np.cumsum([entry.samples for entry in manifest.shards]))
        if [int(part.sum()) for part in parts] != [*(entry.pairs for entry in manifest.shards), 0]:
            raise UserError(
                f"domain '{manifest.domain}': the captions of the videos in its manifest do not add up to its pairs; "
                f"build or index the set again"
            )
        return counts
    if manifest.pairs == manifest.videos:
        return np.ones(manifest.videos, dtype=np.int64)
    raise UserError(
        f"domain '{manifest.domain}': the manifest of this set, of an older version, does not say how many captions "
        f"each video has, which data.max_videos and data.max_pairs need: build or index it again, or set data.captions "
        f"to one and give data.max_videos"
    )


def _cut(chosen: npt.NDArray[np.bool_], sizes: Sequence[int]) -> list[Integers]:
    """Numbers of what is chosen, within each shard."""
    return [np.flatnonzero(part) for part in np.split(chosen, np.cumsum(sizes)[:-1])]
