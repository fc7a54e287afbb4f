"""Mean pooling: the parameter-free head of CLIP4Clip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.models.heads.base import Features, Head, register_head
from glscl.models.heads.scoring import wide
from glscl.options import Options


def mean_of_frames(frames: Tensor, frame_mask: Tensor) -> Tensor:
    """Unit mean (B, D), float32, of the unit real frames of (B, F, D); zero for a video without one."""
    weights = frame_mask.float()
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1.0)
    return F.normalize((F.normalize(wide(frames), dim=-1) * weights.unsqueeze(-1)).sum(1), dim=-1)


class MeanPoolOptions(Options):
    """CLIP4Clip's mean pooling has no options."""


@register_head("mean_pool")
class MeanPool(Head):
    """Cosine of the sentence feature and the mean of the unit frame features.

    ``s_ab = cos(t_a, Σ_f m_bf v_bf / |v_bf|)`` (ArrowLuo/CLIP4Clip, ``sim_header meanP``).
    """

    Options = MeanPoolOptions

    def __init__(self, width: int, options: MeanPoolOptions) -> None:
        super().__init__(width, options)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Unit sentence features (A, D)."""
        return {"sentence": F.normalize(sentence.float(), dim=-1)}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Unit mean of the unit frame features (B, D); zero for a video without a real frame."""
        return {"pooled": mean_of_frames(frames, frame_mask)}

    def forward(self, text: Features, video: Features) -> Tensor:
        """Cosines (A, B)."""
        with torch.autocast(text["sentence"].device.type, enabled=False):
            return text["sentence"] @ video["pooled"].T

    def multiply_adds(self, words: int, frames: int) -> int:
        """One dot product: D."""
        return self.width
