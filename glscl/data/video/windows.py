"""Decode several stretches of one video, which may overlap, with every picture decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from glscl.data.video.budget import Budget, decoding
from glscl.data.video.decode import Clip, PictureReader, lay_down
from glscl.data.video.index import read_index
from glscl.data.video.sampling import FrameSampling
from glscl.data.video.source import open_video


def measure_video(
    data: bytes, sampling: FrameSampling, start: float | None = None, end: float | None = None
) -> tuple[float, float]:
    """First and last second of a video that `load_clip` would sample. Raises `VideoError`: it is none."""
    budget = Budget(sampling.max_seconds)
    with decoding(), open_video(data, budget) as container:
        return read_index(container, budget).window(start, end)


def load_windows(data: bytes, sampling: FrameSampling, windows: Sequence[tuple[float, float]]) -> list[Clip]:
    """The clips that `load_clip` gives for each stretch, from one second to another.

    Together they may cost what one video may. Raises `VideoError`: as `load_clip`.
    """
    budget = Budget(sampling.max_seconds)
    with decoding(), open_video(data, budget) as container:
        index = read_index(container, budget)
        slots = [index.select(sampling.times(*index.window(*window))) for window in windows]
        with PictureReader(data, container, index, budget) as reader:
            pictures = reader.read(
                sorted(set(chain(*slots))), lambda display, frame: display.square(frame, sampling.size)
            )
        return [
            Clip(lay_down([pictures[slot][1] for slot in own], None), sum(pictures[slot][0] != slot for slot in own))
            for own in slots
        ]
