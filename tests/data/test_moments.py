"""When a picture is shown: the container's clock, clocks that begin anew, pauses, late pictures."""

from __future__ import annotations

import io
import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from glscl.data.video import FrameSampling, load_clip, load_frames, make_copy
from glscl.data.video.budget import Budget
from glscl.data.video.decode import PictureReader
from glscl.data.video.index import _MAX_BACK_S, _MAX_STEP_S, Index, _cut, _Packet, read_index
from tests.data.drawn import both, close, draw, level, levels, ramp

# ---------------------------------------------------------------------------------------------- clocks that begin anew

HOWS = {
    "H.264 in TS": {"container": "mpegts", "bframes": 2},
    "MPEG-2 in TS": {"container": "mpegts", "codec": "mpeg2video", "bframes": 2},
    "MPEG-2 in PS": {"container": "mpeg", "codec": "mpeg2video", "bframes": 2},
}


def part(how: str, first: float, start: float = 0.0, count: int = 20) -> bytes:
    return ramp(first, count, start, **HOWS[how])


@pytest.mark.parametrize("start", [0.0, 30.0, 36000.0], ids=["equal", "forward", "far forward"])
@pytest.mark.parametrize("how", HOWS)
def test_what_follows_follows_at_once(how: str, start: float) -> None:
    """2 s from grey 30 on, 2 s from grey 130 on; the second's clock is the same again, or later."""
    data = part(how, 30) + part(how, 130, start)
    assert close(both(data, 8), [36, 51, 66, 81, 136, 151, 166, 181], 4)
    assert close(both(data, 4, start=1.0, end=3.0), [66, 81, 136, 151], 4)
    assert close(both(data, 2, start=2.5, end=3.5), [151, 166], 4)


@pytest.mark.parametrize("how", HOWS)
def test_a_step_back(how: str) -> None:
    data = part(how, 30, 3600.0) + part(how, 130)
    assert close(both(data, 8), [36, 51, 66, 81, 136, 151, 166, 181], 4)


def test_several_steps() -> None:
    parts = [(30, 0.0), (100, 500.0), (170, 0.0), (60, 100.0)]
    data = b"".join(part("H.264 in TS", first, start, 10) for first, start in parts)
    assert close(both(data, 8), [36, 51, 106, 121, 176, 191, 66, 81])
    assert close(both(data, 2, start=1.5, end=2.5), [121, 176], 8)


def test_each_moment_once_across_a_step() -> None:
    """Nothing is lost, nothing stands still."""
    data = part("H.264 in TS", 30, count=10) + part("H.264 in TS", 100, 99.0, 10)
    assert close(both(data, 20), [30 + 3 * n for n in range(10)] + [100 + 3 * n for n in range(10)])


@pytest.mark.parametrize("start", [5.0, 11.9])
def test_a_pause_of_ten_seconds_is_meant(start: float) -> None:
    data = part("H.264 in TS", 30) + part("H.264 in TS", 130, start)
    length = start + 2
    found = both(data, round(length * 10))
    assert close(found[:20], [30 + 3 * n for n in range(20)], 4)
    assert close(found[21 : round(start * 10) - 1], [87] * (round((start - 2) * 10) - 2), 4)
    assert close(found[-20:], [130 + 3 * n for n in range(20)], 4)


@pytest.mark.parametrize("container", ["mp4", "matroska", "flv"])
def test_a_pause_of_any_length_in_other_containers(container: str) -> None:
    pictures = [(n / 10, level(30 + 3 * n)) for n in range(20)] + [(90 + n / 10, level(130 + 3 * n)) for n in range(20)]
    data = draw(pictures, container)
    assert close(both(data, 92), [45, 75] + [87] * 88 + [145, 175], 3)


SECOND = 1000


def cut(*packets: tuple[int | None, int | None]) -> list[list[int]]:
    """Timestamps of each part of a stream of (pts, dts) in milliseconds, each of 40."""
    stream = [_Packet(number, pts, dts, 40, True, True) for number, (pts, dts) in enumerate(packets)]
    parts = _cut(stream, _MAX_BACK_S * SECOND, Fraction(_MAX_STEP_S) * SECOND)
    return [[pts for _, pts in part] for part in parts]


def test_where_a_clock_began_anew() -> None:
    """By FFmpeg's rule: more than ten seconds on from where it should be, or more than a tenth back."""
    assert cut((0, 0), (10040, 10040)) == [[0, 10040]]
    assert cut((0, 0), (10041, 10041)) == [[0], [10041]]
    assert cut((500, 500), (400, 400)) == [[500, 400]]
    assert cut((500, 500), (399, 399)) == [[500], [399]]
    assert cut((0, 0), (40, None), (20000, 20000), (20040, 20040)) == [[0, 40], [20000, 20040]]
    assert cut((0, 0), (None, 20000), (20040, 20040)) == [[0], [20040]]
    assert cut((None, None), (0, 0)) == [[0]]


def test_a_time_that_was_guessed_from_the_next_part() -> None:
    """FFmpeg takes the display time of the last picture of a part from the first of the next."""
    assert cut((40, 0), (80, 40), (99000, 80), (99040, 99040)) == [[40, 80, 120], [99040]]
    assert cut((99000, 0), (80, 40)) == [[0, 80]]
    assert cut((10000, 0)) == [[10000]]
    assert cut((10001, 0)) == [[0]]


# ----------------------------------------------------------------------------------------------------- the beginning


def late(container: str, codec: str = "libx264") -> bytes:
    """Sound from 0 s, pictures from 2 s on: grey 60, 63 ..."""
    return ramp(60, 20, 2.0, container=container, codec=codec, sound=True)


@pytest.mark.parametrize("container", ["matroska", "mp4", "mov", "mpegts"])
def test_second_0_is_that_of_the_earliest_stream(container: str) -> None:
    data = late(container)
    assert close(both(data, 4, start=2.0, end=4.0), [66, 81, 96, 111], 4)
    assert close(both(data, 4, start=1.0, end=3.0), [60, 60, 66, 81], 4)
    assert close(both(data, 8), [60, 60, 60, 60, 66, 81, 96, 111], 4)
    assert close(both(data, 2, start=0.0, end=1.0), [60, 60])


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts", "flv"])
def test_a_video_alone_begins_with_its_first_picture(container: str) -> None:
    assert close(both(ramp(60, 20, 7.0, container=container), 4), [66, 81, 96, 111])


def test_a_copy_begins_at_0_and_ends_where_its_original_does() -> None:
    copy = make_copy(late("matroska"), 48, 5.0).data
    with av.open(io.BytesIO(copy)) as container:
        stream = container.streams.video[0]
        times = [round(float(frame.time), 2) for frame in container.decode(video=0)]
        assert float(stream.duration * stream.time_base) == pytest.approx(4.0, abs=0.05)
    assert times[0] == 0.0
    assert times[1] == 2.1, "the first picture stands from the beginning on"
    assert len(times) <= 4 * 5 + 1


def test_what_an_edit_list_cuts_off_is_not_there() -> None:
    data = ramp(30, 40, bframes=2)
    at = data.index(b"elst") + 4
    entries, duration, media_time = struct.unpack(">Iii", data[at + 4 : at + 16])
    assert entries == 1
    with av.open(io.BytesIO(data)) as container:
        scale = container.streams.video[0].time_base.denominator
    begin = media_time + scale + scale // 2  # 1.5 s later
    edited = data[: at + 8] + struct.pack(">ii", duration * 5 // 8, begin) + data[at + 16 :]
    assert close(both(edited, 5), [82.5, 97.5, 112.5, 127.5, 142.5], 3)
    assert close(both(edited, 1, start=0.0, end=0.05), [75])


# ------------------------------------------------------------------------------------ containers that lack the times


@pytest.mark.parametrize("container", ["avi", "asf"])
def test_containers_that_know_the_order_of_decoding_only(container: str) -> None:
    """H.264 with B-frames: its packets are in another order than its pictures."""
    data = ramp(30, 40, container=container, bframes=3, options={"x264-params": "b-adapt=0"})
    with av.open(io.BytesIO(data)) as file:
        shown = [frame.pts for frame in file.decode(video=0)]
    assert shown != sorted(shown), "the test wants times that are not those of display"
    found = both(data, 40)
    assert close(found, [30 + 3 * n for n in range(40)], 2) or close(found, [30, *(30 + 3 * n for n in range(39))], 2)
    assert all(a < b for a, b in itertools.pairwise(levels(data, 9, start=1.0, end=1.9)))


def test_packets_without_any_time() -> None:
    """H.264 in a program stream: most packets have neither time; each lasts as long as the one before says."""
    data = ramp(30, 40, container="mpeg", bframes=2)
    with av.open(io.BytesIO(data)) as file:
        missing = [packet.pts is None for packet in file.demux(video=0) if packet.size]
    if sum(missing) * 2 <= len(missing):
        pytest.skip("this muxer gives most packets their time")
    assert close(levels(data, 40), [30 + 3 * n for n in range(40)], 7)


# ------------------------------------------------------------------------------------------------------------- index


def index(*times: int) -> Index:
    return Index(list(times), list(range(len(times))), [0], list(times), Fraction(1, 10), 9.0, True, False)


def test_the_nearer_of_two_pictures() -> None:
    slots = index(0, 10, 20, 30, 40, 55)
    assert slots.is_nearer(1, 0, 3)
    assert not slots.is_nearer(2, 0, 4)
    assert not slots.is_nearer(2, 4, 0)
    assert slots.is_nearer(3, 4, 0)
    assert slots.first_nearer(0, 4) == 3
    assert slots.first_nearer(0, 3) == 2
    assert slots.first_nearer(0, 1) == 1
    assert slots.first_nearer(1, 5) == 4
    assert slots.seconds(5) == 5.5


def test_select() -> None:
    slots = index(0, 10, 20, 30, 40, 55)
    sampling = FrameSampling(3, 1000.0, 48)
    assert slots.select(sampling, None, None) == [1, 4, 5]  # of 9 s, at 1.5, 4.5 and 7.5
    assert slots.select(sampling, 2.0, 3.5) == [2, 2, 3]
    assert slots.select(sampling, 8.9995, 9.0) == [1, 4, 5]
    assert slots.select(sampling, 8.9, 9.0) == [5, 5, 5]
    assert index(20, 30).select(sampling, 0.0, 3.0) == [0, 0, 0]


def test_a_file_with_several_clocks_is_read_without_seeking() -> None:
    data = ramp(30, 20)
    with av.open(io.BytesIO(data)) as container:
        assert read_index(container, Budget(9)).seekable
    joined = part("H.264 in TS", 30) + part("H.264 in TS", 130)
    with av.open(io.BytesIO(joined)) as container:
        found = read_index(container, Budget(9))
    assert not found.seekable
    assert not found.in_output_order
    assert len(found.times) == 40
    assert found.duration == pytest.approx(4.0, abs=0.01)
    assert np.diff(found.times).tolist() == [9000] * 39


def test_a_container_that_fails_to_seek_is_read_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ramp(60, 20)
    sampling = FrameSampling(4, 5.0, 32)
    expected = load_clip(data, sampling)
    sought: list[int] = []

    def fail(reader: PictureReader, first: int) -> None:
        class Container:
            def seek(self, *_: object, **__: object) -> None:
                sought.append(first)
                raise av.error.InvalidDataError(1, "no seeking here")

        monkeypatch.setattr(reader._opened, "container", Container())
        return seek(reader, first)

    seek = PictureReader._seek
    monkeypatch.setattr(PictureReader, "_seek", fail)
    clip = load_clip(data, sampling)
    assert sought
    assert torch.equal(clip.frames, expected.frames)
    assert clip.replaced == expected.replaced == 0


def test_load_frames_gives_the_frames_of_a_clip() -> None:
    data = ramp(30, 20)
    sampling = FrameSampling(5, 4.0, 24)
    clip = load_clip(data, sampling, 0.2, 1.4)
    assert clip.replaced == 0
    assert clip.frames.equal(load_frames(data, sampling, 0.2, 1.4))
