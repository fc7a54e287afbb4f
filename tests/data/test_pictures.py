"""Shards of pictures: the frames of the original video, its holes and bad bytes, and sets of single pictures."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor

from glscl.cli import main
from glscl.data import clips
from glscl.data.build import Encoding
from glscl.data.clips import read_clip
from glscl.data.foreign import index_shards
from glscl.data.frame_times import STILL, FrameTimes
from glscl.data.gallery import Gallery
from glscl.data.shards import Shard, ShardSet, describe_manifest, open_shard_set, verify_shards
from glscl.data.video import FrameSampling, VideoError, limits, load_frames, load_pictures, make_copy, make_pictures
from glscl.errors import UserError
from tests.data.drawn import level, ramp
from tests.data.test_foreign import folder, samples
from tests.data.test_foreign import tar as make_tar
from tests.data.test_holes import without
from tests.data.test_stream import plan_of, run, same, tokenize

MakeShards = Callable[..., ShardSet]
FRAMES = Encoding(short_side=48, frames=4.0)
SAMPLING = FrameSampling(max_frames=6, rate=4.0, size=48)


def file_of(picture: Any, kind: str = "JPEG", **how: Any) -> bytes:
    """A file of an (H, W, 3) array or a PIL image."""
    out = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture, np.uint8))
    image.save(out, kind, **how)
    return out.getvalue()


def shown(*files: bytes, times: FrameTimes | None = None, frames: int = 4, size: int = 48) -> tuple[Tensor, int]:
    """The frames that stored pictures give, and how many of them stand for another."""
    times = times or FrameTimes(rate=1.0, start=0, end=len(files), times=tuple(n + 0.5 for n in range(len(files))))
    clip = load_pictures(files.__getitem__, times, FrameSampling(frames, 1.0, size))
    return clip.frames, clip.replaced


def greys(*levels: float) -> list[bytes]:
    return [file_of(level(value)) for value in levels]


def alike(frames: Tensor, others: Tensor, tolerance: float = 12.0) -> bool:
    """Whether pictures differ by no more than JPEG's losses."""
    return frames.shape == others.shape and float((frames.float() - others.float()).abs().mean()) < tolerance


# ------------------------------------------------------------------------------------------------------ which pictures


def test_the_pictures_are_those_that_the_original_gives(make_video: Callable[..., bytes]) -> None:
    """Every frame of this video differs from its neighbours by far more than JPEG's losses."""
    data = make_video([n / 10 for n in range(30)], seed=3)
    for window in ({}, {"start": 0.7, "end": 2.2}, {"start": 2.9}):
        pictures = make_pictures(data, FrameSampling(99, 4.0, 48), 90, **window)
        clip = load_pictures(pictures.jpegs.__getitem__, pictures.times, FrameSampling(99, 4.0, 48))
        original = load_frames(data, FrameSampling(99, 4.0, 48), **window)
        assert alike(clip.frames, original), window
        assert len(pictures.jpegs) == len(original) == len(pictures.times.times)
        if len(original) > 1:
            assert not alike(clip.frames, original.roll(1, 0))
    assert load_frames(data, FrameSampling(99, 4.0, 48)).shape[0] == 12


def test_fewer_frames_are_the_nearest_pictures() -> None:
    data = ramp(30, 60)  # 6 s
    stored = make_pictures(data, FrameSampling(99, 10.0, 48), 90)
    assert len(stored.jpegs) == 60
    for frames, rate in ((4, 10.0), (7, 10.0), (99, 1.0), (99, 3.0), (1, 1.0)):
        sampling = FrameSampling(frames, rate, 48)
        clip = load_pictures(stored.jpegs.__getitem__, stored.times, sampling)
        original = load_frames(data, sampling)
        assert len(clip.frames) == len(original)
        difference = (clip.frames.float().mean((1, 2, 3)) - original.float().mean((1, 2, 3))).abs().max()
        assert difference <= 3 + 1, "one picture, a tenth of a second, is 3 levels"
        assert clip.replaced == 0


def test_the_nearest_time_and_of_two_alike_the_later() -> None:
    times = FrameTimes(rate=1.0, start=10.0, end=16.0, times=(10.5, 11.5, 12.5, 13.5, 14.5, 15.5))
    wanted = {11.0: 1, 13.0: 3, 15.0: 5, 11.5: 1, 11.9: 1, 12.1: 2, 14.5: 4, 0.0: 0, 99.0: 5}
    assert {time: times.nearest(time) for time in wanted} == wanted
    assert STILL.nearest(0.0) == 0
    assert FrameSampling(12, 4.0, 8).times(STILL.start, STILL.end) == [0.0]


def test_they_are_whole_and_in_display_form(make_video: Callable[..., bytes]) -> None:
    data = make_video([n / 10 for n in range(10)], size=(96, 64))
    (jpeg,) = make_pictures(data, FrameSampling(9, 1.0, 32), 90).jpegs
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert (picture.size, picture.format) == ((48, 32), "JPEG"), "the centre is cut out when it is read"
    small, large = (len(make_pictures(data, FrameSampling(9, 1.0, 32), quality).jpegs[0]) for quality in (30, 95))
    assert small < large


def test_pictures_that_do_not_decode_are_counted_once_stored() -> None:
    data = without(ramp(30, 40), *range(10, 30))
    for frames in (4, 40):
        pictures = make_pictures(data, FrameSampling(frames, 1000.0, 48), 90)
        assert (len(pictures.jpegs), pictures.replaced) == (frames, frames / 2)


# --------------------------------------------------------------------------------------------------------------- shards


def jpegs_of(shard_set: ShardSet) -> int:
    return sum(
        member.name.endswith(".jpg")
        for index in range(len(shard_set.manifest.shards))
        for member in tarfile.open(shard_set.shard_uri(index))
    )


def test_a_stream_of_pictures_is_that_of_the_videos(make_shards: MakeShards) -> None:
    captions = (1, 2, 3, 1) * 4
    videos = make_shards(captions=captions, per_shard=3)
    pictures = make_shards("toy", captions=captions, per_shard=3, encoding=FRAMES, root=videos.uri + "-frames")
    assert pictures.manifest.encoding == "short side 48, 4 pictures a second, quality 90"
    assert pictures.manifest.video_ids == videos.manifest.video_ids
    assert verify_shards(pictures.uri) == []
    assert 16 * 7 <= jpegs_of(pictures) <= 16 * 8, "1.7 to 2 s each"
    plans = [plan_of([shard_set]) for shard_set in (videos, pictures)]
    assert plans[0].steps_per_epoch == plans[1].steps_per_epoch
    reference = run([videos], plans[0], 4)
    stored = run([pictures], plans[1], 4)
    for one, other in zip(reference, stored, strict=True):
        assert one.names == other.names
        assert torch.equal(one.text[0], other.text[0])
        assert torch.equal(one.frame_mask, other.frame_mask)
        assert torch.equal(one.video_ids, other.video_ids)
    for world_size, workers in ((2, 0), (1, 2), (2, 1)):
        assert all(map(same, run([pictures], plans[1], 2, world_size, workers, start=2), stored[2:]))


def test_an_evaluation_of_pictures_is_that_of_the_videos(make_shards: MakeShards) -> None:
    videos = make_shards(captions=(1,) * 6, per_shard=4)
    pictures = make_shards("toy", captions=(1,) * 6, per_shard=4, encoding=FRAMES, root=videos.uri + "-frames")
    one, other = (list(Gallery(s, 0, 6, SAMPLING, tokenize, 6).batches(0)) for s in (videos, pictures))
    assert [sample.video_id for sample in one[0].samples] == [sample.video_id for sample in other[0].samples]
    assert torch.equal(one[0].frame_mask, other[0].frame_mask)
    assert alike(other[0].frames, one[0].frames)
    assert not alike(other[0].frames, one[0].frames.roll(1, 0))


def test_any_webdataset_reader_takes_them(make_shards: MakeShards) -> None:
    shard_set = make_shards(captions=(2,) * 3, per_shard=3, encoding=FRAMES)
    found = list(webdataset.WebDataset(shard_set.shard_uri(0), shardshuffle=False).decode("rgb8"))
    assert len(found) == 3
    for sample in found:
        pictures = sorted(name for name in sample if name.endswith(".jpg"))
        assert pictures == [f"{number:06d}.jpg" for number in range(len(pictures))]
        assert sample["000000.jpg"].shape == (48, 64, 3)
        assert sample["txt"].startswith("v00")
        assert sample["json"]["frames"]["rate"] == 4
        gaps = {round(b - a, 6) for a, b in pairwise(sample["json"]["frames"]["times"])}
        assert len(sample["json"]["frames"]["times"]) == len(pictures) >= 7
        assert len(gaps) == 1


def test_what_cannot_be_stored_is_rejected_and_holes_are_listed(make_shards: MakeShards) -> None:
    bad = {0: b"torn", 1: without(ramp(30, 40), *range(10, 30))}
    manifest = make_shards(captions=(1,) * 4, bad=bad, encoding=Encoding(48, frames=2.0)).manifest
    assert list(manifest.rejected) == ["v000"]
    assert manifest.repaired == {"v001": "4 of 8 pictures"}
    assert describe_manifest(manifest)["encoding"] == "short side 48, 2 pictures a second, quality 90"


def test_a_sampling_above_the_stored_rate_is_refused(make_shards: MakeShards) -> None:
    shard_set = make_shards(captions=(1,) * 16, per_shard=4, encoding=Encoding(48, frames=2.0))
    shard = Shard(shard_set, 0)
    with pytest.raises(UserError, match=r"holds 2 pictures a second, and data.sample_fps is 4: .* --frames 4"):
        read_clip(shard, 0, SAMPLING)
    assert len(read_clip(shard, 0, FrameSampling(9, 2.0, 48)).frames) == 4
    assert len(read_clip(shard, 0, FrameSampling(9, 1.0, 48)).frames) == 2


def rewritten(shard_set: ShardSet, change: Callable[[str, bytes], bytes | None]) -> ShardSet:
    """The set with members of its first tar changed (None: left out), and a manifest that agrees."""
    path = Path(shard_set.shard_uri(0))
    with tarfile.open(path) as old:
        members = {member.name: old.extractfile(member).read() for member in old}  # type: ignore[union-attr]
    changed = {name: change(name, data) for name, data in members.items()}
    path.write_bytes(make_tar({name: data for name, data in changed.items() if data is not None}))
    where = Path(shard_set.uri, "manifest.json")
    manifest = json.loads(where.read_text())
    manifest["shards"][0]["bytes"] = path.stat().st_size
    where.write_text(json.dumps(manifest))
    return open_shard_set(shard_set.uri)


def test_damaged_pictures_are_replaced_or_their_video_is_quarantined(make_shards: MakeShards) -> None:
    def damage(name: str, data: bytes) -> bytes:
        hole = name.startswith("00000002.") and name.endswith(".jpg")
        return b"torn" if hole or name == "00000001.000000.jpg" else data

    shard_set = make_shards(captions=(1,) * 8, per_shard=8, encoding=FRAMES)
    shard_set = rewritten(shard_set, damage)
    (batch,) = Gallery(shard_set, 0, 8, SAMPLING, tokenize, 8).batches(0)
    assert [(entry["video_id"], entry["frames"]) for entry in batch.repaired] == [("v001", "1 of 6")]
    assert [(entry["video_id"], entry["reason"]) for entry in batch.quarantined] == [("v002", "no picture decodes")]
    (stream,) = run([shard_set], plan_of([shard_set], global_batch=8, virtual_streams=1), 1)
    assert [entry["video_id"] for entry in stream.quarantined] == ["v002"]
    assert "toy/v002#0" not in stream.names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: None if name == "00000001.000003.jpg" else data, "'00000001' lacks its video"),
        (lambda name, data: None if name == "00000001.json" else data, "'00000001' lacks its video"),
        (lambda name, data: data.replace(b'"rate": 4.0', b'"rate": -4.0') if "1.json" in name else data, "frames: "),
        (lambda name, data: data.replace(b'"times": [', b'"times": [9e9, ') if "1.json" in name else data, "frames: "),
        (lambda name, data: data.replace(b'"frames"', b'"farmes"') if "1.json" in name else data, "lacks its video"),
    ],
)
def test_a_tar_that_contradicts_itself(make_shards: MakeShards, change: Any, message: str) -> None:
    shard_set = rewritten(make_shards(captions=(1,) * 3, per_shard=3, encoding=FRAMES), change)
    with pytest.raises(UserError, match=message):
        Shard(shard_set, 0)


def test_an_index_of_our_own_tars_gives_the_same_frames(make_shards: MakeShards) -> None:
    shard_set = make_shards(captions=(2,) * 6, per_shard=3, encoding=FRAMES)
    before = next(Gallery(shard_set, 0, 6, SAMPLING, tokenize, 6).batches(0))
    Path(shard_set.uri, "manifest.json").unlink()
    index_shards(shard_set.uri)
    after = next(Gallery(open_shard_set(shard_set.uri), 0, 6, SAMPLING, tokenize, 6).batches(0))
    assert torch.equal(before.frames, after.frames)
    assert [sample.captions for sample in before.samples] == [sample.captions for sample in after.samples]


def test_the_command_line(tmp_path: Path, make_video: Callable[..., bytes], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["shards", "build", "--benchmark", "jsonl", "--annotations", "a", "--split", "s", "--videos", "v"]
    assert main([*words, "--output", str(tmp_path), "--frames", "2"]) == 2
    assert "pass --short-side" in capsys.readouterr().out
    for wrong in (["--gop", "0"], ["--quality", "101"], ["--frames", "-1"]):
        assert main([*words, "--output", str(tmp_path), *wrong]) == 2


@pytest.mark.parametrize("gop", [1, 4, 12])
def test_keyframes_of_a_copy(make_video: Callable[..., bytes], gop: int) -> None:
    data = make_video([n / 10 for n in range(30)], size=(64, 48))
    with av.open(io.BytesIO(make_copy(data, 48, 10.0, gop=gop).data)) as container:
        keyframes = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keyframes == [number % gop == 0 for number in range(30)]


# ---------------------------------------------------------------------------------------------------- hostile pictures


def test_the_nearest_stands_for_one_that_is_damaged() -> None:
    files = greys(10, 60, 110, 160)
    for wrong in (b"", b"torn", files[1][:200], b"\xff\xd8" + bytes(400), files[1][:1] + b"\x00" + files[1][2:]):
        frames, replaced = shown(files[0], wrong, *files[2:])
        assert [round(float(frame.float().mean())) for frame in frames] == [10, 10, 110, 160]
        assert replaced == 1
    with pytest.raises(VideoError, match="no picture decodes"):
        shown(b"torn", b"")


def test_each_picture_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    files, reads = greys(10, 60, 110), []
    files[1] = b"torn"

    def read(number: int) -> bytes:
        reads.append(number)
        return files[number]

    times = FrameTimes(rate=1.0, start=0.0, end=3.0, times=(0.5, 1.5, 2.5))
    load_pictures(read, times, FrameSampling(3, 1.0, 48))
    assert sorted(reads) == [0, 1, 2]


def test_pictures_that_cost_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PIXELS", 1000)
    for kind in ("JPEG", "PNG", "WEBP"):
        with pytest.raises(VideoError, match=r"picture too large \(64 x 48\)"):
            shown(file_of(level(9), kind))
    monkeypatch.setattr(limits, "MAX_PIXELS", 10**6)
    wide = np.zeros((2, 400, 3))
    for kind in ("JPEG", "PNG", "WEBP"):
        with pytest.raises(VideoError, match=r"picture too narrow \(400 x 2\)"):
            shown(file_of(wide, kind))
    noise = np.random.RandomState(0).randint(0, 256, (48, 64, 3))
    progressive = file_of(noise, progressive=True)
    assert shown(progressive)[0].shape == (1, 3, 48, 48)
    monkeypatch.setattr(limits, "MAX_SCANS", 3)
    with pytest.raises(VideoError, match="more than 3 scans"):
        shown(progressive)
    assert shown(file_of(noise))[1] == 0
    with pytest.raises(VideoError, match="takes more than 1e-06 s of CPU time"):
        load_pictures(lambda _: file_of(noise), STILL, FrameSampling(1, 1.0, 48, max_seconds=1e-6))


def test_a_header_that_claims_more_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(file_of(level(9)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    png = bytearray(file_of(level(9), "PNG"))
    png[16:24] = b"\x00\x0f\xff\xff\x00\x0f\xff\xff"
    for name in ("decode_jpeg", "decode_png"):
        monkeypatch.setattr(f"torchvision.io.{name}", lambda *_, **__: pytest.fail("decoded"))
    for file in (data, png):
        with pytest.raises(VideoError, match="picture too large"):
            shown(bytes(file))


def test_every_kind_of_picture_is_shown_as_viewers_show_it() -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32] = (200, 40, 40)
    reference = torch.from_numpy(picture[:, 8:56]).permute(2, 0, 1)[None]
    turned = Image.fromarray(np.rot90(picture, 1))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    sixteen = (np.arange(48 * 64).reshape(48, 64) * 20).astype(np.uint16)
    files = {
        "png": file_of(picture, "PNG"),
        "palette": file_of(Image.fromarray(picture).quantize(4), "PNG"),
        "alpha": file_of(Image.fromarray(picture).convert("RGBA"), "PNG"),
        "webp": file_of(picture, "WEBP", quality=95),
        "progressive": file_of(picture, progressive=True, quality=95),
        "exif": file_of(turned, exif=exif.tobytes(), quality=95),
        "cmyk": file_of(Image.fromarray(picture).convert("CMYK"), quality=95),
    }
    for name, data in files.items():
        frames, _ = shown(data, times=STILL)
        assert alike(frames, reference, 4), name
    grey, _ = shown(file_of(Image.fromarray(sixteen), "PNG"), times=STILL)
    expected = torch.from_numpy((sixteen[:, 8:56] >> 8).astype(np.uint8)).expand(1, 3, 48, 48)
    assert alike(grey, expected, 1), "the upper of 16 bits"


def test_mutants_never_crash() -> None:
    whole = file_of(np.random.RandomState(0).randint(0, 256, (48, 64, 3)), progressive=True)
    draw_from = np.random.RandomState(1)
    outcomes = set()
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(draw_from.randint(1, 6)):
            data[draw_from.randint(len(data))] = draw_from.randint(256)
        try:
            outcomes.add(tuple(shown(bytes(data))[0].shape))
        except VideoError:
            outcomes.add(())
    assert outcomes == {(1, 3, 48, 48), ()}


# ------------------------------------------------------------------------------------------------------ single pictures


@pytest.fixture
def stills(tmp_path: Path) -> str:
    """As img2dataset writes them: jpg, txt and json, in two tars."""
    tars = {}
    for number in range(2):
        members: dict[str, bytes | str] = {}
        for key in range(12 * number, 12 * number + 12):
            meta = {"caption": f"picture {key}", "url": "https://x", "key": f"{key:09d}", "status": "success"}
            members |= {
                f"{key:09d}.jpg": file_of(level(10 * key)),
                f"{key:09d}.json": json.dumps(meta),
                f"{key:09d}.txt": f"picture {key}",
            }
        tars[f"{number:05d}.tar"] = members
    where = folder(tmp_path / "stills", tars)
    index_shards(where)
    return where


def test_pictures_of_other_sets_are_videos_of_one_frame(stills: str) -> None:
    shard_set = open_shard_set(stills)
    assert (shard_set.manifest.videos, shard_set.manifest.pairs) == (24, 24)
    (batch,) = Gallery(shard_set, 0, 24, SAMPLING, tokenize, 24).batches(0)
    assert batch.frame_mask.sum(1).tolist() == [1] * 24
    assert [round(float(frames[0].float().mean())) for frames in batch.frames] == [10 * key for key in range(24)]
    assert [sample.video_id for sample in batch.samples] == [f"{key:09d}" for key in range(24)]
    assert verify_shards(stills) == []


def test_they_mix_with_videos_by_weight_in_every_world(stills: str, make_shards: MakeShards) -> None:
    sets = [make_shards(captions=(1, 2) * 6, per_shard=3, encoding=FRAMES), open_shard_set(stills)]
    plan = plan_of(sets, weights=[3, 1])
    reference = run(sets, plan, 6)
    for batch in reference:
        assert sum(name.startswith("stills/") for name in batch.names) == 4
        one = [mask.sum() == 1 for mask in batch.frame_mask]
        assert one == [name.startswith("stills/") for name in batch.names]
    for world_size, workers in ((2, 0), (1, 2), (4, 1)):
        assert all(map(same, run(sets, plan, 2, world_size, workers, start=4), reference[4:]))


def test_a_thumbnail_beside_videos_is_no_video(tmp_path: Path, make_video: Callable[..., bytes]) -> None:
    members = {
        "0.mp4": make_video(),
        "0.jpg": file_of(level(9)),
        "0.txt": "x",
        "1.jpg": file_of(level(9)),
        "1.txt": "y",
    }
    manifest, _ = index_shards(folder(tmp_path / "set", {"0.tar": members}), max_bad_fraction=0.5)
    assert manifest.rejected == {"0.tar/1": "a picture and no video"}
    assert len(samples(open_shard_set(str(tmp_path / "set")))) == 1


def test_pictures_never_pass_through_the_video_decoder(
    make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set = make_shards(captions=(1,) * 16, per_shard=4, encoding=FRAMES)
    monkeypatch.setattr(clips, "load_clip", lambda *_: pytest.fail("decoded as a video"))
    assert len(run([shard_set], plan_of([shard_set]), 1)[0].names) == 16
