"""Temporal transformer, then mean pooling: CLIP4Clip's ``seqTransf`` as a head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from glscl.models.frame_context import FrameContext
from glscl.models.heads.base import Features, Head, register_head
from glscl.models.heads.mean_pool import mean_of_frames
from glscl.options import MAX_LAYERS, MAX_SIZE, Options

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer


class SeqTransformerOptions(Options):
    """Head of CLIP4Clip with sequential transformer: frames see each other before they are averaged."""

    layers: int = Field(4, ge=1, le=MAX_LAYERS)
    """Layers of the transformer over the frames."""
    attention_heads: int | None = Field(None, ge=1, le=MAX_SIZE)
    """Attention heads; one per 64 of the feature width where not given."""
    positions: int = Field(77, ge=1, le=MAX_SIZE)
    """Rows of the frame position table, the most frames that the head can take."""


@register_head("seq_transformer")
class SeqTransformer(Head):
    """Mean pooling of contextual frame features (ArrowLuo/CLIP4Clip, ``sim_header seqTransf``).

    The same model as ``mean_pool`` with ``frame_context: transformer``; as a head it can be compared with the others
    under one frame context.
    """

    Options = SeqTransformerOptions

    def __init__(self, width: int, options: SeqTransformerOptions) -> None:
        super().__init__(width, options)
        heads = options.attention_heads or max(1, width // 64)
        self.check_divides("attention_heads", heads)
        self.context = FrameContext(width, options.layers, heads, options.positions)

    def initialise_from(self, text: TextTransformer) -> None:
        """Positions and layers start as the text tower's first, as far as their shapes agree."""
        self.context.initialise_from(text)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Unit sentence features (A, D)."""
        return {"sentence": F.normalize(sentence.float(), dim=-1)}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Unit mean of the unit contextual frame features (B, D).

        Raises:
            UserError: more frames than positions.
        """
        contextual = self.context(frames, frame_mask, "model.heads.seq_transformer.positions")
        return {"pooled": mean_of_frames(contextual, frame_mask)}

    def forward(self, text: Features, video: Features) -> Tensor:
        """Cosines (A, B)."""
        with torch.autocast(text["sentence"].device.type, enabled=False):
            return text["sentence"] @ video["pooled"].T

    def multiply_adds(self, words: int, frames: int) -> int:
        """One dot product: D."""
        return self.width
