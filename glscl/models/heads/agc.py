"""AGC: the frames of a video are pressed into a few vectors by attention, and every word meets its best of these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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


class AGCOptions(Options):
    """Head of AGC (arXiv 2602.21202): attention-guided clustering. Train it from `model.logit_scale` 1."""

    vectors: int = Field(5, ge=1, le=MAX_SIZE)
    """Vectors that a video is pressed into; all its frames where they are no more."""
    queries: int = Field(4, ge=1, le=MAX_SIZE)
    """Learned tokens behind the frames, whose attention says how salient a frame is."""
    layers: int = Field(4, ge=1, le=MAX_LAYERS)
    """Layers of the temporal transformer."""
    attention_heads: int | None = Field(None, ge=1, le=MAX_SIZE)
    """Attention heads; one per 64 of the feature width where not given."""
    positions: int = Field(77, ge=1, le=MAX_SIZE)
    """Rows of the frame position table, the most frames that the head can take."""
    pooling: Literal["cluster", "select_only"] = "cluster"
    """cluster: the mean of the frames that a salient one is nearest to; select_only: the salient frames themselves."""
    weights: Literal["saliency", "none"] = "saliency"
    """Weights of that mean: the frames' saliency, or `centroid_weight` for the salient frame and 1 for the others."""
    centroid_weight: float = Field(1.0, gt=0)
    """See `weights`."""
    mask_padding: bool = True
    """Leave padded words out of the sum; false sums over all. Padded frames are in no vector."""


@register_head("agc")
class AGC(Head):
    """``s_ab = Σ_w max_v ŵ_aw · ĉ_bv`` over the real words w and m vectors c of the video (hanxiangqin/omni-col-press).

    n learned tokens read the frames in a transformer. The m frames that its last layer lets them attend to most are
    centroids; every frame belongs to the one of largest cosine; a vector is the weighted mean of its frames' outputs.
    Choosing has no gradient; the features have, and through the weights the attention.

    As in the authors' code the saliency is a softmax of what was one already, and so nearly even, and the similarity is
    a sum that is not divided by the number of words, made for a scale of 1. Theirs presses the tokens of a large
    vision-language model. Ours are the transformer over CLIP's frames (CLIP4Clip's ``seqTransf``, with its residual and
    its start from the text tower), the number of learned tokens, and that frames nearest to a padded centroid, which
    theirs lose, go to a real one.
    """

    Options = AGCOptions

    def __init__(self, width: int, options: AGCOptions) -> None:
        super().__init__(width, options)
        self.options = options
        heads = options.attention_heads or max(1, width // 64)
        self.check_divides("attention_heads", heads)
        self.context = FrameContext(width, options.layers, heads, options.positions)
        self.queries = nn.Parameter(0.02 * torch.randn(options.queries, width))

    def initialise_from(self, text: TextTransformer) -> None:
        """Positions and layers start as the text tower's first, as far as their shapes agree."""
        self.context.initialise_from(text)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Unit tokens (A, W, D) and their mask (A, W)."""
        mask = token_mask.bool() | (not self.options.mask_padding)
        return {"tokens": F.normalize(wide(tokens), dim=-1), "mask": mask}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Unit vectors (B, m, D) and their mask (B, m).

        Raises:
            UserError: more frames than positions.
        """
        positions = self.context.positions_of(frames, "model.heads.agc.positions")
        outputs, attention = self.context.attend_and_tell(frames, frame_mask, positions, self.queries)
        with torch.autocast(frames.device.type, enabled=False):
            features = wide(outputs)
            attention = attention[..., : len(positions)].to(features.dtype)
            return self.compress(features, attention, frame_mask.bool())

    def forward(self, text: Features, video: Features) -> Tensor:
        """Sums of best cosines (A, B)."""
        with torch.autocast(text["mask"].device.type, enabled=False):
            counted = text["mask"].to(text["tokens"].dtype)
            masks = text["mask"], video["mask"]
            return maximum_scores(text["tokens"], video["vectors"], masks, (counted, None), hidden=-1.0)

    def multiply_adds(self, words: int, frames: int) -> int:
        """``W m D``: every word with every vector."""
        return words * min(self.options.vectors, frames) * self.width

    def compress(self, features: Tensor, attention: Tensor, mask: Tensor) -> Features:
        """Unit vectors (B, m, D) and their mask of features (B, L, D), their mask (B, L), and an attention to them.

        The attention (B, heads, n, L) is of n learned tokens.
        """
        logits = attention.mean(1).masked_fill(~mask.unsqueeze(1), torch.finfo(features.dtype).min)
        saliency = logits.softmax(-1).mean(1)  # (B, L)
        vectors = min(self.options.vectors, features.shape[1])
        chosen = saliency.masked_fill(~mask, -1.0).topk(vectors, dim=-1).indices
        real = mask.gather(1, chosen)
        unit = F.normalize(features, dim=-1)
        if self.options.pooling == "select_only":
            return {"vectors": _take(unit, chosen), "mask": real}
        with torch.no_grad():
            cosines = unit @ _take(unit, chosen).transpose(1, 2)
            nearest = cosines.masked_fill(~real.unsqueeze(1), -2.0).argmax(-1)  # (B, L)
            members = F.one_hot(nearest, vectors).to(features.dtype) * mask.unsqueeze(-1)
        if self.options.weights == "saliency":
            members = members * saliency.unsqueeze(-1)
        else:
            centroids = F.one_hot(chosen, features.shape[1]).transpose(1, 2).to(features.dtype)
            members = members * (1 + (self.options.centroid_weight - 1) * centroids)
        return {"vectors": F.normalize(members.transpose(1, 2) @ features, dim=-1), "mask": real}


def _take(features: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, m) of features (B, L, D)."""
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
