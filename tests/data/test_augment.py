"""RandAugment of clips: the authors' draw, once per clip, a function of seed, epoch and pair, and of nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment
import torch
from PIL import Image
from torch import Tensor

import glscl.data.augment as module
from glscl.data.augment import ClipAugmentation, check_augmentation
from glscl.data.gallery import Gallery
from glscl.data.shards import ShardSet
from glscl.data.stream import Batch, PairStream, make_loader
from glscl.data.video import FrameSampling, load_frames
from glscl.errors import UserError
from glscl.training.config import RunConfig, validate
from tests.data.test_stream import SAMPLING, plan_of, same, tokenize

MakeShards = Callable[..., ShardSet]
MakeVideo = Callable[..., bytes]
THEIRS = "rand-m7-n4-mstd0.5-inc1"
GROWING = {
    *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"),
    *("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY"),
    *("TranslateXRel", "TranslateYRel"),
}


def run(
    shard_set: ShardSet, steps: int, world_size: int = 1, workers: int = 0, start: int = 0, seed: int = 3
) -> list[Batch]:
    """The augmented global batches of some steps."""
    plan = plan_of([shard_set])
    ranks = []
    for rank in range(world_size):
        stream = PairStream(
            [shard_set], plan, SAMPLING, tokenize, rank, world_size, start, augmentation=ClipAugmentation(THEIRS, seed)
        )
        ranks.append(list(islice(make_loader(stream, workers, prefetch=2), steps)))
    return [Batch.concatenate(parts) for parts in zip(*ranks, strict=True)]


def _picture(seed: int = 0, size: tuple[int, int] = (24, 40)) -> Tensor:
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_same_frames_in_every_world_and_after_a_resume(make_shards: MakeShards) -> None:
    shard_set = make_shards(captions=(1, 2, 3, 2) * 6, per_shard=3)
    reference = run(shard_set, 4)
    for world_size, workers in ((1, 1), (2, 0), (2, 2), (4, 1)):
        assert all(map(same, run(shard_set, 2, world_size, workers, start=2), reference[2:])), (world_size, workers)


def test_every_epoch_and_seed_draws_anew(make_shards: MakeShards) -> None:
    shard_set = make_shards(captions=(2,) * 8, per_shard=1)  # one step an epoch, every pair in it
    first, second = run(shard_set, 2)
    (other,) = run(shard_set, 1, seed=4)
    frames = [dict(zip(batch.names, batch.frames, strict=True)) for batch in (first, second, other)]
    assert frames[0].keys() == frames[1].keys() == frames[2].keys()
    for one, another in pairwise(frames):
        assert sum(not torch.equal(one[name], another[name]) for name in one) > len(one) / 2
    pairs_of_one_video = [frames[0][f"toy/v000#{caption}"] for caption in range(2)]
    assert not torch.equal(*pairs_of_one_video), "a draw belongs to a pair, not to a video"


def test_all_frames_of_a_clip_are_treated_alike(make_video: MakeVideo) -> None:
    still = make_video([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], seed=1)
    original = load_frames(still, SAMPLING)
    augmentation = ClipAugmentation(THEIRS, 0)
    changed = 0
    for pair in map(str, range(20)):
        augment = augmentation.of(0, pair)
        seen: list[Tensor] = []

        def once(picture: Tensor, seen: list[Tensor] = seen, augment: Any = augment) -> Tensor:
            seen.append(augment(picture))
            return augment(_picture())  # the same picture at every moment

        frames = load_frames(still, FrameSampling(3, 1.0, 48, augment=once))
        assert len(seen) == len(frames) == 3
        assert torch.equal(frames, frames[:1].expand_as(frames))
        changed += not torch.equal(load_frames(still, FrameSampling(3, 1.0, 48, augment=augment)), original)
    assert changed > 15


def test_pictures_are_augmented_at_their_decoded_size_before_the_crop(make_video: MakeVideo) -> None:
    sizes = []

    def shift(picture: Tensor) -> Tensor:
        sizes.append(tuple(picture.shape))
        return picture.roll(40, dims=2)

    video = make_video(size=(128, 48))
    moved = load_frames(video, FrameSampling(2, 1.0, 48, augment=shift))
    assert sizes == [(3, 48, 128)] * 2
    whole = load_frames(video, FrameSampling(2, 1.0, 48))
    assert torch.equal(moved[:, :, :, 40:], whole[:, :, :, :8])  # what was left of the crop has come into it
    assert not torch.equal(moved[:, :, :, :40], whole[:, :, :, 8:])


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_both_decoders_augment(make_video: MakeVideo, decoder: Any) -> None:
    if decoder == "torchcodec":
        pytest.importorskip("torchcodec")
    frames = load_frames(make_video(), FrameSampling(2, 1.0, 48, decoder, augment=lambda picture: 255 - picture))
    plain = load_frames(make_video(), FrameSampling(2, 1.0, 48, decoder))
    assert (frames.int() + plain.int() - 255).abs().max() <= 2


def test_evaluation_is_not_augmented(make_shards: MakeShards, make_video: MakeVideo) -> None:
    (batch,) = Gallery(make_shards(captions=(1,) * 4), 0, 4, SAMPLING, tokenize, 4).batches(0)
    for sample, frames, mask in zip(batch.samples, batch.frames, batch.frame_mask, strict=True):
        assert torch.equal(frames[mask], load_frames(make_video(seed=int(sample.video_id[1:])), SAMPLING))
    assert RunConfig().data.augment is None


def test_the_process_generators_are_neither_read_nor_moved() -> None:
    augment = ClipAugmentation(THEIRS, 0).of(3, "toy/v#1")
    states = []
    results = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
        results.append(augment(_picture()))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
        states.append(before == after)
    assert states == [True, True]
    assert torch.equal(*results)
    operations, *_ = module._operations(THEIRS)
    assert not isinstance(operations[0], timm.data.auto_augment.AugmentOp), "timm's own module draws from the process's"


def test_the_draw_is_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    """METHODS.md §1.7: 4 of 15 growing operations, coin 0.5, magnitude N(7, 0.5²) to 10, either sign; bicubic, 128."""
    operations, layers, _ = module._operations(THEIRS)
    assert layers == 4
    assert {operation.name for operation in operations} == GROWING
    assert len(operations) == 15
    applied: list[tuple[str, tuple[Any, ...]]] = []

    def note(name: str, image: Image.Image, *arguments: Any, **settings: Any) -> Image.Image:
        assert settings == {"fillcolor": (128, 128, 128), "resample": Image.Resampling.BICUBIC}
        applied.append((name, arguments))
        return image

    for operation in operations:
        monkeypatch.setattr(operation, "aug_fn", partial(note, operation.name))
    clips = 1500
    for clip in range(clips):
        ClipAugmentation(THEIRS, 7).of(0, str(clip))(_picture(size=(4, 4)))
    counts = Counter(name for name, _ in applied)
    assert sum(counts.values()) / clips == pytest.approx(4 * 0.5, abs=0.1)
    expected = clips * 4 * 0.5 / 15
    assert all(abs(counts[name] - expected) < 5 * expected**0.5 for name in GROWING)
    degrees = np.array([arguments[0] for name, arguments in applied if name == "Rotate"])
    assert np.abs(degrees).mean() == pytest.approx(7 / 10 * 30, abs=0.6)
    assert np.abs(degrees).std() == pytest.approx(0.5 / 10 * 30, abs=0.4)
    assert 0.3 < (degrees > 0).mean() < 0.7


@pytest.mark.parametrize(
    "text",
    [
        *("", "rand", "rand-m7", "rand-m7-n4-mstd0.5-inc1"),
        *("rand-m11", "rand-n0", "rand-n99", "rand-p1.5", "rand-inc2", "rand-m7.5", "rand-n1.5"),
        *("rand-m7-m8", "rand-x3", "rand-", "rand-m", "randm7", "augmix-m5", "original", "rand-tweights", "rand-m7 n4"),
    ],
)
def test_what_timm_would_leave_out_is_refused(text: str) -> None:
    if text in ("rand", "rand-m7", THEIRS):
        assert check_augmentation(text) == text
        ClipAugmentation(text, 0).of(0, "x")(_picture())
        return
    with pytest.raises(ValueError, match=r"as timm writes it, such as rand-m7-n4-mstd0\.5-inc1"):
        check_augmentation(text)
    with pytest.raises(UserError, match=r"here: data\.augment = .*RandAugment as timm writes it"):
        validate({"data": {"augment": text}}, "here")


def test_shape_and_type_are_kept() -> None:
    for pair in map(str, range(40)):
        for picture in (_picture(), _picture().flip(1), _picture(size=(1, 64))):
            found = ClipAugmentation(THEIRS, 0).of(0, pair)(picture)
            assert found.shape == picture.shape
            assert found.dtype == torch.uint8
