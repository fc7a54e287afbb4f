"""Packets that give no picture: the nearest that decodes stands for them, in a copy too, and they are counted."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from torch import distributed

from glscl.data.build import Encoding
from glscl.data.gallery import Gallery
from glscl.data.plan import StreamPlan
from glscl.data.quarantine import describe_repairs
from glscl.data.shards import ShardSet, describe_manifest
from glscl.data.stream import Batch, PairStream
from glscl.data.video import FrameSampling, VideoError, limits, load_clip, load_frames, make_copy
from glscl.data.video.budget import Budget, describe_error
from glscl.data.video.index import read_index
from glscl.training.repairs import FILE, Repairs
from tests.data.drawn import both, close, draw, level, levels, ramp
from tests.data.test_stream import SAMPLING, plan_of, tokenize

MakeShards = Callable[..., ShardSet]


# --------------------------------------------------------------------------------------------------- the shared cases


def checker(shared: Path) -> Any:
    spec = importlib.util.spec_from_file_location("check_cases", shared / "cases" / "check_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_of_known_content(shared: Path) -> None:
    """As they are, and their copies."""
    check = checker(shared).check_video
    cases = json.loads((shared / "cases" / "cases.json").read_text(encoding="utf-8"))
    videos = [case for case in cases if case["kind"] != "names"]
    assert len(videos) >= 15
    wrong = {(c["name"], route): p for c in videos for route, p in check(c, shared / "cases") if p}
    assert wrong == {}


def counts(shared: Path, name: str, frames: int, **window: float) -> tuple[int, int, int]:
    """Frames replaced, pictures replaced in the copy, pictures of the file."""
    data = (shared / "cases" / name).read_bytes()
    copy = make_copy(data, 48, 5.0)
    return load_clip(data, FrameSampling(frames, 1000.0, 48), **window).replaced, copy.replaced, copy.pictures


def test_what_is_counted(shared: Path) -> None:
    assert counts(shared, "midgop_h264.ts", 12) == (5, 67, 167)
    assert counts(shared, "hidden_vp8.avi", 266) == (16, 16, 266)
    assert counts(shared, "damaged_h264.mp4", 250) == (2, 2, 250)
    assert counts(shared, "repeat_slides.ogv", 249)[:2] == (0, 0)
    assert counts(shared, "late_video.mkv", 50)[:2] == (0, 0)


# ------------------------------------------------------------------------------------------------------------- holes


def packets(data: bytes) -> list[Any]:
    with av.open(io.BytesIO(data)) as container:
        return [(p.pos, p.size, p.is_keyframe, p.pts) for p in container.demux(video=0) if p.size]


def without(data: bytes, *numbers: int) -> bytes:
    """An mp4 whose packets of these numbers hold nothing that decodes."""
    damaged = bytearray(data)
    for number in numbers:
        position, size, _, _ = packets(data)[number]
        damaged[position : position + size] = struct.pack(">I", size - 4) + bytes(size - 4)
    return bytes(damaged)


def replaced(data: bytes, frames: int, **window: float) -> int:
    return load_clip(data, FrameSampling(frames, 1000.0, 48), **window).replaced


def test_the_nearest_picture_stands_for_a_hole() -> None:
    """Packets 10 to 19 of 40, a group of its own: half of them show the one before, half the one after."""
    data = without(ramp(30, 40), *range(10, 20))
    expected = [30 + 3 * n for n in range(40)]
    expected[10:15] = [57] * 5  # of picture 14, the one before is 5 away and the one after 6
    expected[15:20] = [90] * 5
    assert close(both(data, 40), expected)
    assert close(both(data, 4, start=1.0, end=2.0), [57, 57, 90, 90])
    assert replaced(data, 40) == 10
    assert replaced(data, 4) == 1
    copy = make_copy(data, 48, 100.0)
    assert (copy.pictures, copy.replaced) == (40, 10)


def test_of_two_alike_the_one_before_stands() -> None:
    data = without(ramp(30, 30, gop=1), 10, 12, 13, 14)
    expected = [30 + 3 * n for n in range(30)]
    expected[10], expected[12:15] = 57, [63, 63, 75]
    assert close(both(data, 30), expected)


def test_holes_of_many_groups() -> None:
    """Further back than one group, and to the end."""
    data = without(ramp(30, 40, gop=4), *range(8, 28), *range(36, 40))
    expected = [30 + 3 * n for n in range(40)]
    expected[8:18] = [51] * 10
    expected[18:28] = [114] * 10
    expected[36:] = [135] * 4
    assert close(both(data, 40), expected)
    assert close(levels(data, 1, start=2.3, end=2.4), [114])
    assert close(levels(data, 1, start=1.6, end=1.7), [51])
    assert replaced(data, 40) == 24


@pytest.mark.parametrize("gop", [1, 4, 40])
def test_before_the_first_picture_the_first(gop: int) -> None:
    data = ramp(30, 40, gop=gop)
    broken = without(data, 0, 1, 2, 3)
    if gop == 40:  # nothing decodes without the only keyframe
        for load in (lambda: levels(broken, 4), lambda: make_copy(broken, 48, 5.0)):
            with pytest.raises(VideoError, match="no picture decodes"):
                load()
        return
    assert close(both(broken, 40), [42] * 4 + [42 + 3 * n for n in range(36)])
    assert close(both(broken, 2, start=0.0, end=0.2), [42, 42])


def cut_in_mid_group(**how: Any) -> bytes:
    """A transport stream without its first packets, keyframe included."""
    data = ramp(30, 40, container="mpegts", gop=10, **how)
    second = [position for position, _, keyframe, _ in packets(data) if not keyframe][2]
    return data[: 188 * 3] + data[second // 188 * 188 :]


@pytest.mark.parametrize("how", [{}, {"bframes": 2}, {"codec": "mpeg2video", "bframes": 2}], ids=["P", "B", "MPEG-2"])
def test_recordings_that_begin_between_two_keyframes(how: dict[str, Any]) -> None:
    data = cut_in_mid_group(**how)
    found = both(data, 30)
    first = min(found)
    assert 55 <= first <= 64  # picture 10 is 60
    assert found.count(first) >= 4
    assert close(found[-5:], sorted(found[-5:]))
    assert replaced(data, 30) >= 3
    joined = ramp(200, 10, container="mpegts", gop=10, step=0, **how) + data
    found = both(joined, 40)
    assert close(found[:11], [200] * 11)
    assert found[12:14] == [first] * 2, "no picture of the one recording refers to one of the other"
    with av.open(io.BytesIO(joined)) as container:
        assert read_index(container, Budget(9)).restarts == {10}
    with av.open(io.BytesIO(data)) as container:
        assert read_index(container, Budget(9)).restarts == set()


def test_empty_chunks_say_the_same_again() -> None:
    """An AVI has one for every tick without a picture of its own."""
    data = draw([(n / 10, level(30 + 3 * n)) for n in (0, 3, 4, 11, 19)], "avi", "mpeg4")
    assert data.count(b"00dc\0\0\0\0") >= 15, "the test wants chunks without bytes"
    assert close(both(data, 20), [30] * 3 + [39] + [42] * 7 + [63] * 8 + [87], 4)
    assert (replaced(data, 20), make_copy(data, 48, 100.0).replaced) == (0, 0)


def test_pictures_looked_at_for_a_hole_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A video that is broken from its middle on: to look for the nearest is not free."""
    intact = ramp(30, 200, gop=2, step=1, codec="mpeg4")
    data = without(intact, *range(100, 200))
    sampling = FrameSampling(12, 1000.0, 48, max_seconds=1.0)
    assert load_clip(data, sampling).replaced == 6
    monkeypatch.setattr(limits, "MAX_PIXELS_PER_SECOND", 64 * 48 * 100)
    assert load_clip(intact, sampling).replaced == 0
    with pytest.raises(VideoError, match="more pixels than 1 s"):
        load_clip(data, sampling)


def test_the_search_back_takes_ever_longer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a hole of n groups costs in proportion to n, not to its square."""
    from glscl.data.video.decode import PictureReader

    looks = []
    whole = PictureReader._scan

    def scan(self: PictureReader, first: int | None, *rest: Any) -> Any:
        looks.append(first)
        return whole(self, first, *rest)

    monkeypatch.setattr(PictureReader, "_scan", scan)
    data = without(ramp(30, 100, gop=2, step=2, codec="mpeg4"), *range(20, 90))
    assert close(levels(data, 1, start=5.0, end=5.1), [68])
    assert looks == [50, 48, 44, 36, 20, None]


# ------------------------------------------------------------------------------------------------------- FFmpeg's words


def test_ffmpegs_own_words(make_video: Callable[..., bytes]) -> None:
    level = av.logging.get_level()
    for data, reason in ((b"\x00\x00\x00\x18ftypmp42" + bytes(8), "undecodable (moov atom not found)"),):
        with pytest.raises(VideoError) as caught:
            load_frames(data, SAMPLING)
        assert str(caught.value) == reason
    assert av.logging.get_level() == level


def error(text: str, logged: str | None = None) -> Exception:
    found: Exception = av.error.InvalidDataError(1, text, None, (16, "h264", logged) if logged else None)
    return found


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (error("Invalid data"), "Invalid data"),
        (error("Invalid data", "moov atom not found\n"), "moov atom not found"),
        (error("x", "Invalid NAL unit size (3712 > 51)."), "Invalid NAL unit size (# > #)"),
        (error("x", "at 0x7f3A: 12"), "at #: #"),
        (error("x", "a\x1b[31m\u202eb\nc"), "a?[#m?b c"),
        (error("x", "y" * 100), "y" * 60),
        (error("", " "), "InvalidDataError"),
        (ValueError("of ours"), "ValueError"),
    ],
)
def test_words_that_can_be_counted_and_printed(problem: Exception, expected: str) -> None:
    assert describe_error(problem) == expected


# ------------------------------------------------------------------------------------------------------ what is told


@pytest.fixture
def holed(make_shards: MakeShards) -> ShardSet:
    """Six videos of 4 s; in v001 half the pictures do not decode."""
    bad = without(ramp(30, 40), *range(10, 30))
    return make_shards(captions=(2,) * 6, per_shard=2, bad={1: bad})


def entry_of(listed: list[dict[str, str]]) -> dict[str, str]:
    (entry,) = listed
    return entry


def test_training_lists_them_once(holed: ShardSet) -> None:
    plan: StreamPlan = plan_of([holed], global_batch=12, virtual_streams=1)
    batches = iter(PairStream([holed], plan, SAMPLING, tokenize, 0, 1))
    seen: list[dict[str, str]] = []
    for _ in range(3):
        batch = next(batches)
        assert isinstance(batch, Batch)
        assert batch.quarantined == []
        seen += batch.repaired
    entry = entry_of(seen)
    assert (entry["domain"], entry["video_id"], entry["frames"]) == ("toy", "v001", "1 of 3")
    assert entry["shard"].startswith("shard-")
    joined = Batch.concatenate([batch, batch])
    assert joined.repaired == batch.repaired * 2


def test_evaluation_lists_them(holed: ShardSet) -> None:
    found = list(Gallery(holed, 0, 6, SAMPLING, tokenize, 4).batches(0))
    entry = entry_of([entry for batch in found for entry in batch.repaired])
    assert (entry["video_id"], entry["frames"]) == ("v001", "1 of 3")
    shard = next(e for e in holed.manifest.shards if e.name == entry["shard"])
    assert shard in holed.manifest.shards
    assert sum(len(batch.samples) for batch in found) == 6


def test_shards_list_what_was_copied_in_part(make_shards: MakeShards) -> None:
    bad = without(ramp(30, 40), *range(10, 30))
    manifest = make_shards(captions=(1,) * 4, bad={1: bad}, encoding=Encoding(48, 5.0)).manifest
    assert manifest.repaired == {"v001": "20 of 40 pictures"}
    assert manifest.rejected == {}
    assert describe_manifest(manifest)["repaired"] == "1 (pictures that do not decode, replaced by the nearest)"
    whole = make_shards("whole", captions=(1,) * 4, encoding=Encoding(48, 5.0)).manifest
    assert (whole.repaired, describe_manifest(whole)["repaired"]) == ({}, "none")


def test_the_runs_own_list(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        one = {"domain": "d", "shard": "s", "key": "1", "video_id": "ü", "frames": "1 of 3"}
        other = one | {"key": "2"}
        run = tmp_path / "run"
        repairs = Repairs(str(run))
        assert repairs.gather() == 0
        assert not (run / FILE).exists()
        repairs.add([one])
        repairs.add([other, one])
        assert (repairs.gather(), repairs.gather()) == (2, 2)
        again = Repairs(str(run))
        again.add([other, one | {"key": "3"}])
        assert again.gather() == 3
        lines = [json.loads(line) for line in (run / FILE).read_text(encoding="utf-8").splitlines()]
        assert lines == [one, other, one | {"key": "3"}]
        shutil.rmtree(run)
        silent = Repairs(None)
        silent.add([one])
        silent.gather()
        assert not run.exists()
    finally:
        distributed.destroy_process_group()


def test_repairs_in_one_line() -> None:
    entries = [{"video_id": f"v{n}", "frames": f"{n} of 9"} for n in range(1, 6)]
    assert describe_repairs("test set d/test", 7, entries) == (
        "repaired: in 5 of 7 videos of test set d/test the nearest picture stands for some that do not decode: "
        "v1 (1 of 9 frames), v2 (2 of 9 frames), v3 (3 of 9 frames) and 2 more"
    )
    assert describe_repairs("x", 7, entries[:3]).endswith("v3 (3 of 9 frames)")


def test_the_drawing_is_right() -> None:
    """Without this the comparisons above would prove nothing."""
    assert close(levels(draw([(0.0, level(30)), (0.1, level(90))]), 2), [30, 90])
