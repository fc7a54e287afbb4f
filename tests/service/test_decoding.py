"""A clip is decoded in a process of its own: the same frames, and whatever a file does, the server lives."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import psutil
import pytest
import torch

from glscl.data.video import FrameSampling, VideoError, load_clip
from glscl.data.video.arrays import FrameDecoder, take_decoded
from glscl.service.decoding import ClipDecoder, ClipLimits

SAMPLING = FrameSampling(4, 2.0, 32)
LIMITS = ClipLimits(cpu_s=10, duration_s=60)


def test_the_frames_are_those_of_the_file(make_video: Callable[..., bytes]) -> None:
    data = make_video(tuple(n / 4 for n in range(20)), seed=5)
    with ClipDecoder(data, 32, LIMITS) as clip:
        assert isinstance(clip, FrameDecoder)
        assert torch.equal(take_decoded(clip, SAMPLING).frames, load_clip(data, SAMPLING).frames)
        assert torch.equal(take_decoded(clip, SAMPLING, 1.0, 2.5).frames, load_clip(data, SAMPLING, 1.0, 2.5).frames)


def test_the_process_is_gone_afterwards(clip: bytes) -> None:
    with ClipDecoder(clip, 32, LIMITS) as opened:
        process = psutil.Process(opened._process.pid)
        assert process.pid != os.getpid()
        assert process.is_running()
    assert not process.is_running()


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "empty"), (b"x" * 1000, "undecodable"), (b"\x00" * (1 << 20), "undecodable")],
)
def test_what_is_no_video_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(VideoError, match=says), ClipDecoder(data, 32, LIMITS):
        pass


def test_a_clip_may_last_so_long(make_video: Callable[..., bytes]) -> None:
    with pytest.raises(VideoError, match="at most 1 s"), ClipDecoder(make_video(), 32, ClipLimits(10, 1)):
        pass


def test_a_decoder_that_dies_is_the_clip_s_fault(clip: bytes) -> None:
    with ClipDecoder(clip, 32, LIMITS) as opened:
        os.kill(opened._process.pid or 0, signal.SIGSEGV)
        with pytest.raises(VideoError, match="took its decoder down"):
            opened.get_frames_played_at([0.0])


def test_a_decoder_that_hangs_is_ended(clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with ClipDecoder(clip, 32, LIMITS) as opened:
        monkeypatch.setattr(opened._connection, "poll", lambda timeout: False)
        with pytest.raises(VideoError, match="too long"):
            opened.get_frames_played_at([0.0])
