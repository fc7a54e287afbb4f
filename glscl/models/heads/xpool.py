"""X-Pool: one attention of the sentence over the frames pools the video for it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glscl.models.heads.base import Features, Head, register_head
from glscl.models.heads.folding import Tail, quadratic_form
from glscl.models.heads.scoring import score_by_tiles, wide
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

    W_o is applied to the values, once per video. Where nothing is dropped, what follows is folded as well (`Tail`):
    mapped values and their Gram matrices are cached, and neither maps nor the texts × videos × D tensor remain.
    """

    Options = XPoolOptions

    def __init__(self, width: int, options: XPoolOptions) -> None:
        super().__init__(width, options)
        self.check_divides("attention_heads", options.attention_heads)
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
        unit = F.normalize(wide(sentence), dim=-1)
        with torch.autocast(sentence.device.type, enabled=False):
            return {"sentence": unit, "query": self.query(sentence), "constants": unit @ self.tail.constants().T}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Attention keys (B, heads, F, D / heads), the mask (B, F), and what is attended to.

        Those are mapped values (B, n, D) of n = heads × F, times LN3's weights, and three Gram matrices of n and none,
        one and two more vectors; where `folds` says no, values after W_o (B, n, D), or (B, heads, F, D / heads) before.
        """
        features, value = self.keys(frames, frame_mask)
        if self.heads * frames.shape[1] >= frames.shape[1] + self.width:  # W_o per pair is less than so many values
            return features | {"value": value}
        with torch.autocast(frames.device.type, enabled=False):
            attended = self.attended(value)
            if not self.folds(frames.shape[1]):
                return features | {"attended": attended}
            folded = self.tail.fold(attended)
            vectors = torch.cat([folded["mapped"], self.tail.constants().expand(frames.shape[0], -1, -1)], 1)
            return features | folded | {"gram_bias": vectors @ vectors.transpose(1, 2)}

    def forward(self, text: Features, video: Features) -> Tensor:
        """Cosines (A, B)."""
        if "gram_bias" not in video:
            return score_by_tiles(self._score, text, video, self.width)
        return score_by_tiles(self._score_folded, text, video, video["mapped"].shape[1] + 2, 16.0)

    def multiply_adds(self, words: int, frames: int) -> int:
        """``2FD`` for the attention, ``2D²`` for the two maps after it, ``D`` for the cosine."""
        return 2 * self.width**2 + 2 * frames * self.width + self.width

    def implemented_multiply_adds(self, words: int, frames: int) -> int:
        """``FD`` for the attention, ``nD`` for dots with ``n`` = heads × F mapped values, three quadratic forms.

        That is where nothing is dropped. Where one map per pair is less: ``FD + nD + D² + D``, or without ``W_o`` in
        the values ``2FD + 2D² + D``.
        """
        if self._folding_is_less(frames):
            return self._folded_multiply_adds(frames)
        return self._mapped_multiply_adds(frames)

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.options.attention_heads

    @property
    def tail(self) -> Tail:
        """What follows the attention and W_o."""
        return Tail(self.layer_norm2, self.linear_proj, self.layer_norm3)

    def query(self, sentence: Tensor) -> Tensor:
        """Attention queries (A, heads, D / heads) of sentence features (A, D)."""
        query: Tensor = self.q_proj(self.layer_norm1(sentence)).unflatten(-1, (self.heads, -1))
        return query

    def keys(self, frames: Tensor, frame_mask: Tensor) -> tuple[Features, Tensor]:
        """Attention keys and mask as cached, and values (B, heads, F, D / heads)."""
        normed = self.layer_norm1(frames)
        key, value = (
            linear(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.k_proj, self.v_proj)
        )
        mask = frame_mask.bool() if self.options.mask_padding else torch.ones_like(frame_mask, dtype=torch.bool)
        return {"key": key, "frame_mask": mask}, value

    def attended(self, value: Tensor) -> Tensor:
        """Values (B, heads, F, D / heads) after W_o, (B, heads F, D): each head's weights sum to 1."""
        out = wide(self.out_proj.weight).unflatten(1, (self.heads, -1))  # (D, heads, D / heads)
        mapped = torch.einsum("bhfd,ohd->bhfo", wide(value), out).flatten(1, 2)
        return mapped + wide(self.out_proj.bias) / self.heads

    def folds(self, frames: int) -> bool:
        """Whether mapped values and Gram matrices are cached instead of values."""
        return self._folding_is_less(frames) and not (self.training and self.options.dropout)

    def weights(self, text: Features, video: Features) -> Tensor:
        """Attention weights (b, n, a) of n = heads × F values."""
        query, key = wide(text["query"]), wide(video["key"])
        keys = key.transpose(0, 1).flatten(1, 2)  # (heads, b F, D / heads)
        logits = torch.bmm(keys, query.permute(1, 2, 0)).unflatten(1, key.shape[::2]) / math.sqrt(query.shape[-1])
        hidden = ~video["frame_mask"].unsqueeze(-1)
        weights: Tensor = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(2)
        return weights.transpose(0, 1).flatten(1, 2)

    def pooled(self, text: Features, video: Features) -> Tensor:
        """Pooled videos z (b, a, D), with every vector of a pair built."""
        weights = self.weights(text, video)
        if "attended" in video:
            attended = torch.bmm(weights.transpose(1, 2), video["attended"])
        else:
            weights = weights.unflatten(1, (self.heads, -1)).transpose(2, 3)  # (b, heads, a, F)
            mixed = (weights @ wide(video["value"])).transpose(1, 2).flatten(2)
            attended = self.out_proj(mixed.to(self.out_proj.weight.dtype))
        return self.tail.unfolded(attended, self.dropout)

    def pooled_multiply_adds(self, frames: int) -> int:
        """Multiply-adds per pair of z itself, the fewest of those that `encode_video` makes possible."""
        values = self.heads * frames
        if not self._folding_is_less(frames):
            return self._mapped_multiply_adds(frames) - self.width
        return (frames + values + 2) * self.width + values**2 + (values + 1) ** 2

    def _folding_is_less(self, frames: int) -> bool:
        return self._folded_multiply_adds(frames) < self._mapped_multiply_adds(frames)

    def _folded_multiply_adds(self, frames: int) -> int:
        values = self.heads * frames
        return (frames + values) * self.width + values**2 + (values + 1) ** 2 + (values + 2) ** 2

    def _mapped_multiply_adds(self, frames: int) -> int:
        mixed = min(self.heads * frames, frames + self.width)
        return (frames + mixed + self.width + 1) * self.width

    def _score_folded(self, text: Features, video: Features) -> Tensor:
        """Cosines (a, b), by the coefficients of mapped values and two vectors in ``z``, times both deviations."""
        weights = self.weights(text, video)
        coefficients = self.tail.coefficients(weights, video)
        dots = (video["mapped"].flatten(0, 1) @ text["sentence"].T).view(weights.shape)
        squared = quadratic_form(video["gram_bias"], coefficients)
        dot = (dots * weights).sum(1) + (coefficients[:, -2:] * text["constants"].T).sum(1)
        cosines: Tensor = dot * squared.squeeze(1).clamp_min(_LEAST_SQUARED_NORM).rsqrt()
        return cosines.T

    def _score(self, text: Features, video: Features) -> Tensor:
        unit = F.normalize(self.pooled(text, video), dim=-1)
        cosines: Tensor = torch.einsum("ad,bad->ab", text["sentence"], unit)
        return cosines
