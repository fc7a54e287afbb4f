"""Frames from bytes: which frames, of which size, and what happens to files that are broken."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glscl.data.video import FrameSampling, VideoError, limits, load_frames, reencode
from glscl.data.video.budget import Budget
from glscl.data.video.source import numbered_packets, open_video
from glscl.errors import UserError

CONSTANT = [n / 25 for n in range(60)]
VARIABLE = [0.0, 0.1, 0.15, 0.9, 1.0, 1.05, 1.1, 2.4, 2.5, 3.3, 3.32, 3.34, 4.0]
LATE = [7.5 + n / 10 for n in range(23)]


def whole(data: bytes) -> list[tuple[float, np.ndarray[Any, Any]]]:
    """Every frame as a plain decode from the first to the last gives it, with its time after the file's beginning."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
        start = container.start_time
    zero = frames[0].pts * frames[0].time_base if start is None else Fraction(start, av.time_base)
    return [(float(f.pts * f.time_base - zero), f.to_ndarray(format="rgb24")) for f in frames]


def test_packets_are_those_of_the_file(make_video: Callable[..., bytes]) -> None:
    """Without the empty one by which PyAV marks the end."""
    budget = Budget(9)
    with open_video(make_video(times=[n / 10 for n in range(10)]), budget) as container:
        packets = list(numbered_packets(container, budget))
    assert [number for number, _ in packets] == list(range(10))
    assert all(packet.size for _, packet in packets)


def on_show(frames: list[tuple[float, np.ndarray[Any, Any]]], time: float) -> Tensor:
    """The picture that a player shows at a time."""
    picture = ([frames[0][1]] + [picture for at, picture in frames if at <= time + 1e-6])[-1]
    return torch.from_numpy(picture).permute(2, 0, 1)


def square(data: bytes, size: int = 48, frames: int = 12, rate: float = 4.0, **window: float) -> Tensor:
    """Frames of a 64 x 48 video without resizing: the middle 48 columns."""
    return load_frames(data, FrameSampling(frames, rate, size), **window)


@pytest.mark.parametrize(
    ("times", "container", "codec"),
    [
        (CONSTANT, "mp4", "libx264"),
        (VARIABLE, "mp4", "libx264"),
        (VARIABLE, "matroska", "libx264"),
        (LATE, "matroska", "libx264"),
        (LATE, "mpegts", "libx264"),
        (CONSTANT, "avi", "mpeg4"),
    ],
)
def test_frames_are_those_a_player_shows(
    make_video: Callable[..., bytes], times: list[float], container: str, codec: str
) -> None:
    data = make_video(times, container=container, codec=codec)
    frames = whole(data)
    assert len(frames) == len(times)
    if codec == "libx264":
        with av.open(io.BytesIO(data)) as file:
            packets = [packet.pts for packet in file.demux(video=0) if packet.size]
        assert packets != sorted(packets), "the test wants B-frames"
    for start, end in ((0.0, 1.9), (0.3, 1.2), (1.0, 1.01)):
        got = square(data, start=start, end=end)
        assert len(got) == np.ceil((end - start) * 4)
        expected = [on_show(frames, start + (n + 0.5) * (end - start) / len(got)) for n in range(len(got))]
        assert torch.equal(got, torch.stack(expected)[..., 8:56])


@pytest.mark.parametrize("times", [CONSTANT, VARIABLE])
def test_every_frame_of_a_file_can_be_reached_exactly(make_video: Callable[..., bytes], times: list[float]) -> None:
    data = make_video(times)
    frames = whole(data)
    for (time, picture), following in zip(frames, [*times[1:], times[-1] + 0.02], strict=True):
        got = square(data, frames=1, start=time, end=min(following, time + 0.02))
        assert torch.equal(got[0], torch.from_numpy(picture).permute(2, 0, 1)[..., 8:56]), time


def test_neighbouring_frames_differ(make_video: Callable[..., bytes]) -> None:
    """Without this the comparisons above would prove nothing."""
    frames = [picture for _, picture in whole(make_video(CONSTANT))]
    assert all(np.abs(a.astype(int) - b).mean() > 2 for a, b in pairwise(frames))


def test_number_of_frames(make_video: Callable[..., bytes]) -> None:
    data = make_video([n / 10 for n in range(35)])  # 3.5 s
    for frames, rate, expected in ((12, 1.0, 4), (3, 1.0, 3), (12, 2.0, 7), (12, 100.0, 12), (12, 0.1, 1)):
        assert len(square(data, frames=frames, rate=rate)) == expected
    assert len(square(data, start=1.0, end=2.0)) == 4
    assert torch.equal(square(data, start=90.0, end=95.0), square(data))  # annotated beyond the file's end
    assert torch.equal(square(data, start=2.0, end=1.0), square(data))
    assert torch.equal(square(data, start=-5.0, end=500.0), square(data))


def test_very_short_videos(make_video: Callable[..., bytes]) -> None:
    one = make_video([0.0])
    assert torch.equal(square(one), torch.from_numpy(whole(one)[0][1]).permute(2, 0, 1)[None, ..., 8:56])
    assert len(square(make_video([0.0, 0.1, 0.2, 0.3]), rate=1.0)) == 1
    assert len(square(make_video([4.2], container="matroska"))) == 1


def test_size_and_crop(make_video: Callable[..., bytes]) -> None:
    frames = square(make_video(size=(160, 96)), size=24)
    assert frames.shape[1:] == (3, 24, 24)
    assert frames.dtype == torch.uint8
    assert frames.is_contiguous()
    tall = square(make_video(size=(48, 96)), size=48)
    assert torch.equal(tall[0], torch.from_numpy(whole(make_video(size=(48, 96)))[0][1]).permute(2, 0, 1)[:, 24:72])


def rotated(data: bytes) -> bytes:
    """Ask players for a quarter turn to the right, as telephones write it: the matrix of the track header."""
    at = data.index(b"tkhd") + 4 + 40
    return data[:at] + struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30) + data[at + 36 :]


def test_rotation(make_video: Callable[..., bytes]) -> None:
    data = make_video()
    upright = square(data)
    turned = square(rotated(data))
    assert torch.equal(turned, upright.rot90(-1, (-2, -1)))
    copy = reencode(rotated(data), 48, 30)
    with av.open(io.BytesIO(copy)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (48, 64)
    assert (square(copy).int() - turned.int()).abs().float().mean() < 6


def sound() -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return target.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (bytes(5000), "undecodable"),
        (b"this is no video " * 300, "undecodable"),
        (b"\x00\x00\x00\x18ftypmp42", "undecodable"),
        (sound(), "no video stream"),
    ],
    ids=["empty", "zeros", "text", "head", "sound"],
)
def test_no_video_in_there(data: bytes, reason: str) -> None:
    with pytest.raises(VideoError, match=reason):
        square(data)
    if data:
        with pytest.raises(VideoError, match=reason):
            reencode(data, 24, 3)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_cut_off_files(make_video: Callable[..., bytes], container: str) -> None:
    """An mp4 without its index is refused; a stream that ends early gives the frames it still has, or is refused."""
    data = make_video(CONSTANT, container=container)
    for share in (0.05, 0.3, 0.6, 0.95):
        cut = data[: int(len(data) * share)]
        if container == "mp4":
            with pytest.raises(VideoError, match="undecodable"):
                square(cut)
        else:
            decodes_or_refuses(cut)


def decodes_or_refuses(data: bytes) -> None:
    for load in (lambda: square(data), lambda: square(reencode(data, 48, 5))):
        try:
            frames = load()
        except VideoError as error:
            reason = str(error)
        else:
            assert 1 <= len(frames) <= 12
            assert frames.shape[1:] == (3, 48, 48)
            continue
        assert "\n" not in reason
        assert len(reason) < 100


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), min_size=1, max_size=12),
    st.sampled_from(["mp4", "matroska", "avi"]),
)
def test_damaged_bytes_never_crash(
    make_video: Callable[..., bytes], damage: list[tuple[float, int]], container: str
) -> None:
    data = bytearray(make_video(VARIABLE, container=container, bframes=0 if container == "avi" else 2))
    for where, flip in damage:
        data[int(where * len(data))] ^= flip
    decodes_or_refuses(bytes(data))


def test_a_stream_that_loses_frames_is_refused(make_video: Callable[..., bytes]) -> None:
    """The payload is wiped and the index kept: FFmpeg reports nothing, but the pictures do not come."""
    data = bytearray(make_video(CONSTANT))
    at = data.index(b"mdat") + 4
    size = struct.unpack(">I", data[at - 8 : at - 4])[0] - 8
    data[at : at + size] = bytes(size)
    with pytest.raises(VideoError, match=r"no picture decodes \(Error splitting the input into NAL units\)"):
        square(bytes(data))


def test_oversized_picture_is_refused_before_it_is_decoded(
    make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match=r"picture too large \(64 x 48\)"):
        square(make_video())


@pytest.mark.parametrize("good", [0, 1])
def test_what_cannot_be_read_further_ends_a_file_unless_it_is_the_first_packet(
    make_video: Callable[..., bytes], good: int
) -> None:
    with open_video(make_video(), Budget(9)) as container:

        class Torn:
            streams = container.streams

            def demux(self, stream: Any) -> Any:
                yield from itertools.islice(container.demux(stream), good)
                raise av.error.InvalidDataError(1, "torn")

        packets = numbered_packets(Torn(), Budget(9))  # type: ignore[arg-type]
        if good:
            assert [number for number, _ in packets] == [0]
        else:
            with pytest.raises(av.error.InvalidDataError):
                next(packets)


def test_decoders_have_one_thread_and_a_bound_on_pictures(make_video: Callable[..., bytes]) -> None:
    with open_video(make_video(), Budget(9)) as container:
        stream = container.streams.video[0]
        assert (stream.thread_type.name, stream.codec_context.thread_count) == ("NONE", 1)
        assert stream.codec_context.options == {"max_pixels": str(limits.MAX_PIXELS)}  # pictures may grow later


@pytest.mark.parametrize("times", [CONSTANT, VARIABLE, LATE, [0.0]])
def test_reencoding_keeps_time(make_video: Callable[..., bytes], times: list[float]) -> None:
    data = make_video(times, container="matroska", size=(160, 96))
    copy = reencode(data, 48, 5.0)
    kept = [time for time, _ in whole(copy)]
    with av.open(io.BytesIO(copy)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (80, 48)
        assert not container.streams.audio
        length = float(stream.duration * stream.time_base)
    span = times[-1] - times[0]
    assert span <= length <= span + 0.2
    assert set(np.round(kept, 3)) <= set(np.round(np.array(times) - times[0], 3))  # no time is invented
    assert all(b - a > 1e-3 for a, b in pairwise(kept))
    assert len(kept) <= span * 5 + 1 + 1e-9
    assert whole(copy)[0][0] == 0.0
    source = whole(data)
    for time, picture in whole(copy):
        shown = on_show(source, time + 1e-3)
        small = torch.nn.functional.interpolate(shown[None].float(), (48, 80), mode="area")[0]
        assert (torch.from_numpy(picture).permute(2, 0, 1) - small).abs().mean() < 12


def test_reencoding_does_not_lengthen_a_video(make_video: Callable[..., bytes]) -> None:
    data = make_video([n / 25 for n in range(50)])
    for rate in (1.0, 2.0, 3.0):
        sampling = FrameSampling(12, rate, 48)
        assert len(load_frames(reencode(data, 48, 3.0), sampling)) == len(load_frames(data, sampling))


def test_real_clips(shared: Path) -> None:
    clips = sorted((shared / "clips" / "msrvtt" / "videos").glob("*.mp4"), key=lambda path: path.stat().st_size)
    clips += sorted((shared / "clips" / "activitynet" / "videos").glob("*.mp4"))[:3]
    for path in [*clips[:4], *clips[40:44], *clips[-3:]]:
        data = path.read_bytes()
        frames = whole(data)
        side = min(frames[0][1].shape[:2])
        got = load_frames(data, FrameSampling(8, 3.0, side))
        with av.open(io.BytesIO(data)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        last = max(packets, key=lambda packet: packet.pts)
        length = float((last.pts - min(p.pts for p in packets) + packets[-1].duration) * last.time_base)
        assert len(got) == max(1, min(8, int(np.ceil(length * 3 - 1e-6)))), path.name
        for n, picture in enumerate(got):
            shown = on_show(frames, (n + 0.5) * length / len(got))
            top, left = ((edge - side) / 2 for edge in shown.shape[1:])
            expected = shown[:, round(top) : round(top) + side, round(left) : round(left) + side]
            assert torch.equal(picture, expected), path.name


def test_torchcodec_gives_the_same_frames(make_video: Callable[..., bytes]) -> None:
    pytest.importorskip("torchcodec.decoders", reason="torchcodec (or the FFmpeg libraries it needs) is not installed")
    for times in (CONSTANT, VARIABLE, [0.0]):
        data = make_video(times)
        for window in ({}, {"start": 0.3, "end": 1.2}):
            pyav, torchcodec = (
                load_frames(data, FrameSampling(12, 4.0, 48, decoder), **window) for decoder in ("pyav", "torchcodec")
            )
            difference = (pyav.int() - torchcodec.int()).abs()
            assert difference.max() <= 3  # rounding of the colour conversion; a wrong frame differs by far more


def test_torchcodec_that_is_not_there_is_named(
    make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UserError, match=r"data\.decoder is torchcodec, which cannot be loaded .*set it to pyav"):
        load_frames(make_video(), FrameSampling(4, 1.0, 48, "torchcodec"))


def test_copies_are_the_same_bytes_whatever_was_copied_before(make_video: Callable[..., bytes]) -> None:
    videos = [make_video(CONSTANT[:30], seed=seed, size=size) for seed, size in enumerate([(168, 128), (64, 48)])]
    first = [reencode(video, 64, 12.0) for video in videos]
    assert [reencode(video, 64, 12.0) for video in reversed(videos)] == first[::-1]
