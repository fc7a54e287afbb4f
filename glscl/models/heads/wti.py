"""Weighted token-wise interaction: every word meets its best frame, every frame its best word."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.models.heads.base import Features, Head, register_head
from glscl.models.scores.maxima import maximum_scores
from glscl.options import Options


class WTIOptions(Options):
    """Head of DRL (arXiv 2203.07111): weighted token-wise interaction."""

    mask_padding: bool = True
    """Padding is nobody's best match; false lets it be one, with similarity 0, as the authors' code does."""


@register_head("wti")
class WTI(Head):
    """``s_ab = ½ [Σ_w α_aw max_f ŵ_aw · f̂_bf + Σ_f β_bf max_w ŵ_aw · f̂_bf]`` (foolwood/DRL, ``wti_arch 2``).

    ``α`` and ``β`` are softmaxes over the real words and frames of what two small networks make of their features.
    """

    Options = WTIOptions
    provides = ("features", "mask", "weights")

    def __init__(self, width: int, options: WTIOptions) -> None:
        super().__init__(width, options)
        self.options = options
        self.text_weight_fc, self.video_weight_fc = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)) for _ in range(2)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Unit token features (A, W, D), their mask and their weights (A, W)."""
        return _encode(self.text_weight_fc, tokens, token_mask)

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Unit frame features (B, F, D), their mask and their weights (B, F)."""
        return _encode(self.video_weight_fc, frames, frame_mask)

    def forward(self, text: Features, video: Features) -> Tensor:
        """Weighted means of best cosines (A, B)."""
        with torch.autocast(text["mask"].device.type, enabled=False):
            return maximum_scores(
                text["features"],
                video["features"],
                (text["mask"], video["mask"]),
                (text["weights"], video["weights"]),
                hidden=-1.0 if self.options.mask_padding else 0.0,
            )

    def multiply_adds(self, words: int, frames: int) -> int:
        """``WFD``: every word with every frame."""
        return words * frames * self.width


def _encode(network: nn.Module, features: Tensor, mask: Tensor) -> Features:
    """Unit features (N, L, D), bool mask (N, L) and weights (N, L) that sum to 1 over the real ones."""
    mask = mask.bool()
    logits = network(features).squeeze(-1).float().masked_fill(~mask, torch.finfo(torch.float32).min)
    return {"features": F.normalize(features.float(), dim=-1), "mask": mask, "weights": logits.softmax(-1)}
