"""The frame sampling of a run: how many frames of a video, how often, and at which size."""

from __future__ import annotations

from glscl.data.video import FrameSampling
from glscl.training.config import RunConfig


def make_sampling(config: RunConfig, frame_size: int) -> FrameSampling:
    """The sampling that data and model options ask for, at the size in pixels that the model takes."""
    data = config.data
    return FrameSampling(config.model.max_frames, data.sample_fps, frame_size, data.decoder, data.max_decode_s)
