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

_LEAST_SQUARED_NORM = 1e-20


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

    Where nothing is dropped, both maps after the attention are linear but for two numbers per pair, the deviations of
    LN2 and LN3: with ``w`` the attention, ``z`` is a sum of mapped frames, weighted by ``w``, and of two vectors.
    Mapped frames and their Gram matrices are cached, and neither the maps nor the texts × videos × D tensor remain.
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
        """Unit sentence features (A, D), attention queries (A, heads, D / heads), and dots with two vectors (A, 2)."""
        query = self.q_proj(self.layer_norm1(sentence)).unflatten(-1, (self.options.attention_heads, -1))
        unit = F.normalize(sentence.float(), dim=-1)
        with torch.autocast(sentence.device.type, enabled=False):
            constants = torch.stack([self._shift() * self.layer_norm3.weight.float(), self.layer_norm3.bias.float()])
            return {"sentence": unit, "query": query, "constants": unit @ constants.T}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Attention keys (B, heads, F, D / heads), the mask (B, F), and what is attended to.

        That are values of the keys' shape where `_folds` says no, else mapped values (B, heads F, D), times LN3's
        weights, and three Gram matrices of heads F and none, one and two more vectors.
        """
        normed = self.layer_norm1(frames)
        key, value = (
            linear(normed).unflatten(-1, (self.options.attention_heads, -1)).transpose(1, 2)
            for linear in (self.k_proj, self.v_proj)
        )
        mask = frame_mask.bool() if self.options.mask_padding else torch.ones_like(frame_mask, dtype=torch.bool)
        features = {"key": key, "frame_mask": mask}
        if not self._folds(frames.shape[1]):
            return features | {"value": value}
        with torch.autocast(frames.device.type, enabled=False):
            return features | self._folded(value.float())

    def forward(self, text: Features, video: Features) -> Tensor:
        """Cosines (A, B)."""
        if "value" in video:
            return score_by_tiles(self._score, text, video, self.width)
        return score_by_tiles(self._score_folded, text, video, video["mapped"].shape[1] + 2, 16.0)

    def multiply_adds(self, words: int, frames: int) -> int:
        """``2FD`` for the attention, ``2D²`` for the two maps after it, ``D`` for the cosine."""
        return 2 * self.width**2 + 2 * frames * self.width + self.width

    def implemented_multiply_adds(self, words: int, frames: int) -> int:
        """``FD`` for the attention, ``nD`` for dots with ``n`` = heads × F mapped values, three quadratic forms.

        That is where nothing is dropped.
        """
        if not self._folding_is_less(frames):
            return self.multiply_adds(words, frames)
        values = self.options.attention_heads * frames
        return (frames + values) * self.width + values**2 + (values + 1) ** 2 + (values + 2) ** 2

    def _folds(self, frames: int) -> bool:
        """Whether mapped values and Gram matrices are cached instead of values."""
        return self._folding_is_less(frames) and not (self.training and self.options.dropout)

    def _folding_is_less(self, frames: int) -> bool:
        """Whether dots with mapped values, and three quadratic forms, are less work than two maps."""
        values = self.options.attention_heads * frames
        return 3 * values**2 + values * self.width < 2 * self.width**2 + frames * self.width

    def _shift(self) -> Tensor:
        """What LN2's bias adds to the input of LN3, centred: (D,)."""
        bias = self.layer_norm2.bias.float()
        shift = bias + F.linear(bias, self.linear_proj.weight.float(), self.linear_proj.bias.float())
        return shift - shift.mean()

    def _folded(self, value: Tensor) -> Features:
        """Mapped values and Gram matrices of values (B, heads, F, D / heads)."""
        heads, norm = self.options.attention_heads, self.layer_norm3
        out = self.out_proj.weight.float().unflatten(1, (heads, -1))  # (D, heads, D / heads)
        attended = torch.einsum("bhfd,ohd->bhfo", value, out).flatten(1, 2)
        attended = attended + self.out_proj.bias.float() / heads  # each head's weights sum to 1
        attended = attended - attended.mean(-1, keepdim=True)
        scaled = attended * self.layer_norm2.weight.float()
        mapped = scaled + scaled @ self.linear_proj.weight.float().T
        centred = mapped - mapped.mean(-1, keepdim=True)
        shift = self._shift().expand(len(value), 1, -1)
        with_shift = torch.cat([centred, shift], 1)
        bias = norm.bias.float().expand(len(value), 1, -1)
        with_bias = torch.cat([with_shift * norm.weight.float(), bias], 1)
        return {
            "mapped": with_bias[:, :-2].contiguous(),
            "gram": attended @ attended.transpose(1, 2),
            "gram_shift": with_shift @ with_shift.transpose(1, 2),
            "gram_bias": with_bias @ with_bias.transpose(1, 2),
        }

    def _attention(self, text: Features, video: Features) -> Tensor:
        """Weights (heads, b, F, a) of the frames."""
        query, key = text["query"].float(), video["key"].float()
        keys = key.transpose(0, 1).flatten(1, 2)  # (heads, b F, D / heads)
        logits = torch.bmm(keys, query.permute(1, 2, 0)).unflatten(1, key.shape[::2]) / math.sqrt(query.shape[-1])
        hidden = ~video["frame_mask"].unsqueeze(-1)
        weights: Tensor = logits.masked_fill(hidden, torch.finfo(torch.float32).min).softmax(2)
        return weights

    def _score_folded(self, text: Features, video: Features) -> Tensor:
        """Cosines (a, b), by the coefficients of mapped values and two vectors in ``z``, times both deviations."""
        weights = self._attention(text, video).transpose(0, 1).flatten(1, 2)  # (b, n, a)
        sentence, (first, second) = text["sentence"], text["constants"].T
        dots = (video["mapped"].flatten(0, 1) @ sentence.T).view(weights.shape)
        variance = _quadratic_form(video["gram"], weights) / self.width + self.layer_norm2.eps
        deviation = variance.sqrt()
        coefficients = torch.cat([weights, deviation], 1)
        variance = _quadratic_form(video["gram_shift"], coefficients) / self.width + self.layer_norm3.eps * variance
        both = variance.sqrt()
        squared = _quadratic_form(video["gram_bias"], torch.cat([coefficients, both], 1))
        dot = (dots * weights).sum(1, keepdim=True) + deviation * first + both * second
        cosines: Tensor = dot * squared.clamp_min(_LEAST_SQUARED_NORM).rsqrt()
        return cosines.squeeze(1).T

    def _score(self, text: Features, video: Features) -> Tensor:
        weights, value = self._attention(text, video), video["value"].float()
        pooled = torch.einsum("hbfa,bhfd->bahd", weights, value).flatten(2)
        attended = self.layer_norm2(self.out_proj(pooled.to(video["value"].dtype)))
        pooled = self.layer_norm3(attended + self.dropout(self.linear_proj(attended)))
        cosines: Tensor = torch.einsum("ad,bad->ab", text["sentence"], F.normalize(pooled.float(), dim=-1))
        return cosines


def _quadratic_form(gram: Tensor, coefficients: Tensor) -> Tensor:
    """``cᵀ G c`` (b, 1, a) of Gram matrices (b, n, n) and coefficients (b, n, a)."""
    return (torch.bmm(gram, coefficients) * coefficients).sum(1, keepdim=True)
