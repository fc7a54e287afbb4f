"""What an evaluation changes about the frames of every video, the same whichever process reads it: their order here.

The orders are controls: a model that makes nothing of the order of frames loses nothing by another, and a set whose
captions say nothing of time loses nothing by a single frame.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # options are read without torch, which takes a second to import
    from torch import Tensor

    from glscl.data.clips import Sampling

FrameOrder = Literal["single", "shuffled", "reversed"]


class FrameChange(ABC):
    """A change of every video's frames, before the model sees them."""

    def sampling(self, sampling: Sampling) -> Sampling:
        """What is taken of a video, where that changes, too."""
        return sampling

    @abstractmethod
    def apply(self, frames: Tensor, video_id: str) -> Tensor:
        """Change the frames of a video: uint8 (F, 3, S, S), or features (F, D). Draws depend on its id alone."""


@dataclass(frozen=True, slots=True)
class Reorder(FrameChange):
    """The frames in another order, or the middle one of them alone, of two in the middle the later."""

    order: FrameOrder

    def apply(self, frames: Tensor, video_id: str) -> Tensor:
        count = len(frames)
        if self.order == "single":
            return frames[count // 2 : count // 2 + 1]
        places = list(range(count))
        if self.order == "reversed":
            places.reverse()
        else:  # any order is as likely as any other, the ordinary one included
            random.Random(f"frames/{video_id}").shuffle(places)
        return frames[places]
