"""Shifts at test time: corruptions of the decoded frames in five strengths, the same whichever process reads a video.

They act on the square pictures that a model is given, uint8 (F, 3, S, S), but for speed, which takes other pictures.
Blur, noise, JPEG, contrast and pixelation have the five strengths of ImageNet-C (Hendrycks & Dietterich 2019), blur in
pixels of a side of 224. What is drawn depends on the kind of shift and the video's id alone, so that a stronger shift
is more of the same. The pictures are torchvision's work.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from glscl.data.frame_changes import FrameChange
from glscl.errors import UserError, did_you_mean

if TYPE_CHECKING:  # options are read without torch, which takes a second to import
    from torch import Tensor

    from glscl.data.clips import Sampling

STRENGTHS = (1, 2, 3, 4, 5)
ALL = "all"
_SIDE = 224  # of the pictures that blur's strengths are for

Corrupt = Callable[["Tensor", float, str], "Tensor"]  # frames, the value of the strength, what draws are seeded with


@dataclass(frozen=True)
class ShiftKind:
    """A kind of shift."""

    what: str  # in words, with the unit of the values
    values: tuple[float, float, float, float, float]  # of the five strengths
    corrupt: Corrupt | None  # None: other frames are sampled instead


def _blur(frames: Tensor, sigma: float, _: str) -> Tensor:
    import torch
    from torchvision.transforms.v2 import functional

    pixels = sigma * frames.shape[-1] / _SIDE
    width = 2 * max(1, round(4 * pixels)) + 1
    blurred = frames.float()
    for kernel in ([width, 1], [1, width]):  # one after the other: a square kernel costs ten times as much
        blurred = functional.gaussian_blur(blurred, kernel, [pixels, pixels])
    return blurred.round().to(torch.uint8)


def _noise(frames: Tensor, deviation: float, key: str) -> Tensor:
    import torch

    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1)
    noise = torch.randn(frames.shape, generator=generator)
    return (frames + 255 * deviation * noise).round().clamp(0, 255).to(torch.uint8)


def _jpeg(frames: Tensor, quality: float, _: str) -> Tensor:
    import torch
    from torchvision.transforms.v2 import functional

    return torch.stack([functional.jpeg(frame.contiguous(), int(quality)) for frame in frames])


def _darken(frames: Tensor, factor: float, _: str) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.adjust_brightness(frames, factor)  # type: ignore[no-any-return]


def _flatten(frames: Tensor, factor: float, _: str) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.adjust_contrast(frames, factor)  # type: ignore[no-any-return]


def _pixelate(frames: Tensor, share: float, _: str) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode, functional

    side = frames.shape[-1]
    coarse = max(1, round(side * share))
    # Every coarse pixel is the mean of those that it covers.
    small = functional.resize(frames, [coarse, coarse], InterpolationMode.BILINEAR, antialias=True)
    return functional.resize(small, [side, side], InterpolationMode.NEAREST_EXACT)  # type: ignore[no-any-return]


def _crop(frames: Tensor, share: float, key: str) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode, functional

    side = frames.shape[-1]
    part = max(1, round(side * share))
    draw = random.Random(key)
    top, left = (round(draw.random() * (side - part)) for _ in range(2))  # of the whole video
    return functional.resized_crop(  # type: ignore[no-any-return]
        frames, top, left, part, part, [side, side], InterpolationMode.BICUBIC, antialias=True
    )


def _drop(frames: Tensor, share: float, key: str) -> Tensor:
    draw = random.Random(key)
    shown = [0]
    for frame in range(1, len(frames)):
        shown.append(shown[-1] if draw.random() < share else frame)
    return frames[shown]


KINDS: dict[str, ShiftKind] = {
    "blur": ShiftKind("Gaussian blur, pixels of deviation at a side of 224", (1, 2, 3, 4, 6), _blur),
    "noise": ShiftKind("Gaussian noise, deviation as a share of white", (0.08, 0.12, 0.18, 0.26, 0.38), _noise),
    "jpeg": ShiftKind("JPEG compression, quality", (25, 18, 15, 10, 7), _jpeg),
    "darkness": ShiftKind("darker pictures, share of the brightness left", (0.8, 0.6, 0.4, 0.25, 0.1), _darken),
    "contrast": ShiftKind("less contrast, share of it left", (0.4, 0.3, 0.2, 0.1, 0.05), _flatten),
    "pixelation": ShiftKind("pixelation, pixels left of a side", (0.6, 0.5, 0.4, 0.3, 0.25), _pixelate),
    "crop": ShiftKind("a part of the pictures, enlarged, share of the side", (0.9, 0.75, 0.6, 0.45, 0.3), _crop),
    "frame_drop": ShiftKind("frames replaced by the one before, chance of each", (0.2, 0.4, 0.6, 0.8, 0.95), _drop),
    "speed": ShiftKind("slow motion, share of the time that is seen", (0.8, 0.6, 0.4, 0.2, 0.1), None),
}
"""Every kind of shift by name."""


@dataclass(frozen=True, slots=True)
class Shift(FrameChange):
    """One kind of shift at one strength."""

    kind: str  # of `KINDS`
    strength: int  # of `STRENGTHS`

    @property
    def value(self) -> float:
        """The number that the strength stands for."""
        return KINDS[self.kind].values[self.strength - 1]

    @property
    def label(self) -> str:
        """Name for lines of a table."""
        return f"{self.kind} {self.strength}"

    def sampling(self, sampling: Sampling) -> Sampling:
        """Refuses features, in which there is nothing to corrupt."""
        from glscl.data.video import FrameSampling

        if not isinstance(sampling, FrameSampling):
            raise UserError("shifts corrupt pictures, and this set holds features")
        return sampling if KINDS[self.kind].corrupt else replace(sampling, window=self.value)

    def apply(self, frames: Tensor, video_id: str) -> Tensor:
        corrupt = KINDS[self.kind].corrupt
        return corrupt(frames, self.value, f"{self.kind}/{video_id}") if corrupt else frames


def parse_shifts(names: Sequence[str]) -> list[Shift]:
    """Every strength of the kinds that are named. Raises `UserError`: there is no such kind, or it is named twice."""
    known = [*KINDS, ALL]
    for name in names:
        if name not in known:
            raise UserError(f"--shifts: no shift '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
    if len(set(names)) < len(names) or (ALL in names and len(names) > 1):
        raise UserError(f"--shifts: a kind is named twice; {ALL} is every kind")
    return [Shift(kind, strength) for kind in (KINDS if ALL in names else names) for strength in STRENGTHS]
