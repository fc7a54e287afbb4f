"""Small drawn videos whose pictures say when they are shown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from glscl.data.video import Clip, FrameSampling, load_clip, load_pictures, make_copy, make_pictures

Array = np.ndarray[Any, Any]
RATE = 10


def draw(
    frames: Iterable[tuple[float, Any]],
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    bframes: int = 0,
    gop: int = 10,
    options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
    pixel: Fraction | None = None,
    matrix: Sequence[int] | None = None,
    sound: bool = False,
) -> bytes:
    """Encode pictures, (H, W, 3) in RGB or frames of PyAV, each with its second; ``sound`` begins at second 0."""
    frames = list(frames)
    pictures = [
        (time, picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture, format="rgb24"))
        for time, picture in frames
    ]
    target = io.BytesIO()
    with av.open(target, "w", format=container) as out:
        audio: Any = out.add_stream("mp2", rate=32000, layout="mono") if sound else None
        stream: Any = out.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = pictures[0][1].width, pictures[0][1].height, pix_fmt
        stream.options = {"threads": "1"} | ({"preset": "ultrafast", "qp": "8"} if codec == "libx264" else {})
        stream.options |= {"qmin": "1", "qmax": "2"} if codec.startswith("mpeg") else {}
        stream.options |= options or {}
        context = stream.codec_context
        context.gop_size, context.max_b_frames = gop, bframes
        if pixel is not None:
            context.sample_aspect_ratio = pixel
        for name, value in (tags or {}).items():
            setattr(context, name, value)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if audio is not None:
            for number in range(int((pictures[-1][0] + 0.1) * 32000) // 1152):
                chunk = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
                chunk.sample_rate, chunk.pts = 32000, number * 1152
                out.mux(audio.encode(chunk))
            out.mux(audio.encode(None))
        for time, frame in pictures:
            if frame.format.name != pix_fmt:
                frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(time * RATE), Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return target.getvalue()


def level(value: float, size: tuple[int, int] = (64, 48)) -> Array:
    """One grey, (H, W, 3)."""
    return np.full((size[1], size[0], 3), round(value), np.uint8)


def ramp(first: float, count: int, start: float = 0.0, step: float = 3.0, **how: Any) -> bytes:
    """A video of ``count`` pictures, ten a second, each ``step`` brighter than the one before."""
    return draw(((start + n / RATE, level(first + step * n)) for n in range(count)), **how)


def levels(data: bytes, frames: int, **window: float) -> list[int]:
    """The grey of each frame."""
    return _greys(load_clip(data, FrameSampling(frames, 1000.0, 48), **window))


def _greys(clip: Clip) -> list[int]:
    return [round(float(picture.float().mean())) for picture in clip.frames]


def both(data: bytes, frames: int, **window: float) -> list[int]:
    """The grey of each frame of a file, whose copy and whose pictures must have the same."""
    sampling = FrameSampling(frames, 1000.0, 48)
    as_is = levels(data, frames, **window)
    pictures = make_pictures(data, sampling, 90, **window)
    stored = _greys(load_pictures(pictures.jpegs.__getitem__, pictures.times, sampling))
    for others in (levels(make_copy(data, 48, 100.0).data, frames, **window), stored):
        assert len(as_is) == len(others)
        assert max(abs(a - b) for a, b in zip(as_is, others, strict=True)) <= 2, (as_is, others)
    return as_is


def close(found: Sequence[float], expected: Sequence[float], tolerance: float = 2.0) -> bool:
    """Whether the numbers agree."""
    return len(found) == len(expected) and max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= tolerance
