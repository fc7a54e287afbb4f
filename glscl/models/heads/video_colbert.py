"""Video-ColBERT: every word meets its best frame, and its best token of the video after a temporal transformer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glscl.models.frame_context import FrameContext
from glscl.models.heads.base import Features, Head, register_head
from glscl.models.heads.scoring import wide
from glscl.models.scores.maxima import maximum_scores
from glscl.options import MAX_LAYERS, MAX_SIZE, Options

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer


class VideoColBERTOptions(Options):
    """Head of Video-ColBERT (arXiv 2503.19009): mean of best matches at two levels. Brings its own frame context."""

    layers: int = Field(4, ge=1, le=MAX_LAYERS)
    """Layers of the temporal transformer."""
    attention_heads: int | None = Field(None, ge=1, le=MAX_SIZE)
    """Attention heads; one per 64 of the feature width where not given."""
    positions: int = Field(77, ge=1, le=MAX_SIZE)
    """Rows of the frame position table, the most frames that the head can take."""
    expansion_tokens: int = Field(2, ge=1, le=MAX_SIZE)
    """Learned tokens of the video behind its frames (E)."""
    logit_scale: float = Field(10.0, gt=0)
    """Factor of each level's similarity in its sigmoid loss that training starts from (t); SigLIP's."""
    logit_bias: float = -10.0
    """Number added to it that training starts from (b); SigLIP's, so that nearly all pairs, which do not match, begin
    as such."""
    mask_padding: bool = True
    """Leave padded words out of the mean; false has all of them expand the query, as the paper does. Padded frames are
    nobody's best match."""


@register_head("video_colbert")
class VideoColBERT(Head):
    """``s_ab = MMS(w_a, f_b) + MMS(w_a, u_b)`` with ``MMS(q, d) = (1/W) Σ_w max_i q̂_w · d̂_i`` (arXiv 2503.19009).

    f are the frames as they come, u the outputs of a temporal transformer over them and E expansion tokens; from text
    to video only. Trained by a sigmoid loss of each level with its own scale and bias, the term ``level_sigmoid``,
    which stands in place of the contrastive loss.

    There is no official code: the equations are of digests of the paper. Ours are the residual around the transformer
    (CLIP4Clip's ``seqTransf``), its start from the text tower and the expansion tokens' at N(0, 0.02²), the scale and
    bias to start from (SigLIP's paper), and the default that padded words, whose features no training of CLIP has seen,
    are left out, so that a score does not depend on how many a caption has.
    """

    Options = VideoColBERTOptions
    detail = "level_logits"
    provides = ("level_logits",)

    def __init__(self, width: int, options: VideoColBERTOptions) -> None:
        super().__init__(width, options)
        self.options = options
        heads = options.attention_heads or max(1, width // 64)
        self.check_divides("attention_heads", heads)
        self.context = FrameContext(width, options.layers, heads, options.positions)
        self.expansion = nn.Parameter(0.02 * torch.randn(options.expansion_tokens, width))
        self.level_log_scale = nn.Parameter(torch.full((2,), math.log(options.logit_scale)))
        self.level_bias = nn.Parameter(torch.full((2,), options.logit_bias))

    def initialise_from(self, text: TextTransformer) -> None:
        """Positions and layers start as the text tower's first, as far as their shapes agree."""
        self.context.initialise_from(text)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Unit tokens (A, W, D), which of them count, and their share of the mean (A, W)."""
        mask = token_mask.bool() | (not self.options.mask_padding)
        share = mask.float() / mask.sum(-1, keepdim=True).clamp_min(1)
        return {"tokens": F.normalize(wide(tokens), dim=-1), "mask": mask, "share": share}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Unit frames (B, F, D) and their mask, and unit video tokens (B, F + E, D) and theirs.

        Raises:
            UserError: more frames than positions.
        """
        positions = self.context.positions_of(frames, "model.heads.video_colbert.positions")
        tokens, seen = self.context.attend_with(frames, frame_mask, positions, self.expansion)
        return {
            "frames": F.normalize(wide(frames), dim=-1),
            "frame_mask": frame_mask.bool(),
            "tokens": F.normalize(wide(tokens), dim=-1),
            "token_mask": seen,
        }

    def forward(self, text: Features, video: Features, detail: bool = False) -> Tensor:
        """Sums of both levels (A, B); with ``detail`` (A, B, 3), each level's logits behind them."""
        with torch.autocast(text["mask"].device.type, enabled=False):
            levels = [
                maximum_scores(
                    text["tokens"], video[name], (text["mask"], video[mask]), (text["share"], None), hidden=-1.0
                )
                for name, mask in (("frames", "frame_mask"), ("tokens", "token_mask"))
            ]
            similarity = levels[0] + levels[1]
            if not detail:
                return similarity
            scale, bias = wide(self.level_log_scale).exp(), wide(self.level_bias)
            return torch.cat([similarity.unsqueeze(-1), scale * torch.stack(levels, -1) + bias], -1)

    def multiply_adds(self, words: int, frames: int) -> int:
        """``W (2F + E) D``: every word with every frame and every video token."""
        return words * (2 * frames + self.options.expansion_tokens) * self.width
