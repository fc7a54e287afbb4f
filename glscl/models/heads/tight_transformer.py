"""A transformer over the sentence and the frames of every pair: CLIP4Clip's ``tightTransf``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.models.frame_context import FrameContext
from glscl.models.heads.base import Features, Head, register_head
from glscl.models.heads.scoring import score_by_tiles
from glscl.options import MAX_LAYERS, MAX_SIZE, Options

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer


class TightTransformerOptions(Options):
    """Head of CLIP4Clip with tight transformer: one transformer pass per pair of text and video."""

    layers: int = Field(4, ge=1, le=MAX_LAYERS)
    """Layers of the transformer over sentence and frames."""
    attention_heads: int | None = Field(None, ge=1, le=MAX_SIZE)
    """Attention heads; one per 64 of the feature width where not given."""
    positions: int = Field(77, ge=2, le=MAX_SIZE)
    """Rows of the position table: the sentence's and the most frames that the head can take."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of the transformer's input while training."""


@register_head("tight_transformer")
class TightTransformer(Head):
    """``s_ab = linear(QuickGELU(dense(LN(Transformer([t_a; v_b] + p)_0))))`` (ArrowLuo/CLIP4Clip, ``tightTransf``).

    The output is not a cosine. The authors train it without a logit scale; here it has one, like every head. Dropout
    falls on a text's and a video's input once, not anew for every pair.
    """

    Options = TightTransformerOptions

    def __init__(self, width: int, options: TightTransformerOptions) -> None:
        from open_clip.transformer import QuickGELU

        super().__init__(width, options)
        self.options = options
        heads = options.attention_heads or max(1, width // 64)
        self.check_divides("attention_heads", heads)
        self.context = FrameContext(width, options.layers, heads, options.positions)
        self.dropout = nn.Dropout(options.dropout)
        self.ln_pool = nn.LayerNorm(width, eps=1e-12)
        self.dense = nn.Linear(width, width)
        self.activation = QuickGELU()
        self.similarity = nn.Linear(width, 1)
        for linear in (self.dense, self.similarity):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def initialise_from(self, text: TextTransformer) -> None:
        """Positions and layers start as the text tower's first, as far as their shapes agree."""
        self.context.initialise_from(text)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Sentence features (A, D) at the first position."""
        return {"sentence": self.dropout(sentence + self._positions(0, 1, sentence.device))}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Frame features (B, F, D) at the positions after it, and their mask.

        Raises:
            UserError: more frames than positions.
        """
        length = frames.shape[1]
        if length >= self.options.positions:
            raise UserError(
                f"model.heads.tight_transformer.positions: {length} frames and the sentence, but the position table "
                f"has {self.options.positions} rows; raise it before training, or lower model.max_frames"
            )
        placed = frames + self._positions(1, 1 + length, frames.device)
        return {"frames": self.dropout(placed), "frame_mask": frame_mask.bool()}

    def forward(self, text: Features, video: Features) -> Tensor:
        """Outputs of the last linear layer (A, B)."""
        return score_by_tiles(self._score, text, video, 4 * (1 + video["frames"].shape[1]) * self.width)

    def multiply_adds(self, words: int, frames: int) -> int:
        """``layers · (12 L D² + 2 L² D) + D² + D`` with ``L = 1 + F``: nothing of it can be cached."""
        length, width = 1 + frames, self.width
        return self.options.layers * (12 * length * width**2 + 2 * length**2 * width) + width**2 + width

    def _score(self, text: Features, video: Features) -> Tensor:
        texts, (videos, length, width) = len(text["sentence"]), video["frames"].shape
        sentence = text["sentence"][:, None, None].expand(texts, videos, 1, width)
        x = torch.cat([sentence, video["frames"].expand(texts, videos, length, width)], 2).flatten(0, 1)
        seen = torch.cat([video["frame_mask"].new_ones(videos, 1), video["frame_mask"]], 1)
        x = self.context.attend(x, seen.expand(texts, videos, 1 + length).flatten(0, 1))
        pooled = self.activation(self.dense(self.ln_pool(x[:, 0])))
        scores: Tensor = self.similarity(pooled)
        return scores.float().view(texts, videos)

    def _positions(self, start: int, end: int, device: torch.device) -> Tensor:
        """Rows of the position table: (end - start, D)."""
        rows: Tensor = self.context.position_embeddings(torch.arange(start, end, device=device))
        return rows
