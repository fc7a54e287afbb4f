"""Decode the frames of a sample of a shard, be it a video, pictures of one, or a single picture."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from glscl.data.shards import Shard
from glscl.data.video import Clip, FrameSampling, load_clip, load_pictures
from glscl.errors import UserError


def read_clip(shard: Shard, position: int, sampling: FrameSampling, into: Tensor | None = None) -> Clip:
    """Decode the frames that ``sampling`` asks for of a sample, the first of ``into``, if given.

    Raises:
        VideoError: it gives no frame, or costs too much.
        UserError: its pictures are fewer a second than the sampling's, or the tar has become shorter.
    """
    sample, frames = shard.samples[position], shard.media[position].frames
    if frames is None:
        return load_clip(shard.read(position), sampling, sample.start, sample.end, into)
    if frames.rate is not None and frames.rate < sampling.rate:
        raise UserError(
            f"{shard.uri}: holds {frames.rate:g} pictures a second, and data.sample_fps is {sampling.rate:g}: lower "
            f"it, or build the shards again with --frames {sampling.rate:g}"
        )
    return load_pictures(partial(shard.read, position), frames, sampling, into)
