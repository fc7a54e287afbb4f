"""Shifts of the frames: what each kind does, stronger by the number, and the same whoever reads the video."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from glscl.data.shards import ShardSet
from glscl.data.shifts import KINDS, STRENGTHS, Shift, parse_shifts
from glscl.data.video import FrameSampling, load_frames
from glscl.errors import UserError
from tests.data.test_frame_changes import changed
from tests.data.test_gallery import SAMPLING

SIDE = 96
DRAWN = {"noise", "crop", "frame_drop"}


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Smooth pictures that move, with an edge."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    pictures = []
    for time in range(40):
        wave = 128 + 60 * torch.sin((rows + 2.0 * time) / 5) + 40 * torch.cos(columns / 3.0)
        pictures.append(torch.stack([wave, wave.T, wave.flip(1)]) + 25 * (columns > time % SIDE))
    return torch.stack(pictures).round().clamp(0, 255).to(torch.uint8)


def shifted(frames: Tensor, kind: str, strength: int, video_id: str = "v") -> Tensor:
    return Shift(kind, strength).apply(frames, video_id)


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().mean())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "speed"])
def test_a_stronger_shift_is_farther_and_draws_are_of_the_video(frames: Tensor, kind: str) -> None:
    before = frames.clone()
    found = [shifted(frames, kind, strength) for strength in STRENGTHS]
    assert all(one.shape == frames.shape and one.dtype == torch.uint8 for one in found)
    away = [distance(one, frames) for one in found]
    assert away[0] > 0
    assert all(more > 0.99 * less for less, more in pairwise(away)), away
    assert away[-1] > 1.2 * away[0]
    assert torch.equal(shifted(frames, kind, 3), found[2])
    assert torch.equal(shifted(frames, kind, 3, "w"), found[2]) == (kind not in DRAWN)
    alone = shifted(frames[:1], kind, 3)
    assert alone.shape == frames[:1].shape
    assert torch.equal(frames, before)


def test_darkness_and_contrast_are_arithmetic(frames: Tensor) -> None:
    values = frames.double()
    for strength in STRENGTHS:
        left = Shift("darkness", strength).value
        assert (shifted(frames, "darkness", strength).double() - values * left).abs().max() <= 1
        left = Shift("contrast", strength).value
        for picture, found in zip(values, shifted(frames, "contrast", strength).double(), strict=True):
            grey = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
            assert (found - (left * picture + (1 - left) * grey.mean())).abs().max() <= 2


def test_noise_is_normal_and_each_frames_own() -> None:
    grey = torch.full((6, 3, 64, 64), 128, dtype=torch.uint8)
    noise = (shifted(grey, "noise", 1).double() - 128) / 255
    assert float(noise.std()) == pytest.approx(0.08, rel=0.02)
    assert abs(float(noise.mean())) < 0.002
    frames = noise.flatten(1)
    assert torch.corrcoef(frames).fill_diagonal_(0).abs().max() < 0.05


def test_blur_spreads_a_point_as_a_gaussian_of_that_width() -> None:
    point = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    point[..., 112, :] = 255  # a line
    for strength in STRENGTHS:
        profile = shifted(point, "blur", strength)[0, 0, :, 112].double()
        places = torch.arange(224) - 112.0
        sigma = float(((profile * places**2).sum() / profile.sum()).sqrt())
        assert sigma == pytest.approx(Shift("blur", strength).value, rel=0.05)
    small = torch.nn.functional.interpolate(point.float(), 112, mode="area").to(torch.uint8)
    profile = shifted(small, "blur", 5)[0, 0, :, 56].double()
    places = torch.arange(112) - 56.0
    assert float(((profile * places**2).sum() / profile.sum()).sqrt()) == pytest.approx(3, rel=0.07)


def test_jpeg_is_that_quality_of_jpeg(frames: Tensor) -> None:
    for strength in STRENGTHS:
        file = io.BytesIO()
        picture = Image.fromarray(frames[3].permute(1, 2, 0).numpy())
        picture.save(file, "JPEG", quality=int(Shift("jpeg", strength).value))
        expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert distance(shifted(frames, "jpeg", strength)[3], expected) < 1.5 < distance(frames[3], expected)


def test_pixelation_leaves_so_many_pixels(frames: Tensor) -> None:
    for strength in STRENGTHS:
        left = round(SIDE * Shift("pixelation", strength).value)
        found = shifted(frames, "pixelation", strength)
        changes = (found[..., 1:, :] != found[..., :-1, :]).any(0).any(0).any(1)
        assert int(changes.sum()) == left - 1


def test_a_crop_is_one_place_of_the_whole_video_enlarged() -> None:
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    ramps = torch.stack([4 * rows, 4 * columns, 0 * rows]).clamp(0, 255).to(torch.uint8).expand(3, -1, -1, -1)
    corners = set()
    for video in map(str, range(40)):
        found = shifted(ramps, "crop", 4, video)
        assert torch.equal(found[0], found[1])
        top, bottom = float(found[0, 0, 0, 30]) / 4, float(found[0, 0, -1, 30]) / 4
        assert bottom - top == pytest.approx(round(64 * 0.45) - 1, abs=2)
        corners.add((round(top), round(float(found[0, 1, 30, 0]) / 4)))
    assert len(corners) > 30
    assert {top for top, _ in corners} <= set(range(37))


def test_dropped_frames_show_their_predecessor() -> None:
    numbered = torch.arange(200, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    kept: set[int] | None = None
    for strength in STRENGTHS:
        shown = shifted(numbered, "frame_drop", strength)[:, 0, 0, 0].tolist()
        assert shown[0] == 0
        assert all(now in (place, before) for place, before, now in zip(range(1, 200), shown, shown[1:], strict=False))
        share = sum(now != place for place, now in enumerate(shown)) / 199
        assert share == pytest.approx(Shift("frame_drop", strength).value, abs=0.1)
        own = {place for place, now in enumerate(shown) if now == place}
        assert kept is None or own <= kept, "what a weaker shift drops, a stronger one drops"
        kept = own


def test_slow_motion_takes_as_many_frames_of_the_middle(make_video: Callable[..., bytes]) -> None:
    plain = FrameSampling(max_frames=4, rate=2.0, size=32)
    assert plain.times(10.0, 20.0) == [11.25, 13.75, 16.25, 18.75]
    slow = Shift("speed", 3).sampling(plain)
    assert isinstance(slow, FrameSampling)
    assert slow.times(10.0, 20.0) == pytest.approx([13.5, 14.5, 15.5, 16.5])
    assert len(slow.times(0.0, 0.4)) == len(plain.times(0.0, 0.4)) == 1
    assert Shift("blur", 3).sampling(plain) == plain
    video = make_video([n / 10 for n in range(40)])
    first, last = (load_frames(video, Shift("speed", strength).sampling(plain)) for strength in (1, 5))  # type: ignore[arg-type]
    assert len(first) == len(last) == 4
    assert torch.equal(shifted(first, "speed", 1), first)
    same = load_frames(video, replace(plain, max_frames=40, rate=10.0))
    seen = [min(range(40), key=lambda n: distance(same[n], frame)) for frame in last]
    assert all(17 <= number <= 22 for number in seen)


@pytest.mark.parametrize("kind", ["noise", "jpeg", "blur", "crop", "frame_drop", "speed"])
def test_any_number_of_processes_reads_the_same(make_shards: Callable[..., ShardSet], kind: str) -> None:
    shard_set = make_shards(captions=(1,) * 6, per_shard=2)
    shift = Shift(kind, 4)
    one, two = (changed(shard_set, shift, workers) for workers in (0, 2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[position], two[position]) for position in one)
    plain = changed(shard_set, Shift("jpeg", 1), 0)
    assert any(not torch.equal(one[position], plain[position]) for position in one)


def test_names() -> None:
    assert parse_shifts(()) == []
    assert parse_shifts(("noise", "blur")) == [Shift(kind, s) for kind in ("noise", "blur") for s in range(1, 6)]
    assert len(parse_shifts(("all",))) == 5 * len(KINDS) == 45
    assert all(
        sorted(kind.values) == list(kind.values) or sorted(kind.values)[::-1] == list(kind.values)
        for kind in KINDS.values()
    )
    for names, says in (
        (("blurr",), "no shift 'blurr', did you mean 'blur'.*there are blur, noise"),
        (("blur", "blur"), "a kind is named twice"),
        (("all", "blur"), "a kind is named twice; all is every kind"),
    ):
        with pytest.raises(UserError, match=f"--shifts: {says}"):
            parse_shifts(names)


def test_settings_of_the_gallery_stay() -> None:
    assert SAMPLING.window == 1.0
    assert SAMPLING.times(0.0, 3.0) == [0.5, 1.5, 2.5]
