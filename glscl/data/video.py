"""Video bytes to frames: one index arithmetic, two decoders.

Frames are chosen by timestamp, never by average frame rate: variable frame rates, non-zero starts and edit lists give
the picture that a player would show at that moment. PyAV is the default because its wheels carry FFmpeg; torchcodec is
optional and returns the same frames.

A video is data from strangers, so what it may cost is bounded: CPU seconds, frames, pixels of a picture and in total,
bytes, memory. Only containers of video are opened, and nothing beside the bytes given: FFmpeg also reads playlists,
which name other files and hosts.
"""

from __future__ import annotations

import bisect
import io
import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from glscl.data.limits import MAX_BYTES, MAX_DECODE_S, MAX_ENCODE_S, VideoError
from glscl.errors import UserError

Decoder = Literal["pyav", "torchcodec"]

MAX_PIXELS = 8192 * 4320
"""Largest picture decoded; a header that claims more is refused before memory is taken."""
MAX_ASPECT = 64
"""Most times that a picture's long side holds its short one: scaled to a given short side it would be enormous."""
MAX_PACKETS = 2_000_000
"""Longest stream indexed (about nine hours at 60 frames a second)."""
MAX_PHANTOMS = 100_000
"""Frames in an index beyond twice those that are there (a file cut short): FFmpeg walks the index at every seek."""
MAX_PIXELS_PER_SECOND = 2_000_000_000
"""Times the seconds allowed: most pixels decoded of a video, more than one core of any machine gets through."""
MAX_STREAMS = 64
"""Most pictures, sounds and subtitles side by side in a file."""
MAX_MEMORY = 4 << 30
"""Memory that the process may take beyond what it has when a video is opened."""
CONTAINERS = ("asf", "avi", "flv", "gif", "matroska", "mov", "mpeg", "mpegts", "mpegvideo", "ogg", "webm")
"""FFmpeg's names of the containers that are opened (mov: mp4, m4v, 3gp ...; asf: wmv; mpeg: mpg, vob)."""


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """How many frames of which size are taken from a video.

    Attributes:
        max_frames: frames at most (F).
        rate: frames a second at most; a shorter video gives fewer than ``max_frames``.
        size: side of the square picture in pixels, after resizing the short side and cropping the centre.
        decoder: which library decodes.
        max_seconds: CPU seconds that one video may take.
    """

    max_frames: int
    rate: float
    size: int
    decoder: Decoder = "pyav"
    max_seconds: float = MAX_DECODE_S

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
        VideoError: the bytes are not a video, hold no frame, lose a frame that their index promises, or cost too much.
    """
    if not all(math.isfinite(edge) for edge in (start, end) if edge is not None):
        raise VideoError("start or end is not a number of seconds")
    budget = _Budget(sampling.max_seconds)
    with _decoding(data):
        with _open(data, budget) as container:
            index = _index(container, budget)
            wanted = index.select(sampling, start, end)
            if sampling.decoder == "torchcodec":
                pictures = _decode_torchcodec(data, index, wanted, sampling.size, budget)
            else:
                pictures = _decode_pyav(container, index, wanted, sampling.size, budget)
        if missing := set(wanted) - set(pictures):  # in some formats a seek lands too late: read from the start
            with _open(data, budget) as container:
                pictures |= _decode_from(container, None, missing, sampling.size, budget)
        if not pictures.keys() >= set(wanted):
            raise VideoError("frames missing from the stream")
        return torch.stack([pictures[pts] for pts in wanted])


class _Budget:
    """What one video may still cost; raises `VideoError` as soon as it is spent."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.thread_time() + seconds  # CPU time of this thread, so that a busy machine refuses no video
        self._pixels = seconds * MAX_PIXELS_PER_SECOND

    def check(self) -> None:
        """Refuse a video that has taken too long."""
        if time.thread_time() > self._end:
            raise VideoError(f"takes more than {self._seconds:g} s of CPU time")

    def picture(self, width: int, height: int, count: int = 1) -> None:
        """Refuse a picture's size, or one picture too many."""
        if min(width, height) < 1:
            raise VideoError("picture without size")
        if width * height > MAX_PIXELS:
            raise VideoError(f"picture too large ({width} x {height})")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise VideoError(f"picture too narrow ({width} x {height})")
        self._pixels -= width * height * count
        if self._pixels < 0:
            raise VideoError(f"more pixels than {self._seconds:g} s of CPU time are for")
        self.check()


class _Bytes(io.BytesIO):
    """The file as FFmpeg reads it: an endless search in it ends with the budget, too."""

    budget: _Budget

    def read(self, size: int | None = -1, /) -> bytes:
        self.budget.check()
        return super().read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.budget.check()
        return super().seek(offset, whence)


@contextmanager
def _decoding(data: bytes) -> Iterator[None]:
    """Bounds of a decoder's memory, and one kind of error for all that it may raise."""
    if not data:
        raise VideoError("empty file")
    if len(data) > MAX_BYTES:
        raise VideoError(f"more than {MAX_BYTES >> 30} GiB")
    try:
        with _bounded_memory():
            yield
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError, RuntimeError) as error:
        raise VideoError(f"undecodable ({type(error).__name__})") from error  # torch's want of memory is a RuntimeError


_ADDRESS_SPACE = resource.getrlimit(resource.RLIMIT_AS)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """Let the process grow by `MAX_MEMORY`: a header of a few bytes can make FFmpeg take any amount for its tables."""
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # only Linux says how large a process is
        yield
        return
    soft, hard = _ADDRESS_SPACE
    limit = min([now + MAX_MEMORY, *(edge for edge in (soft, hard) if edge != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, _ADDRESS_SPACE)


def _open(data: bytes, budget: _Budget) -> Any:
    file = _Bytes(data)
    file.budget = budget
    container = av.open(
        file,
        metadata_errors="ignore",
        options={"max_pixels": str(MAX_PIXELS)},
        container_options={
            "format_whitelist": ",".join(CONTAINERS),
            "protocol_whitelist": "none",
            "max_streams": str(MAX_STREAMS),
        },
        io_open=_refuse_other_files,
    )
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1  # loader workers are the parallelism
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a picture may grow in mid-stream
    return container


def _refuse_other_files(url: str, flags: int, options: dict[str, str]) -> Any:
    raise VideoError("names other files")


def _stream(container: Any) -> Any:
    """The first stream of moving pictures: sound files carry their cover as a video of one picture."""
    cover = av.stream.Disposition.attached_pic
    stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
    if stream is None:
        raise VideoError("no video stream")
    return stream


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


def _index(container: Any, budget: _Budget) -> _Index:
    stream = _stream(container)
    context = stream.codec_context
    if context is None:
        raise VideoError("no decoder for this codec")
    if stream.time_base is None:
        raise VideoError("no time base")
    if context.width * context.height > MAX_PIXELS:
        raise VideoError(f"picture too large ({context.width} x {context.height})")
    pts: list[int] = []
    keyframes: list[int] = []
    tail = 0
    for packet in _packets(container, stream, budget):
        if packet.pts is None or packet.size == 0 or packet.is_discard:
            continue
        pts.append(packet.pts)
        tail = packet.duration or tail
        if packet.is_keyframe:
            keyframes.append(packet.pts)
    if not pts:
        raise VideoError("no frames")
    if len(stream.index_entries) > MAX_PHANTOMS + 2 * len(pts):
        raise VideoError("index of frames that are not there")
    pts.sort()
    keyframes.sort()
    duration = float((pts[-1] - pts[0] + tail) * stream.time_base)
    return _Index(pts, keyframes, stream.time_base, max(duration, 1e-3))


def _packets(container: Any, stream: Any, budget: _Budget) -> Iterator[Any]:
    for count, packet in enumerate(container.demux(stream)):
        if count > MAX_PACKETS:
            raise VideoError(f"more than {MAX_PACKETS} frames")
        budget.check()
        yield packet


def _decode_pyav(container: Any, index: _Index, wanted: list[int], size: int, budget: _Budget) -> dict[int, Tensor]:
    """Seek once per group of pictures and skip frames that no wanted frame refers to."""
    groups: dict[int, set[int]] = {}
    for pts in wanted:
        position = bisect.bisect_right(index.keyframes, pts) - 1
        if position >= 0:  # else from the start: FFmpeg's search for a keyframe that is not there takes hours
            groups.setdefault(index.keyframes[position], set()).add(pts)
    pictures: dict[int, Tensor] = {}
    for keyframe, group in sorted(groups.items()):
        pictures |= _decode_from(container, keyframe, group, size, budget)
    return pictures


def _decode_from(container: Any, start: int | None, wanted: set[int], size: int, budget: _Budget) -> dict[int, Tensor]:
    """Decode until all wanted frames came, from a keyframe, or (None) from the start without skipping any frame.

    Each is brought to its final size at once: whole pictures of a long list would be gigabytes.
    """
    stream = _stream(container)
    context = stream.codec_context
    if start is not None:
        container.seek(start, stream=stream, backward=True)
    pictures: dict[int, Tensor] = {}
    converter = (
        VideoReformatter()
    )  # one per video, one thread: a scaler with its threads costs more than a small picture
    for packet in _packets(container, stream, budget):
        if start is not None:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            budget.picture(frame.width, frame.height)  # each its own: it may change in mid-stream
            if frame.pts in wanted and frame.pts not in pictures:
                picture = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                turned = np.ascontiguousarray(np.rot90(picture, _turns(frame)))
                pictures[frame.pts] = _fit(torch.from_numpy(turned).permute(2, 0, 1), size)
        if len(pictures) == len(wanted):
            break
    context.skip_frame = "DEFAULT"
    return pictures


def _turns(frame: Any) -> int:
    """Quarter turns to the left that the file asks a player for."""
    return int(round(frame.rotation / 90) % 4)


def _decode_torchcodec(data: bytes, index: _Index, wanted: list[int], size: int, budget: _Budget) -> dict[int, Tensor]:
    """The wanted frames one by one: between two calls, what the video may cost can be looked at."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError) as error:  # RuntimeError: installed, but FFmpeg's libraries are not
        raise UserError(f"data.decoder is torchcodec, which cannot be loaded ({error}); set it to pyav") from None
    pictures: dict[int, Tensor] = {}
    try:
        decoder = VideoDecoder(data, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NCHW")
        for pts in sorted(set(wanted)):
            position = bisect.bisect_left(index.pts, pts)
            budget.check()
            picture = decoder.get_frame_at(position).data
            keyframe = bisect.bisect_right(index.keyframes, pts) - 1
            first = bisect.bisect_left(index.pts, index.keyframes[keyframe]) if keyframe >= 0 else 0
            budget.picture(picture.shape[-1], picture.shape[-2], position - first + 1)
            pictures[pts] = _fit(picture, size)
    except (RuntimeError, IndexError) as error:
        raise VideoError(f"undecodable ({type(error).__name__})") from error
    return pictures


def _fit(picture: Tensor, size: int) -> Tensor:
    """Resize the short side (bicubic, antialiased) and crop the centre: (..., 3, H, W) to (..., 3, S, S)."""
    from torchvision.transforms.v2 import functional as transforms  # a second to import

    height, width = picture.shape[-2:]
    if min(height, width) != size:
        picture = transforms.resize(picture, [size], interpolation=transforms.InterpolationMode.BICUBIC, antialias=True)
    cropped: Tensor = transforms.center_crop(picture, [size, size])
    return cropped.contiguous()


def reencode(data: bytes, short_side: int, rate: float, max_seconds: float = MAX_ENCODE_S) -> bytes:
    """Re-encode a video once so that training decodes it quickly.

    The copy has ``short_side`` pixels on its short side, at most ``rate`` frames a second, a keyframe every twelve
    frames and no sound; frames keep their timestamps.

    Args:
        data: a whole video file.
        short_side: pixels.
        rate: frames a second.
        max_seconds: CPU seconds that it may take.

    Raises:
        VideoError: the video cannot be decoded, or costs too much.
    """
    target = io.BytesIO()
    budget = _Budget(max_seconds)
    with _decoding(data):
        with _open(data, budget) as source:
            index = _index(source, budget)
        with _open(data, budget) as source, av.open(target, "w", format="mp4") as out:
            encoder: Any = None
            last, due = -math.inf, 0.0
            for frame in _frames(source, budget):
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
    return target.getvalue()


def _frames(container: Any, budget: _Budget) -> Iterator[Any]:
    for packet in _packets(container, _stream(container), budget):
        for frame in packet.decode():
            budget.picture(frame.width, frame.height)
            yield frame


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
    scale = short_side / min(picture.width, picture.height)
    encoder = out.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
    encoder.width, encoder.height = (round(side * scale / 2) * 2 for side in (picture.width, picture.height))
    encoder.pix_fmt = "yuv420p"
    encoder.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
    encoder.codec_context.gop_size = 12
    encoder.codec_context.max_b_frames = 0  # packets in order of time, so that the last one says when the copy ends
    encoder.codec_context.time_base = Fraction(1, _TICKS)
    return encoder
