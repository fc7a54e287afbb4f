"""Times of the pictures that stand for a video in a shard."""

from __future__ import annotations

import bisect
from typing import Annotated

from pydantic import Field, model_validator

from glscl.data.records import MOST_SECONDS
from glscl.options import Options

_Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]


class FrameTimes(Options):
    """What the ``.json`` of a sample says of its pictures under ``frames``; seconds are those of the original video."""

    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Pictures a second, at which the video was sampled; None for a still picture."""
    start: _Seconds
    """First second that they stand for."""
    end: _Seconds
    """Last second that they stand for."""
    times: tuple[_Seconds, ...] = Field(min_length=1)
    """The second of each: the centres of equal segments from ``start`` to ``end``."""

    @model_validator(mode="after")
    def _in_order(self) -> FrameTimes:
        if list(self.times) != sorted(self.times) or not self.start <= self.times[0] <= self.times[-1] <= self.end:
            raise ValueError("times of pictures must ascend from start to end")
        return self

    def nearest(self, time: float) -> int:
        """Number of the picture nearest to a second; of two alike, the later."""
        after = min(bisect.bisect(self.times, time), len(self.times) - 1)
        before = max(after - 1, 0)
        return after if self.times[after] - time <= time - self.times[before] else before


STILL = FrameTimes(start=0.0, end=0.0, times=(0.0,))
"""A picture of its own: a video of one frame."""
