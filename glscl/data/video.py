"""Video bytes to frames: one index arithmetic, two decoders.

Frames are chosen by timestamp, never by average frame rate: variable frame rates, non-zero starts and edit lists give
the picture that a player would show at that moment. PyAV is the default because its wheels carry FFmpeg; torchcodec is
optional and returns the same frames.
"""

from __future__ import annotations

import bisect
import io
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from glscl.errors import UserError

Decoder = Literal["pyav", "torchcodec"]

MAX_PIXELS = 8192 * 4320
"""Largest picture decoded; a header that claims more is refused before memory is taken."""
MAX_PACKETS = 2_000_000
"""Longest stream indexed (about nine hours at 60 frames a second)."""


class VideoError(Exception):
    """This video cannot give frames; the message is the reason, short enough to count by."""


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """How many frames of which size are taken from a video.

    Attributes:
        max_frames: frames at most (F).
        rate: frames a second at most; a shorter video gives fewer than ``max_frames``.
        size: side of the square picture in pixels, after resizing the short side and cropping the centre.
        decoder: which library decodes.
    """

    max_frames: int
    rate: float
    size: int
    decoder: Decoder = "pyav"

    def times(self, duration: float) -> list[float]:
        """Centres of equal segments of ``duration`` seconds: one to ``max_frames`` of them."""
        count = max(1, min(self.max_frames, math.ceil(duration * self.rate - 1e-6)))
        return [(index + 0.5) * duration / count for index in range(count)]


def load_frames(data: bytes, sampling: FrameSampling, start: float | None = None, end: float | None = None) -> Tensor:
    """Decode the frames of a video that ``sampling`` asks for.

    Args:
        data: a whole video file.
        sampling: number, rate and size of frames.
        start: first second of the part to look at; None is the beginning.
        end: last second of the part; None is the end of the video.

    Returns:
        uint8 tensor (F', 3, S, S), 1 <= F' <= ``max_frames``.

    Raises:
        VideoError: the bytes are not a video, hold no frame, or lose a frame that their index promises.
    """
    if not data:
        raise VideoError("empty file")
    try:
        with _open(data) as container:
            index = _index(container)
            wanted = index.select(sampling, start, end)
            if sampling.decoder == "torchcodec":
                return _fit(_decode_torchcodec(data, index, wanted), sampling.size)
            pictures = _decode_pyav(container, index, wanted)
        if missing := set(wanted) - set(pictures):  # in some formats a seek lands too late: read from the start
            with _open(data) as container:
                pictures |= _decode_from(container, None, missing)
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise VideoError(f"undecodable ({type(error).__name__})") from error
    if not pictures.keys() >= set(wanted):
        raise VideoError("frames missing from the stream")
    return torch.stack([_fit(torch.from_numpy(pictures[pts]).permute(2, 0, 1), sampling.size) for pts in wanted])


def _open(data: bytes) -> Any:
    container = av.open(io.BytesIO(data), metadata_errors="ignore")
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # loader workers are the parallelism
    return container


@dataclass(frozen=True, slots=True)
class _Index:
    """Presentation timestamps of every frame, sorted, and which of them are keyframes."""

    pts: list[int]
    keyframes: list[int]
    time_base: Fraction
    duration: float  # seconds, last frame's own duration included

    def select(self, sampling: FrameSampling, start: float | None, end: float | None) -> list[int]:
        """Timestamps of the frames on show at the sampled times."""
        first = min(max(start or 0.0, 0.0), self.duration)
        last = min(end if end is not None else self.duration, self.duration)
        if last - first < 1e-3:  # annotations beyond the file's end: look at what is there
            first, last = 0.0, self.duration
        seconds = [float((pts - self.pts[0]) * self.time_base) for pts in self.pts]
        times = [first + time for time in sampling.times(last - first)]
        return [self.pts[max(0, bisect.bisect_right(seconds, time + 1e-9) - 1)] for time in times]


def _index(container: Any) -> _Index:
    if not container.streams.video:
        raise VideoError("no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise VideoError("no decoder for this codec")
    if context.width * context.height > MAX_PIXELS:
        raise VideoError(f"picture too large ({context.width} x {context.height})")
    pts: list[int] = []
    keyframes: list[int] = []
    tail = 0
    for packet in container.demux(stream):
        if packet.pts is None or packet.size == 0 or packet.is_discard:
            continue
        pts.append(packet.pts)
        tail = packet.duration or tail
        if packet.is_keyframe:
            keyframes.append(packet.pts)
        if len(pts) > MAX_PACKETS:
            raise VideoError(f"more than {MAX_PACKETS} frames")
    if not pts:
        raise VideoError("no frames")
    pts.sort()
    keyframes.sort()
    duration = float((pts[-1] - pts[0] + tail) * stream.time_base)
    return _Index(pts, keyframes, stream.time_base, max(duration, 1e-3))


def _decode_pyav(container: Any, index: _Index, wanted: list[int]) -> dict[int, np.ndarray[Any, Any]]:
    """Seek once per group of pictures and skip frames that no wanted frame refers to."""
    groups: dict[int, set[int]] = {}
    for pts in wanted:
        position = bisect.bisect_right(index.keyframes, pts) - 1
        groups.setdefault(index.keyframes[position] if position >= 0 else index.pts[0], set()).add(pts)
    pictures: dict[int, np.ndarray[Any, Any]] = {}
    for keyframe, group in sorted(groups.items()):
        pictures |= _decode_from(container, keyframe, group)
    return pictures


def _decode_from(container: Any, start: int | None, wanted: set[int]) -> dict[int, np.ndarray[Any, Any]]:
    """Decode until all wanted frames came, from a keyframe, or (None) from the start without skipping any frame."""
    stream = container.streams.video[0]
    context = stream.codec_context
    if start is not None:
        container.seek(start, stream=stream, backward=True)
    pictures: dict[int, np.ndarray[Any, Any]] = {}
    converter = (
        VideoReformatter()
    )  # one per video, one thread: a scaler with its threads costs more than a small picture
    for packet in container.demux(stream):
        if start is not None:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts in wanted and frame.pts not in pictures:
                picture = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                pictures[frame.pts] = np.ascontiguousarray(np.rot90(picture, _turns(frame)))
        if len(pictures) == len(wanted):
            break
    context.skip_frame = "DEFAULT"
    return pictures


def _turns(frame: Any) -> int:
    """Quarter turns to the left that the file asks a player for."""
    return int(round(frame.rotation / 90) % 4)


def _decode_torchcodec(data: bytes, index: _Index, wanted: list[int]) -> Tensor:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError) as error:  # RuntimeError: installed, but FFmpeg's libraries are not
        raise UserError(f"data.decoder is torchcodec, which cannot be loaded ({error}); set it to pyav") from None
    try:
        decoder = VideoDecoder(data, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NCHW")
        positions = [bisect.bisect_left(index.pts, pts) for pts in wanted]
        return decoder.get_frames_at(indices=positions).data  # type: ignore[no-any-return]
    except (RuntimeError, IndexError) as error:
        raise VideoError(f"undecodable ({type(error).__name__})") from error


def _fit(picture: Tensor, size: int) -> Tensor:
    """Resize the short side (bicubic, antialiased) and crop the centre: (..., 3, H, W) to (..., 3, S, S)."""
    height, width = picture.shape[-2:]
    if min(height, width) != size:
        picture = transforms.resize(picture, [size], interpolation=transforms.InterpolationMode.BICUBIC, antialias=True)
    cropped: Tensor = transforms.center_crop(picture, [size, size])
    return cropped.contiguous()


def reencode(data: bytes, short_side: int, rate: float) -> bytes:
    """Re-encode a video once so that training decodes it quickly.

    The copy has ``short_side`` pixels on its short side, at most ``rate`` frames a second, a keyframe every twelve
    frames and no sound; frames keep their timestamps.

    Raises:
        VideoError: the video cannot be decoded.
    """
    target = io.BytesIO()
    try:
        with _open(data) as source:
            index = _index(source)
        with _open(data) as source, av.open(target, "w", format="mp4") as out:
            encoder: Any = None
            last, due = -math.inf, 0.0
            for frame in source.decode(source.streams.video[0]):
                seconds = float((frame.pts - index.pts[0]) * index.time_base) if frame.pts is not None else -math.inf
                if seconds <= last or seconds + 1e-6 < due:
                    continue
                last, due = seconds, max(due + 1 / rate, seconds)
                picture = _upright(frame)
                encoder = encoder or _encoder(out, picture, short_side, rate)
                picture = picture.reformat(encoder.width, encoder.height, "yuv420p", interpolation="BICUBIC")
                picture.pts, picture.time_base = round(seconds * _TICKS), Fraction(1, _TICKS)
                picture.pict_type = 0
                _mux(out, encoder, picture, index.duration)
            if encoder is None:
                raise VideoError("no frames")
            _mux(out, encoder, None, index.duration)
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise VideoError(f"undecodable ({type(error).__name__})") from error
    return target.getvalue()


_TICKS = 90000  # of a re-encoded copy's clock, per second: whole numbers for the usual rates


def _mux(out: Any, encoder: Any, picture: Any, duration: float) -> None:
    for packet in encoder.encode(picture):
        packet.duration = max(1, round(duration * _TICKS) - packet.pts)  # the muxer looks at the last packet's alone
        out.mux(packet)


def _upright(frame: Any) -> Any:
    if not _turns(frame):
        return frame
    turned = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), _turns(frame)))
    return av.VideoFrame.from_ndarray(turned, format="rgb24")


def _encoder(out: Any, picture: Any, short_side: int, rate: float) -> Any:
    if min(picture.width, picture.height) == 0 or picture.width * picture.height > MAX_PIXELS:
        raise VideoError(f"picture size {picture.width} x {picture.height}")
    scale = short_side / min(picture.width, picture.height)
    encoder = out.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
    encoder.width, encoder.height = (round(side * scale / 2) * 2 for side in (picture.width, picture.height))
    encoder.pix_fmt = "yuv420p"
    encoder.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
    encoder.codec_context.gop_size = 12
    encoder.codec_context.max_b_frames = 0  # packets in order of time, so that the last one says when the copy ends
    encoder.codec_context.time_base = Fraction(1, _TICKS)
    return encoder
