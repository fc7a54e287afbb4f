"""Videos stored as pictures: make them from a video once, and decode those that a sampling takes.

They are in display form, like the pictures of `decode`. JPEG is decoded by torchvision's libjpeg-turbo,
which is imported where pictures are read: it brings torch's compiler.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module

import torch
from torch import Tensor

from glscl.data.frame_times import FrameTimes
from glscl.data.video import limits
from glscl.data.video.budget import Budget, VideoError, decoding
from glscl.data.video.decode import Clip, PictureReader, lay_down
from glscl.data.video.display import Form, Turn, crop_centre, resize
from glscl.data.video.index import read_index
from glscl.data.video.sampling import FrameSampling
from glscl.data.video.source import open_video


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures that stand for a video."""

    jpegs: tuple[bytes, ...]  # the files, in the order of time
    times: FrameTimes  # when each is shown
    replaced: int  # how many stand for a picture that does not decode


def make_pictures(
    data: bytes, sampling: FrameSampling, quality: int, start: float | None = None, end: float | None = None
) -> Pictures:
    """Take the pictures that `load_clip` takes, whole, with ``sampling.size`` pixels on their short side, as JPEG.

    Args:
        data: a whole video file.
        sampling: number, rate and short side.
        quality: of JPEG, 1 to 100.
        start: first second that is sampled; None is the beginning.
        end: last second that is sampled; None is the end of the video.

    Raises:
        VideoError: no picture of the video decodes, or it costs too much.
    """
    import_module("torchvision.io")  # before memory is bounded

    budget = Budget(sampling.max_seconds)
    with decoding(), open_video(data, budget) as container:
        index = read_index(container, budget)
        first, last = index.window(start, end)
        times = sampling.times(first, last)
        slots = index.select(times)
        with PictureReader(data, container, index, budget) as reader:
            found = reader.read(slots, lambda display, frame: _encode(display.picture(frame, sampling.size), quality))
    return Pictures(
        tuple(found[slot][1] for slot in slots),
        FrameTimes(rate=sampling.rate, start=first, end=last, times=tuple(times)),
        sum(found[slot][0] != slot for slot in slots),
    )


def _encode(picture: Tensor, quality: int) -> bytes:
    from torchvision.io import encode_jpeg

    file: Tensor = encode_jpeg(picture.contiguous(), quality)
    return file.numpy().tobytes()


def load_pictures(
    read: Callable[[int], bytes], times: FrameTimes, sampling: FrameSampling, into: Tensor | None = None
) -> Clip:
    """Decode the pictures nearest to the sampled times; where one does not decode, the next to it.

    Args:
        read: gives the file of a picture by its number.
        times: of the pictures.
        sampling: number, rate and size of frames.
        into: as for `load_clip`.

    Raises:
        VideoError: none decodes, or they cost too much.
    """
    import_module("torchvision.io")  # before memory is bounded

    reader = _Reader(read, sampling)
    wanted = [times.nearest(time) for time in sampling.times(times.start, times.end)]
    with decoding():
        frames = [reader.nearest(number, len(times.times)) for number in wanted]
    return Clip(lay_down([frame for frame, _ in frames], into), sum(replaced for _, replaced in frames))


class _Reader:
    """Decodes pictures of one video, each once."""

    def __init__(self, read: Callable[[int], bytes], sampling: FrameSampling) -> None:
        self._read, self._sampling = read, sampling
        self._budget = Budget(sampling.max_seconds)
        self._squares: dict[int, Tensor | None] = {}  # None: does not decode

    def nearest(self, wanted: int, count: int) -> tuple[Tensor, bool]:
        """The square (3, S, S) of the picture that is wanted, or of the nearest that decodes, and if it is another."""
        for number in _ever_further(wanted, count):
            if number not in self._squares:
                self._squares[number] = self._square(number)
            square = self._squares[number]
            if square is not None:
                return square, number != wanted
        raise VideoError("no picture decodes")

    def _square(self, number: int) -> Tensor | None:
        data = self._read(number)
        self._budget.check()
        try:
            picture = _decode(data, self._budget)
        except (RuntimeError, ValueError):
            return None
        if self._sampling.augment is not None:
            picture = self._sampling.augment(picture)
        form = Form(picture.shape[2], picture.shape[1], Fraction(1), Turn())
        return crop_centre(resize(picture, self._sampling.size, form), self._sampling.size)


def _ever_further(wanted: int, count: int) -> Iterator[int]:
    yield wanted
    yield from sorted(set(range(count)) - {wanted}, key=lambda number: abs(number - wanted))


def _decode(data: bytes, budget: Budget) -> Tensor:
    """Decode a picture in RGB, upright: (3, H, W).

    Raises:
        RuntimeError, ValueError: it is damaged, or of another kind than those that are read.
        VideoError: it costs too much.
    """
    from torchvision.io import ImageReadMode, decode_jpeg, decode_png, decode_webp

    file = torch.frombuffer(bytearray(data or b"empty"), dtype=torch.uint8)
    if data.startswith(b"\xff\xd8"):
        scans = data.count(b"\xff\xda")
        if scans > limits.MAX_SCANS:
            raise VideoError(f"more than {limits.MAX_SCANS} scans")
        budget.picture(*_jpeg_size(data), count=scans)
        picture: Tensor = decode_jpeg(file, ImageReadMode.RGB, apply_exif_orientation=True)
    elif data.startswith(b"\x89PNG"):
        budget.picture(*struct.unpack_from(">II", data.ljust(24, b"\0"), 16))
        picture = decode_png(file, ImageReadMode.RGB, apply_exif_orientation=True)
        if picture.dtype == torch.uint16:
            picture = (picture.to(torch.int32) >> 8).to(torch.uint8)
    else:
        picture = decode_webp(file, ImageReadMode.RGB)
        budget.picture(picture.shape[2], picture.shape[1])  # afterwards: the format ends at 16,383 pixels a side
    return picture


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height in the frame header of a JPEG file.

    Raises:
        ValueError: there is none.
    """
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if kind & 0xF0 == 0xC0 and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 1 if kind == 0xFF else 2 + length  # FF before a marker fills up
    raise ValueError("no frame header")
