"""Read the frames of a sample of a shard, be it a video, pictures of one, a single picture, or features of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from glscl.data.features import FeatureSampling, describe_arrays, read_frames
from glscl.data.shards import Shard
from glscl.data.video import Clip, FrameSampling, load_clip, load_pictures
from glscl.errors import UserError

Sampling = FrameSampling | FeatureSampling
"""What is taken of a sample."""
Place = tuple[int, int, int]
"""Domain, shard, and position in the shard of a video."""


def read_clip(shard: Shard, position: int, sampling: Sampling, into: Tensor | None = None) -> Clip:
    """Read the frames that ``sampling`` asks for of a sample, the first of ``into``, if given.

    Raises:
        VideoError: it gives no frame, or costs too much.
        UserError: its pictures are fewer a second than the sampling's, it holds features where pixels are asked for or
            the other way round, or the tar has become shorter.
    """
    if isinstance(sampling, FeatureSampling):
        return read_frames(shard, position, sampling, into)
    sample, media = shard.samples[position], shard.media[position]
    if media.is_array:
        raise UserError(describe_arrays(shard.uri))
    if media.features is not None:
        raise UserError(f"{shard.uri}: holds features, and pixels are asked for; its manifest does not say so")
    if media.frames is None:
        return load_clip(shard.read(position), sampling, sample.start, sample.end, into)
    if media.frames.rate is not None and media.frames.rate < sampling.rate:
        raise UserError(
            f"{shard.uri}: holds {media.frames.rate:g} pictures a second, and data.sample_fps is {sampling.rate:g}: "
            f"lower it, or build the shards again with --frames {sampling.rate:g}"
        )
    return load_pictures(partial(shard.read, position), media.frames, sampling, into)


def stack_clips(clips: Sequence[Clip], sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Put B clips into one batch: frames (B, F, 3, S, S) or features (B, F, D), padded, and their mask (B, F) bool."""
    shape = len(clips), sampling.max_frames
    frames = torch.empty(*shape, *sampling.frame_shape, dtype=sampling.dtype)
    mask = torch.zeros(*shape, dtype=torch.bool)
    frames[:] = sampling.padding
    for row, clip in enumerate(clips):
        frames[row, : len(clip.frames)] = clip.frames
        mask[row, : len(clip.frames)] = True
    return frames, mask


class ClipCache:
    """Frames of clips, kept until so many bytes are full: those of a set that does not fit are in part read again."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._clips: dict[Place, Clip] = {}

    def get(self, place: Place, into: Tensor) -> Clip | None:
        """Copy a clip's frames to the first of ``into``; None if it is not here."""
        clip = self._clips.get(place)
        if clip is None:
            return None
        return replace(clip, frames=into[: len(clip.frames)].copy_(clip.frames))

    def put(self, place: Place, clip: Clip) -> None:
        """Keep a copy of a clip if there is room."""
        if clip.frames.nbytes <= self._free:
            self._free -= clip.frames.nbytes
            self._clips[place] = replace(clip, frames=clip.frames.clone())
