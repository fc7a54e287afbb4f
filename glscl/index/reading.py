"""Cut the videos of a library into segments, and read the frames of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from glscl.data.clips import Sampling, read_clip, stack_clips
from glscl.data.limits import VideoError
from glscl.data.shards import Shard, read_manifest
from glscl.data.video import Clip, FrameSampling
from glscl.data.video.windows import load_windows, measure_video
from glscl.errors import StorageError, UserError
from glscl.index.layout import Cutting
from glscl.index.library import Item, split_source
from glscl.retrieval.videos import read_file
from glscl.system import storage

AT_ONCE = 16
"""Segments of a video that are decoded together."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a video, and its frames.

    Attributes:
        start: first second.
        end: last second.
        times: second of every frame.
        frames: uint8 (F, 3, S, S), or features (F, D), padded.
        mask: (F,) bool, True where there is a frame.
    """

    start: float
    end: float
    times: tuple[float, ...]
    frames: Tensor
    mask: Tensor


def cut_video(first: float, last: float, cutting: Cutting) -> list[tuple[float, float]]:
    """Segments of a video that lasts from one second to another; the last one ends with it."""
    length, stride = cutting.segment_s, cutting.stride_s
    if last - first <= length * 1.001:
        return [(first, last)]
    count = 1 + math.ceil((last - first - length) / stride - 1e-6)
    starts = [first + number * stride for number in range(count - 1)] + [last - length]
    return [(start, start + length) for start in starts]


def read_segments(item: Item, sampling: Sampling, cutting: Cutting) -> Iterator[list[Segment]]:
    """The segments of a video, some at a time. Raises `VideoError` or `UserError`: why it cannot be used."""
    if item.problem:
        raise VideoError(item.problem)
    place = split_source(item.source)
    if place is not None:
        shard = _open_shard(place[0])
        media = shard.media[place[1]]
        if media.frames is not None or not media.holds_pixels:
            yield [_read_stored(shard, place[1], item, sampling)]
            return
        data = shard.read(place[1])
    else:
        data = read_file(item.source)
    assert isinstance(sampling, FrameSampling)
    windows = cut_video(*measure_video(data, sampling, item.start, item.end), cutting)
    for some in range(0, len(windows), AT_ONCE):
        stretches = windows[some : some + AT_ONCE]
        clips = load_windows(data, sampling, stretches)
        yield [
            _segment(clip, window, sampling.times(*window), sampling)
            for clip, window in zip(clips, stretches, strict=True)
        ]


def _segment(clip: Clip, window: tuple[float, float], times: list[float], sampling: Sampling) -> Segment:
    frames, mask = stack_clips([clip], sampling)
    return Segment(*window, tuple(times), frames[0], mask[0])


def _read_stored(shard: Shard, position: int, item: Item, sampling: Sampling) -> Segment:
    """A sample of pictures or features, which is one segment."""
    clip = read_clip(shard, position, sampling)
    stored, count = shard.media[position].frames, len(clip.frames)
    if stored is not None:
        first, last = stored.start, stored.end
    else:
        rate = shard.features.rate if shard.features is not None else None
        first = item.start or 0.0
        last = item.end if item.end is not None else first + count / (rate or 1.0)
    width = (last - first) / count
    return _segment(clip, (first, last), [first + (number + 0.5) * width for number in range(count)], sampling)


@lru_cache(maxsize=4)
def _open_shard(tar: str) -> Shard:
    folder, _, name = tar.rpartition("/")
    shard_set = read_manifest(folder)
    return Shard(shard_set, [entry.name for entry in shard_set.manifest.shards].index(name))


def read_media(source: str) -> tuple[bytes | str, str]:
    """Bytes or the local path of a video, and its media type.

    Raises `UserError`: the file is gone, or a shard holds pictures or features in its place.
    """
    place = split_source(source)
    if place is None:
        data: bytes | str = read_file(source) if storage.is_remote(source) else source
        return data, media_type(source)
    shard = _open_shard(place[0])
    if shard.media[place[1]].frames is not None or not shard.media[place[1]].holds_pixels:
        raise UserError(f"{source}: holds pictures or features of the video, which cannot be played")
    return shard.read(place[1]), "video/mp4"


_TYPES = {
    "mp4": "video/mp4", "m4v": "video/mp4", "mov": "video/quicktime", "qt": "video/quicktime", "webm": "video/webm",
    "mkv": "video/x-matroska", "ogv": "video/ogg", "avi": "video/x-msvideo", "mpg": "video/mpeg", "mpeg": "video/mpeg",
    "ts": "video/mp2t", "gif": "image/gif",
}  # fmt: skip


def media_type(path: str) -> str:
    """Media type of a video by its extension."""
    return _TYPES.get(path.rpartition(".")[2].lower(), "application/octet-stream")


def describe_problem(error: Exception) -> str:
    """Why a video cannot be used. Storage that fails is not the video's fault and is raised again."""
    if isinstance(error, StorageError):
        raise error
    return " ".join(str(error).split()) or type(error).__name__
