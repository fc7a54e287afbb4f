"""DiCoSA: text-conditioned pooling, then a weighted sum of cosines of equal chunks of the feature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.models.heads.base import Features, Head, register_head
from glscl.models.heads.scoring import score_by_tiles
from glscl.options import MAX_SIZE, Options


class DiCoSAOptions(Options):
    """Head of DiCoSA (arXiv 2305.12218): disentangled conceptualisation and set-to-set alignment."""

    tau: float = Field(3.0, gt=0)
    """Temperature of the text-conditioned frame pooling."""
    centers: int = Field(8, ge=1, le=MAX_SIZE)
    """Parts that a feature is cut into; must divide the feature width."""
    mask_padding: bool = True
    """Hide padded frames from the softmax; false drops them only after it, as the authors' code does, so that they
    still take weight."""


@register_head("dicosa")
class DiCoSA(Head):
    """``s_ab = Σ_c MLP([t_ac; v̄_abc]) cos(t_ac, v̄_abc)`` (jpthu17/DiCoSA, ``tvr/models/modeling.py``).

    ``v̄_ab = Σ_f softmax_f(t_a · v_bf / τ) v_bf``; c counts equal chunks of the feature. The MLP's first layer is
    linear in its two inputs, so that the text's share of it is cached.
    """

    Options = DiCoSAOptions

    def __init__(self, width: int, options: DiCoSAOptions) -> None:
        super().__init__(width, options)
        if width % options.centers:
            raise UserError(
                f"model.heads.dicosa.centers: {options.centers} does not divide the feature width {width} of the clip "
                "towers"
            )
        self.options = options
        chunk = width // options.centers
        self.hidden = nn.Linear(2 * chunk, 4 * chunk)
        self.weight = nn.Linear(4 * chunk, 1)
        for linear in (self.hidden, self.weight):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Sentence features (A, D) and their share of the MLP's hidden layer (A, C, 4D/C)."""
        chunks = sentence.float().unflatten(-1, (self.options.centers, -1))
        with torch.autocast(sentence.device.type, enabled=False):
            weight = self.hidden.weight[:, : chunks.shape[-1]].float()
            return {"sentence": sentence, "hidden": chunks @ weight.T + self.hidden.bias.float()}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Frame features (B, F, D) and their mask (B, F)."""
        return {"frames": frames, "frame_mask": frame_mask.bool()}

    def forward(self, text: Features, video: Features) -> Tensor:
        """Weighted sums of cosines (A, B)."""
        return score_by_tiles(self._score, text, video, 4 * self.width)

    def multiply_adds(self, words: int, frames: int) -> int:
        """``2FD + D`` for pooling and cosines, ``8D²/C + 4D`` for the MLP."""
        return (2 * frames + 5) * self.width + 8 * self.width**2 // self.options.centers

    def implemented_multiply_adds(self, words: int, frames: int) -> int:
        """Half of the MLP's first layer is cached, and the cosines are no matrix product."""
        return (2 * frames + 4) * self.width + 4 * self.width**2 // self.options.centers

    def _score(self, text: Features, video: Features) -> Tensor:
        sentence, frames, mask = text["sentence"].float(), video["frames"].float(), video["frame_mask"][:, None]
        logits = torch.einsum("ad,bfd->baf", sentence, frames) / self.options.tau
        if self.options.mask_padding:
            logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
        pooled = ((logits.softmax(-1) * mask) @ frames).unflatten(-1, (self.options.centers, -1))  # (b, a, C, D/C)
        weight = self.hidden.weight[:, pooled.shape[-1] :].float()
        hidden = (text["hidden"] + pooled @ weight.T).relu()
        weights = (hidden @ self.weight.weight.float().T).squeeze(-1) + self.weight.bias.float()
        chunks = F.normalize(sentence.unflatten(-1, (self.options.centers, -1)), dim=-1)
        cosines = (chunks * F.normalize(pooled, dim=-1)).sum(-1)
        similarity: Tensor = (weights * cosines).sum(-1).T
        return similarity
