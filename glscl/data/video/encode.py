"""Make small copies of videos, which training decodes quickly and which show what their originals show."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import av
from av.video.reformatter import VideoReformatter
from torch import Tensor

from glscl.data.limits import GOP
from glscl.data.video import limits
from glscl.data.video.budget import Budget, VideoError, decoding
from glscl.data.video.decode import PictureReader
from glscl.data.video.display import BT601, crop_centre
from glscl.data.video.index import read_index
from glscl.data.video.source import open_video

if TYPE_CHECKING:
    from av.container import OutputContainer

_TICKS = 90000  # of a copy's clock, per second: whole numbers for the usual rates


@dataclass(frozen=True, slots=True)
class Copy:
    """A re-encoded video."""

    data: bytes  # mp4 file
    pictures: int  # pictures that the original has
    replaced: int  # how many of them do not decode, so that the nearest stands for each


def reencode(data: bytes, short_side: int, rate: float, max_seconds: float = limits.MAX_ENCODE_S) -> bytes:
    """Return the file of `make_copy`."""
    return make_copy(data, short_side, rate, max_seconds).data


def make_copy(
    data: bytes, short_side: int, rate: float, max_seconds: float = limits.MAX_ENCODE_S, gop: int = GOP
) -> Copy:
    """Re-encode a video once so that training decodes it quickly.

    The copy has ``short_side`` pixels on its short side, at most ``rate`` frames a second, a keyframe every ``gop``
    frames and no sound. It is in display form (BT.601, limited range, upright, square pixels, the shape of the first
    picture), and shows each picture at the second at which the original shows it.

    Args:
        data: a whole video file.
        short_side: pixels.
        rate: frames a second.
        max_seconds: CPU seconds that it may take.
        gop: frames from one keyframe to the next; 1 makes every frame one.

    Raises:
        VideoError: no picture of the video decodes, or it costs too much.
    """
    target = io.BytesIO()
    budget = Budget(max_seconds)
    with decoding(), open_video(data, budget) as source:
        index = read_index(source, budget)
        with PictureReader(data, source, index, budget) as reader, av.open(target, "w", format="mp4") as out:
            writer = _Writer(out, rate, index.duration, gop)
            before = -1
            replaced = 0
            for slot, frame, display in reader.in_order():
                replaced += slot - before - 1
                seconds = index.seconds(index.first_nearer(before, slot)) if before >= 0 else 0.0
                before = slot
                if writer.wants(seconds):
                    writer.write(display.picture(frame, short_side), seconds)
            if before < 0:
                raise VideoError(reader.refusal())
            writer.close()
    return Copy(target.getvalue(), len(index.times), replaced + len(index.times) - 1 - before)


class _Writer:
    """Encodes pictures in RGB as an mp4 of at most ``rate`` frames a second that ends after ``duration`` seconds."""

    def __init__(self, out: OutputContainer, rate: float, duration: float, gop: int) -> None:
        self._out, self._rate, self._duration, self._gop = out, rate, duration, gop
        self._encoder: av.VideoStream | None = None
        self._converter = VideoReformatter()
        self._last, self._due = -math.inf, 0.0

    def wants(self, seconds: float) -> bool:
        """Whether a picture of this second is to be written."""
        return seconds > self._last and seconds + 1e-6 >= self._due

    def write(self, picture: Tensor, seconds: float) -> None:
        """Encode (3, H, W) to be shown from a second on; the first picture's shape is that of the copy."""
        self._last, self._due = seconds, max(self._due + 1 / self._rate, seconds)
        if self._encoder is None:
            height, width = (max(2, side // 2 * 2) for side in picture.shape[1:])
            self._encoder = _encoder(self._out, width, height, self._rate, self._gop)
        placed = crop_centre(picture, self._encoder.height, self._encoder.width)
        rgb = av.VideoFrame.from_ndarray(placed.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        frame = self._converter.reformat(rgb, format="yuv420p", interpolation="BICUBIC", threads=1, **BT601)
        frame.pts, frame.time_base = round(seconds * _TICKS), Fraction(1, _TICKS)
        self._mux(frame)

    def close(self) -> None:
        """Write what the encoder holds back."""
        self._mux(None)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        assert self._encoder is not None  # a picture was written
        for packet in self._encoder.encode(frame):
            packet.duration = max(1, round(self._duration * _TICKS) - packet.pts)  # the muxer looks at the last's alone
            self._out.mux(packet)


def _encoder(out: OutputContainer, width: int, height: int, rate: float, gop: int) -> av.VideoStream:
    encoder = out.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    # Without the macroblock tree, whose result for widths like 84 depends on what the process encoded before.
    encoder.options = {"crf": "20", "preset": "veryfast", "threads": "1", "mbtree": "0"}
    context = encoder.codec_context
    context.gop_size = gop
    context.max_b_frames = 0  # packets in order of time, so that the last one says when the copy ends
    context.time_base = Fraction(1, _TICKS)
    context.colorspace = context.color_primaries = context.color_trc = 6  # SMPTE 170M, in each of FFmpeg's lists
    context.color_range = 1  # limited
    return encoder
