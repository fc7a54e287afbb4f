"""Frame sampling: how many frames are taken from a video, at which times and of which size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from glscl.data.video import limits

Decoder = Literal["pyav", "torchcodec"]


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """How many frames of which size are taken from a video."""

    max_frames: int  # frames at most (F)
    rate: float  # frames a second at most; a shorter video gives fewer than ``max_frames``
    size: int  # side of the square picture in pixels, after resizing the short side and cropping the centre
    decoder: Decoder = "pyav"  # which library decodes
    max_seconds: float = limits.MAX_DECODE_S  # CPU seconds that one video may take
    augment: Callable[[Tensor], Tensor] | None = None
    """Applied to every upright picture, uint8 (3, H, W), before it is resized; training only."""
    window: float = 1.0
    """Share of the time, in its middle, that frames are taken from: as many as from the whole, as in slow motion."""

    dtype: ClassVar[torch.dtype] = torch.uint8
    padding: ClassVar[int] = 0
    text_shape: ClassVar[tuple[int, ...]] = (0,)  # captions are read as token ids, which take no room in pages

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of a frame in a batch."""
        return 3, self.size, self.size

    def times(self, first: float, last: float) -> list[float]:
        """Centres of equal segments from one second to another: one to ``max_frames`` of them."""
        duration = last - first
        count = max(1, min(self.max_frames, math.ceil(duration * self.rate - 1e-6)))
        if self.window < 1:
            first, duration = first + (1 - self.window) / 2 * duration, self.window * duration
        return [first + (index + 0.5) * duration / count for index in range(count)]
