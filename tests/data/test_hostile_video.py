"""What a video from a stranger may cost, and what it may reach: nothing but its own bytes."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import struct
import sys
import threading
import types
from collections.abc import Callable
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from glscl.data.video import FrameSampling, VideoError, budget, display, limits, load_frames, reencode, source

MakeVideo = Callable[..., bytes]
SAMPLING = FrameSampling(12, 4.0, 48)


def refused(data: bytes, reason: str, sampling: FrameSampling = SAMPLING, **window: float) -> None:
    """By the decoder, by both ways to re-encode, within a short reason."""
    with pytest.raises(VideoError, match=reason) as caught:
        load_frames(data, sampling, **window)
    assert len(str(caught.value)) < 80
    if not window:
        with pytest.raises(VideoError, match=reason):
            reencode(data, 48, 5.0, sampling.max_seconds)


# ------------------------------------------------------------------------------------- other files, other hosts

PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={}\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "rtsp": "rtsptext{}",
    "image list": "{}%d.png",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_list_of_other_files_is_no_video(name: str, make_video: MakeVideo, tmp_path: Path) -> None:
    """Not opened, not asked for over the network, although a video is there."""
    secret = tmp_path / "secret.ts"
    secret.write_bytes(make_video(container="mpegts"))
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    before = os.stat(secret).st_atime_ns
    os.utime(secret, ns=(before - 10**15, secret.stat().st_mtime_ns))  # or the clock would have to be waited for
    before = os.stat(secret).st_atime_ns
    try:
        for address in (secret, secret.as_uri(), f"http://127.0.0.1:{server.server_port}/x.ts"):
            refused(PLAYLISTS[name].format(address).encode(), "undecodable")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == []
    assert os.stat(secret).st_atime_ns == before


def test_whatever_a_container_names_is_not_opened() -> None:
    """The whitelist of containers is one lock; the other is that the decoder's files come from us."""
    with pytest.raises(VideoError, match="names other files"):
        source.refuse_other_files("file:///etc/passwd", 0, {})
    data = PLAYLISTS["sdp"].format("x").encode()
    with pytest.raises(av.error.FFmpegError):
        av.open(io.BytesIO(data), container_options={"protocol_whitelist": "none"})


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "srt", "wav", "svg"])
def test_what_is_no_video(kind: str) -> None:
    from PIL import Image

    data = {"srt": b"1\n00:00:00,000 --> 00:00:01,000\nhi\n\n" * 9, "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
    if kind == "wav":
        body = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16) + b"data" + struct.pack("<I", 800)
        data[kind] = b"RIFF" + struct.pack("<I", len(body) + 804) + b"WAVE" + body + bytes(800)
    elif kind not in data:
        target = io.BytesIO()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(target, kind)
        data[kind] = target.getvalue()
    refused(data[kind], "undecodable|no video stream")


def two_streams(cover_first: bool) -> bytes:
    """A film and its cover: two tracks of an mp4, one marked as a picture that is attached."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        streams = []
        for cover in (cover_first, not cover_first):
            stream: Any = out.add_stream("png" if cover else "mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24" if cover else "yuv420p"
            if cover:
                stream.disposition = av.stream.Disposition.attached_pic
            streams.append((stream, cover))
        for stream, cover in streams:
            for n in range(1 if cover else 8):
                picture = np.full((48, 64, 3), 250 if cover else 100, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = n, Fraction(1, 10)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return target.getvalue()


@pytest.mark.parametrize("cover_first", [True, False])
def test_a_cover_is_not_the_film(cover_first: bool) -> None:
    frames = load_frames(two_streams(cover_first), SAMPLING)
    assert len(frames) > 1
    assert (frames.float() - 100).abs().mean() < 5


# ------------------------------------------------------------------------------------------------------- bounds


def test_time(make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes a second at every look: opening, indexing and decoding are each ended."""
    data = make_video([n / 25 for n in range(60)])
    now = iter(range(10**9))
    monkeypatch.setattr(budget.time, "thread_time", lambda: next(now))
    for seconds in (1, 5, 20, 40, 62):
        refused(data, f"takes more than {seconds} s of CPU time", FrameSampling(12, 4.0, 48, max_seconds=seconds))
    assert len(load_frames(data, FrameSampling(12, 4.0, 48, max_seconds=1e6))) == 10


def test_frames(make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PACKETS", 10)
    refused(make_video([n / 25 for n in range(60)]), "more than 10 frames")


def test_pixels_in_total(make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PIXELS_PER_SECOND", 64 * 48 * 3 / 60)
    refused(make_video([n / 25 for n in range(60)]), "more pixels than 60 s of CPU time are for")


def test_pictures_of_one_size_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PIXELS_PER_SECOND", 1000)
    spent = budget.Budget(1)
    spent.picture(10, 10, 9)
    with pytest.raises(VideoError, match="more pixels than 1 s"):
        spent.picture(10, 10, 2)


def test_bytes(make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_BYTES", 100)
    refused(make_video(), "more than 0 GiB")


def growing() -> bytes:
    """Raw H.264 joined from two sizes, in a transport stream whose header has seen the first only."""
    pieces = []
    for size in ((64, 48), (640, 480)):
        target = io.BytesIO()
        with av.open(target, "w", format="mpegts") as out:
            stream: Any = out.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"preset": "ultrafast", "threads": "1"}
            for n in range(8):
                frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 99, np.uint8), format="rgb24")
                frame.pts, frame.time_base = n + 8 * len(pieces), Fraction(1, 10)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        pieces.append(target.getvalue())
    return b"".join(pieces)


def test_a_picture_that_grows_in_mid_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    data = growing()
    assert load_frames(data, FrameSampling(8, 5.0, 48)).shape == (8, 3, 48, 48)
    monkeypatch.setattr(limits, "MAX_PIXELS", 64 * 48)
    refused(data, r"picture too large|undecodable|frames missing", FrameSampling(8, 5.0, 48))


def test_narrow_pictures(make_video: MakeVideo) -> None:
    """A short side of 2 pixels scaled to 224 would make the long one a million."""
    target = io.BytesIO()
    with av.open(target, "w", format="avi") as out:
        stream: Any = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 4096, 2, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((2, 4096, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    refused(target.getvalue(), r"picture too narrow \(4096 x 2\)")


def patched(data: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    """An mp4 with other bytes at an offset from a box's name."""
    at = data.index(box) + offset
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize("count", [10**6, 10**8, 2**31, 2**32 - 1])
def test_tables_that_a_few_bytes_stand_for(make_video: MakeVideo, count: int) -> None:
    """An mp4 of 2 kB whose table says a million to 4 billion frames of a byte: gigabytes, and hours to seek."""
    data = patched(make_video(), b"stsz", 8, struct.pack(">II", 1, count))
    data = patched(data, b"stsc", 12, struct.pack(">III", 1, count, 1))
    data = patched(data, b"stts", 8, struct.pack(">III", 1, count, 512))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(data, "index of frames that are not there|no frames|undecodable")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5 << 20  # kilobytes


def test_memory_is_bounded_while_decoding_and_not_afterwards(
    make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    whole = display.resize

    def fit(*arguments: Any) -> torch.Tensor:
        seen.append(resource.getrlimit(resource.RLIMIT_AS)[0])
        return whole(*arguments)

    monkeypatch.setattr(display, "resize", fit)
    free = resource.getrlimit(resource.RLIMIT_AS)
    load_frames(make_video(), SAMPLING)
    assert 0 < max(seen) < 1 << 46
    assert resource.getrlimit(resource.RLIMIT_AS) == free
    monkeypatch.setattr(display, "resize", lambda *_: torch.empty(limits.MAX_MEMORY + (1 << 30), dtype=torch.uint8))
    with pytest.raises(VideoError, match="undecodable"):
        load_frames(make_video(), SAMPLING)
    assert resource.getrlimit(resource.RLIMIT_AS) == free


def test_many_streams(make_video: MakeVideo) -> None:
    """Thousands of tracks are cut off or refused; a file with the usual ones is read."""
    data = make_video()
    at = data.index(b"trak") - 4
    trak = data[at : at + struct.unpack(">I", data[at : at + 4])[0]]
    moov = data.index(b"moov") - 4
    size = struct.unpack(">I", data[moov : moov + 4])[0]
    many = data[:moov] + struct.pack(">I", size + 3000 * len(trak)) + data[moov + 4 : at] + trak * 3000 + data[at:]
    refused(many, "undecodable")


def matrix(*nine: int) -> bytes:
    return struct.pack(">9i", *nine)


@pytest.mark.parametrize(
    ("box", "offset", "value"),
    [
        (b"tkhd", 44, matrix(*[0] * 9)),  # a rotation by no angle at all
        (b"tkhd", 44, matrix(*[2**31 - 1] * 9)),
        (b"mdhd", 16, struct.pack(">I", 0)),  # a second of no ticks
        (b"mdhd", 16, struct.pack(">I", 2**31 - 1)),
        (b"mvhd", 16, struct.pack(">I", 0)),
        (b"stts", 12, struct.pack(">II", 4, 2**31 - 1)),  # four frames of months each
        (b"stts", 12, struct.pack(">II", 4, 0)),
        (b"elst", 8, struct.pack(">IIi", 1, 2**32 - 1, -(2**31))),
        (b"avc1", 28, struct.pack(">HH", 0, 0)),  # a picture without size
        (b"avc1", 28, struct.pack(">HH", 65535, 65535)),
        (b"avcC", 8, b"\xff" * 20),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) and len(value) < 40 else "",
)
def test_extreme_headers(make_video: MakeVideo, box: bytes, offset: int, value: bytes) -> None:
    """Frames or a refusal, for both ways of looking at them."""
    data = patched(make_video(), box, offset, value)
    for load in (lambda: load_frames(data, SAMPLING), lambda: load_frames(reencode(data, 48, 5), SAMPLING)):
        with contextlib.suppress(VideoError):
            assert 1 <= len(load()) <= 12


@pytest.mark.parametrize("edge", [float("nan"), float("inf"), float("-inf")])
def test_edges_that_are_no_seconds(make_video: MakeVideo, edge: float) -> None:
    for window in ({"start": edge}, {"end": edge}):
        refused(make_video(), "start or end is not a number of seconds", **window)


def test_torchcodec_is_bounded_alike(make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library, which need not be installed: frames come one by one, each looked at."""

    class VideoDecoder:
        def __init__(self, data: bytes, **_: Any) -> None:
            with av.open(io.BytesIO(data)) as container:
                self.frames = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]

        def get_frame_at(self, index: int) -> Any:
            time, picture = self.frames[index]
            return types.SimpleNamespace(data=torch.from_numpy(picture).permute(2, 0, 1), pts_seconds=time)

    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.SimpleNamespace(VideoDecoder=VideoDecoder))
    data = make_video([n / 25 for n in range(60)])
    sampling = FrameSampling(12, 4.0, 48, "torchcodec")
    assert torch.equal(load_frames(data, sampling), load_frames(data, SAMPLING))
    monkeypatch.setattr(limits, "MAX_PIXELS_PER_SECOND", 64 * 48 * 3 / 60)
    with pytest.raises(VideoError, match="more pixels than"):
        load_frames(data, sampling)
    monkeypatch.setattr(limits, "MAX_PACKETS", 10)
    with pytest.raises(VideoError, match="more than 10 frames"):
        load_frames(data, sampling)
