"""X-Pool: one attention of the sentence over the frames pools the video for it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.models.heads.base import Features, Head, register_head
from glscl.models.heads.scoring import score_by_tiles
from glscl.options import MAX_SIZE, Options


class XPoolOptions(Options):
    """Head of X-Pool (arXiv 2203.15086): learned attention of each text over the frames of each video."""

    attention_heads: int = Field(1, ge=1, le=MAX_SIZE)
    """Attention heads; must divide the feature width."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout of the residual linear layer while training."""
    mask_padding: bool = True
    """Hide padded frames; false attends to them, as the authors' code does."""


@register_head("xpool")
class XPool(Head):
    """``s_ab = cos(t_a, z_ab)`` (layer6ai-labs/xpool, ``modules/transformer.py``).

    ``o_ab = LN2(W_o Σ_f softmax_f(q_a · k_bf / √d) v_bf)`` with ``q = W_q LN1(t)``, ``k, v = W_k, W_v LN1(frames)``,
    and ``z = LN3(o + dropout(W o))``. All maps start as the identity.
    """

    Options = XPoolOptions

    def __init__(self, width: int, options: XPoolOptions) -> None:
        super().__init__(width, options)
        if width % options.attention_heads:
            raise UserError(
                f"model.heads.xpool.attention_heads: {options.attention_heads} does not divide the feature width "
                f"{width} of the clip towers"
            )
        self.options = options
        self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.linear_proj = (
            nn.Linear(width, width) for _ in range(5)
        )
        self.layer_norm1, self.layer_norm2, self.layer_norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(options.dropout)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.linear_proj):
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Unit sentence features (A, D) and attention queries (A, heads, D / heads)."""
        query = self.q_proj(self.layer_norm1(sentence)).unflatten(-1, (self.options.attention_heads, -1))
        return {"sentence": F.normalize(sentence.float(), dim=-1), "query": query}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Attention keys and values (B, heads, F, D / heads), and the mask (B, F)."""
        normed = self.layer_norm1(frames)
        key, value = (
            linear(normed).unflatten(-1, (self.options.attention_heads, -1)).transpose(1, 2)
            for linear in (self.k_proj, self.v_proj)
        )
        mask = frame_mask.bool() if self.options.mask_padding else torch.ones_like(frame_mask, dtype=torch.bool)
        return {"key": key, "value": value, "frame_mask": mask}

    def forward(self, text: Features, video: Features) -> Tensor:
        """Cosines (A, B)."""
        return score_by_tiles(self._score, text, video, self.width)

    def multiply_adds(self, words: int, frames: int) -> int:
        """``2FD`` for the attention, ``2D²`` for the two maps after it, ``D`` for the cosine."""
        return 2 * self.width**2 + 2 * frames * self.width + self.width

    def _score(self, text: Features, video: Features) -> Tensor:
        query, key, value = text["query"].float(), video["key"].float(), video["value"].float()
        logits = torch.einsum("ahd,bhfd->bhaf", query, key) / math.sqrt(query.shape[-1])
        hidden = ~video["frame_mask"][:, None, None, :]
        weights = logits.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1)
        pooled = torch.einsum("bhaf,bhfd->bahd", weights, value).flatten(2)
        attended = self.layer_norm2(self.out_proj(pooled.to(video["value"].dtype)))
        pooled = self.layer_norm3(attended + self.dropout(self.linear_proj(attended)))
        return torch.einsum("ad,bad->ab", text["sentence"], F.normalize(pooled.float(), dim=-1))
