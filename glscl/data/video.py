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
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

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
        with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
            index = _index(container)
            wanted = index.select(sampling, start, end)
            if sampling.decoder == "torchcodec":
                return _fit(_decode_torchcodec(data, index, wanted), sampling.size)
            pictures = _decode_pyav(container, index, wanted)
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise VideoError(f"undecodable ({type(error).__name__})") from error
    return torch.stack([_fit(torch.from_numpy(pictures[pts]).permute(2, 0, 1), sampling.size) for pts in wanted])


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
    if context.width * context.height > MAX_PIXELS:
        raise VideoError(f"picture too large ({context.width} x {context.height})")
    stream.thread_type = "NONE"
    context.thread_count = 1  # loader workers are the parallelism
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
        pictures |= _decode_from(container, keyframe, group, skip=True)
    missing = set(wanted) - set(pictures)
    if missing:  # some muxers place keyframes where a seek does not land: read from the start, skipping nothing
        pictures |= _decode_from(container, index.pts[0], missing, skip=False)
        missing -= set(pictures)
    if missing:
        raise VideoError("frames missing from the stream")
    return pictures


def _decode_from(container: Any, start: int, wanted: set[int], skip: bool) -> dict[int, np.ndarray[Any, Any]]:
    stream = container.streams.video[0]
    context = stream.codec_context
    container.seek(start, stream=stream, backward=True)
    pictures: dict[int, np.ndarray[Any, Any]] = {}
    for packet in container.demux(stream):
        if skip:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts in wanted and frame.pts not in pictures:
                picture = frame.to_ndarray(format="rgb24")
                turns = round(getattr(frame, "rotation", 0) / 90) % 4
                pictures[frame.pts] = np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture
        if len(pictures) == len(wanted):
            break
    context.skip_frame = "DEFAULT"
    return pictures


def _decode_torchcodec(data: bytes, index: _Index, wanted: list[int]) -> Tensor:
    from torchcodec.decoders import VideoDecoder

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
    written = 0
    try:
        with av.open(io.BytesIO(data), metadata_errors="ignore") as source, av.open(target, "w", format="mp4") as out:
            if not source.streams.video:
                raise VideoError("no video stream")
            stream = source.streams.video[0]
            stream.thread_type = "NONE"
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_PIXELS or min(width, height) == 0:
                raise VideoError(f"picture size {width} x {height}")
            scale = short_side / min(width, height)
            encoder = out.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
            encoder.width, encoder.height = (round(side * scale / 2) * 2 for side in (width, height))
            encoder.pix_fmt = "yuv420p"
            encoder.options = {"crf": "20", "preset": "veryfast", "threads": "1", "keyint": "12"}
            encoder.codec_context.gop_size = 12
            encoder.codec_context.time_base = Fraction(1, 12800)
            first: float | None = None
            due = 0.0
            for frame in source.decode(stream):
                if frame.pts is None:
                    continue
                seconds = float(frame.pts * stream.time_base)
                first = seconds if first is None else first
                if seconds - first + 1e-6 < due:
                    continue
                due = max(due + 1 / rate, seconds - first)
                picture = frame.reformat(encoder.width, encoder.height, "yuv420p", interpolation="BICUBIC")
                picture.pts, picture.time_base = round((seconds - first) * 12800), Fraction(1, 12800)
                picture.pict_type = 0
                out.mux(encoder.encode(picture))
                written += 1
            out.mux(encoder.encode(None))
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError(f"undecodable ({type(error).__name__})") from error
    if not written:
        raise VideoError("no frames")
    return target.getvalue()
