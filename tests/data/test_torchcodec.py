"""When torchcodec decodes and when PyAV does instead; with a stand-in for the library, which need not be installed."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import pytest
import torch

from glscl.data.video import FrameSampling, load_frames
from tests.data.drawn import draw, level, ramp
from tests.data.test_holes import without

ONE = 1 << 16
PICTURES = [(n / 10, level(30 + 3 * n)) for n in range(10)]


def stand_in(monkeypatch: pytest.MonkeyPatch, shift: float = 0.0, height: int = 48) -> None:
    """Every picture is black, at its own second: what it decoded cannot be taken for PyAV's."""

    class VideoDecoder:
        def __init__(self, data: bytes, **_: Any) -> None:
            with av.open(io.BytesIO(data)) as container:
                self.times = sorted(frame.time for frame in container.decode(video=0))

        def get_frame_at(self, index: int) -> Any:
            black = torch.zeros(3, height, 64, dtype=torch.uint8)
            return types.SimpleNamespace(data=black, pts_seconds=self.times[index] + shift)

    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.SimpleNamespace(VideoDecoder=VideoDecoder))


def is_used(data: bytes) -> bool:
    frames = load_frames(data, FrameSampling(4, 1000.0, 48, "torchcodec"))
    if frames.any():
        assert frames.equal(load_frames(data, FrameSampling(4, 1000.0, 48)))
        return False
    return True


def test_it_decodes_what_is_displayed_as_it_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    assert is_used(draw(PICTURES))
    assert is_used(draw(PICTURES, bframes=2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: draw(PICTURES, pixel=Fraction(2)),
        lambda: draw(PICTURES, matrix=(-ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)),
        lambda: draw(PICTURES, options={"x264-params": "tff=1:interlaced=1"}),
        lambda: draw(PICTURES, "matroska", "ffv1", "gray"),
        lambda: ramp(30, 10, container="mpegts") + ramp(90, 10, container="mpegts"),
        lambda: without(draw(PICTURES, gop=1), 4, 5),
    ],
    ids=["pixels", "matrix", "interlaced", "grey", "clocks", "hole"],
)
def test_pyav_decodes_the_others(make: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    assert not is_used(make())


def test_pyav_decodes_where_torchcodec_counts_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, shift=0.1)
    assert not is_used(draw(PICTURES))
    stand_in(monkeypatch, height=96)
    assert not is_used(draw(PICTURES))
