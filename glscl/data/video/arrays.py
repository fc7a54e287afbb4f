"""Videos that are decoded already: pictures in an array with their times, or another library's decoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glscl.data.video.budget import VideoError, check_size
from glscl.data.video.decode import Clip, lay_down
from glscl.data.video.display import Form, Turn, crop_centre, resize
from glscl.data.video.index import shown_at
from glscl.data.video.sampling import FrameSampling
from glscl.errors import UserError


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """The pictures of a video, upright, with square pixels, in RGB, and when each is shown.

    Attributes:
        pictures: uint8 (T, H, W, 3), an array or a tensor.
        fps: pictures a second, of a constant rate; the first is shown at second 0.
        times: in place of ``fps``, the second at which each picture begins, ascending.
        until: with ``times``, the second at which the last picture ends; None: it is shown as long as the one before.

    Raises:
        UserError: another shape or type, no picture, or not exactly one of ``fps`` and ``times``, which fits.
    """

    pictures: npt.NDArray[np.uint8] | Tensor
    fps: float | None = None
    times: Sequence[float] | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        shape, kind = tuple(self.pictures.shape), str(self.pictures.dtype).removeprefix("torch.")
        if kind != "uint8" or len(shape) != 4 or shape[3] != 3 or not all(shape):
            raise UserError(f"frames must be uint8 of shape T x H x W x 3, not {kind} of {' x '.join(map(str, shape))}")
        if (self.fps is None) == (self.times is None):
            raise UserError("frames need either fps, pictures a second, or times, the second at which each begins")
        self._check_times()

    def _check_times(self) -> None:
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise UserError(f"frames: fps is {self.fps:g}; it must be above 0")
        if self.times is not None and len(self.times) != len(self.pictures):
            raise UserError(f"frames: {len(self.times)} times for {len(self.pictures)} pictures; each needs one")
        begins = self.begins
        if not all(map(math.isfinite, begins)) or any(a >= b for a, b in itertools.pairwise(begins)):
            raise UserError("frames: times must be seconds, each later than the one before")
        if self.until is not None and (self.times is None or not begins[-1] <= self.until < math.inf):
            raise UserError(f"frames: until is {self.until:g}; it goes with times, and is not before the last of them")

    @property
    def begins(self) -> list[float]:
        """The second at which each picture begins."""
        if self.fps is not None:
            return [number / self.fps for number in range(len(self.pictures))]
        return [float(time) for time in self.times or ()]

    @property
    def end(self) -> float:
        """The second at which the last picture ends."""
        if self.fps is not None:
            return len(self.pictures) / self.fps
        begins = self.begins
        if self.until is not None:
            return self.until
        return 2 * begins[-1] - begins[-2] if len(begins) > 1 else begins[-1]


@runtime_checkable
class FrameDecoder(Protocol):
    """A decoder that gives the frames shown at some seconds, as torchcodec's ``VideoDecoder`` does."""

    @property
    def metadata(self) -> object:
        """Has ``begin_stream_seconds`` and ``end_stream_seconds``."""

    def get_frames_played_at(self, seconds: list[float]) -> object:
        """Has ``data``, uint8 (N, 3, H, W)."""


def take_frames(frames: Frames, sampling: FrameSampling, start: float | None = None, end: float | None = None) -> Clip:
    """Take of decoded pictures those that `load_clip` would take of their file, in the same form.

    Raises `VideoError`: the pictures are too large or too narrow.
    """
    begins = frames.begins
    first, last = _window(begins[0], frames.end, start, end)
    chosen = shown_at(begins, sampling.times(first, last), float)
    return Clip(lay_down([_square(_picture(frames, number), sampling.size) for number in chosen], None), 0)


def _picture(frames: Frames, number: int) -> Tensor:
    """One picture (3, H, W), wherever the array lies and however its strides are."""
    picture = frames.pictures[number]
    tensor = picture.cpu() if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture))
    return tensor.permute(2, 0, 1)


def take_decoded(
    decoder: FrameDecoder, sampling: FrameSampling, start: float | None = None, end: float | None = None
) -> Clip:
    """Ask a decoder for the frames that are sampled. Raises `VideoError`: it fails, or gives something else."""
    begin, finish = (getattr(decoder.metadata, f"{edge}_stream_seconds", None) for edge in ("begin", "end"))
    if not isinstance(begin, int | float) or not isinstance(finish, int | float):
        raise VideoError("its decoder does not say when the video begins and ends")
    times = sampling.times(*_window(begin, finish, start, end))
    try:
        data = getattr(decoder.get_frames_played_at(times), "data", None)
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(f"its decoder says: {' '.join(str(error).split())[:60]}") from None
    if not isinstance(data, Tensor) or data.dtype != torch.uint8 or data.shape[:2] != (len(times), 3) or data.ndim != 4:
        raise VideoError("its decoder does not give frames as uint8 N x 3 x H x W")
    return Clip(lay_down([_square(picture.cpu(), sampling.size) for picture in data], None), 0)


def _window(begin: float, finish: float, start: float | None, end: float | None) -> tuple[float, float]:
    """First and last second that are sampled; beyond the video's end, the whole of it, as of a file."""
    first = max(begin if start is None else start, begin)
    last = finish if end is None else min(end, finish)
    return (first, last) if last - first >= 1e-3 else (begin, finish)


def _square(picture: Tensor, size: int) -> Tensor:
    """The centre (3, S, S) of an upright picture (3, H, W)."""
    height, width = picture.shape[1:]
    check_size(width, height)
    return crop_centre(resize(picture, size, Form(width, height, Fraction(1), Turn())), size)
