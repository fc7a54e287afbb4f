"""RandAugment of whole clips: one draw for all frames of a pair, the same on every rank and after a resume."""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # options are read without torch, which takes a second to import
    from PIL.Image import Image as Picture
    from torch import Tensor

FILL = (128, 128, 128)
_SECTION = re.compile(r"(m|n|p|mstd|mmax|inc)(\d+(?:\.\d+)?)")
_LIMITS = {"m": (0, 10), "n": (1, 16), "p": (0, 1), "mstd": (0, 10), "mmax": (1, 30), "inc": (0, 1)}
_FRACTIONS = ("p", "mstd")


def check_augmentation(text: str) -> str:
    """The text, if it is RandAugment as timm writes it; else a ValueError (timm leaves out what it does not know)."""
    kind, *sections = text.split("-")
    matches = [_SECTION.fullmatch(section) for section in sections]
    keys = [match[1] for match in matches if match]
    sound = kind == "rand" and None not in matches and len(set(keys)) == len(keys)
    for match in matches:
        if match:
            low, high = _LIMITS[match[1]]
            sound &= low <= float(match[2]) <= high and (match[1] in _FRACTIONS or "." not in match[2])
    if not sound:
        raise ValueError(
            "give RandAugment as timm writes it, such as rand-m7-n4-mstd0.5-inc1 (m: magnitude to 10, n: operations, "
            "mstd: deviation of the magnitude, inc1: operations that grow with it, p: chance of each), or none"
        )
    return text


@dataclass(frozen=True)
class ClipAugmentation:
    """RandAugment (Cubuk et al. 2019, arXiv 1909.13719) as zchoi/GLSCL applies it to training clips.

    n operations are drawn with replacement; each is applied with chance p, at a magnitude N(m, mstd²) clipped to
    [0, 10], with bicubic resampling and grey filling (``tvr/dataloaders/rand_augment.py``, ``video_transforms.py``).
    Coin, magnitude and sign are drawn once for all frames of a clip.
    """

    text: str  # as `check_augmentation` takes it
    seed: int

    def __post_init__(self) -> None:
        _operations(check_augmentation(self.text))  # here, so that processes forked later have them

    def of(self, epoch: int, pair: str) -> Callable[[Tensor], Tensor]:
        """Return the augmentation of a pair's pictures in an epoch: uint8 (3, H, W) to (3, H, W).

        It depends on seed, epoch and the pair's name alone. The process's random generators are neither read nor moved.
        """
        import numpy as np
        import torch
        from PIL import Image

        key = f"{self.seed}/{epoch}/{pair}"

        def augment(picture: Tensor) -> Tensor:
            operations, layers, generator = _operations(self.text)
            generator.seed(key)  # for every picture anew: all of a clip are treated alike
            image = Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
            for operation in generator.choices(operations, k=layers):
                image = operation(image)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)

        return augment


@cache
def _operations(text: str) -> tuple[list[Callable[[Picture], Picture]], int, random.Random]:
    """Timm's operations, how many are applied, and the generator that they draw from.

    They are of a copy of timm's module with a generator of its own: timm's draws from the process's, as others do.
    """
    from PIL import Image

    spec = importlib.util.find_spec("timm.data.auto_augment")
    assert spec is not None
    assert spec.loader is not None
    timm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(timm)
    timm.random = generator = random.Random()  # type: ignore[attr-defined]
    transform = timm.rand_augment_transform(text, {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC})
    return transform.ops, transform.num_layers, generator
