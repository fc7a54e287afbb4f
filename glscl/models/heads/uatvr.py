"""UATVR: words and frames, each with learned tokens after a transformer, meet their best; distributions train it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.models.frame_context import FrameContext
from glscl.models.heads.base import Draws, Features, Head, register_head
from glscl.models.heads.scoring import wide
from glscl.models.scores.maxima import maximum_scores
from glscl.options import MAX_LAYERS, MAX_SIZE, Options

if TYPE_CHECKING:
    from open_clip.transformer import TextTransformer


class UATVROptions(Options):
    """Head of UATVR (arXiv 2301.06309): uncertainty-adaptive retrieval. Brings its own frame context."""

    layers: int = Field(4, ge=1, le=MAX_LAYERS)
    """Layers of the one transformer over the words and over the frames."""
    attention_heads: int | None = Field(None, ge=1, le=MAX_SIZE)
    """Attention heads; one per 64 of the feature width where not given."""
    positions: int = Field(77, ge=1, le=MAX_SIZE)
    """Rows of both position tables, the most words and frames, extra tokens included, that the head can take."""
    extra_text_tokens: int = Field(2, ge=0, le=MAX_SIZE)
    """Learned tokens behind the words."""
    extra_video_tokens: int = Field(2, ge=0, le=MAX_SIZE)
    """Learned tokens behind the frames."""
    text_samples: int = Field(7, ge=1, le=MAX_SIZE)
    """Samples of a text's distribution in training."""
    video_samples: int = Field(7, ge=1, le=MAX_SIZE)
    """Samples of a video's distribution in training."""
    mask_padding: bool = True
    """Padding is nobody's best match and in no mean; false lets it, as the authors' code does."""


class _AttentionPool(nn.Module):
    """``Σ_i softmax_i(w_2 · tanh(W_1 x_i)) x_i`` over a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, width // 2, bias=False)
        self.w_2 = nn.Linear(width // 2, 1, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        logits = self.w_2(torch.tanh(self.w_1(tokens))).squeeze(-1).float()
        weights = logits.masked_fill(~mask, torch.finfo(torch.float32).min).softmax(-1).to(tokens.dtype)
        return torch.einsum("nl,nld->nd", weights, tokens)


class _Mean(nn.Module):
    """``μ = unit(LN(pooled + sigmoid(W p)))`` with p the attention-pooled tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.fc, self.layer_norm = _AttentionPool(width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, pooled: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        residual = torch.sigmoid(self.fc(self.attention(tokens, mask)))
        return F.normalize(wide(self.layer_norm(pooled + residual)), dim=-1)


class _LogSigma(nn.Module):
    """``log σ = W p + W_2 pooled`` with p the attention-pooled tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.fc, self.fc2 = _AttentionPool(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, pooled: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        return wide(self.fc(self.attention(tokens, mask)) + self.fc2(pooled))


@register_head("uatvr")
class UATVR(Head):
    """``s_ab = ½ [Σ_w α_aw max_f ŵ_aw · f̂_bf + Σ_f β_bf max_w ŵ_aw · f̂_bf]`` (bofang98/UATVR, ``modules/modeling.py``).

    WTI's score of unit outputs of one transformer, which reads words and, separately, frames, each with positions of
    their own and a few tokens more, whose input is their position, behind the padding, alone. α and β are softmaxes of
    what two networks make of the unit outputs.

    In training every text and video also has a normal distribution, of whose samples ``μ + ε e^{log σ}`` the terms
    ``mil_nce`` and ``sample_divergence`` are made; the score does not use it. ε belongs to the pair, whichever rank has
    it. The authors' code reads a mask that it has itself changed where there is no extra text token: the first word is
    then hidden from the score; that is so here with ``mask_padding: false``.
    """

    Options = UATVROptions
    provides = ("samples", "log_sigma")

    def __init__(self, width: int, options: UATVROptions) -> None:
        super().__init__(width, options)
        self.options = options
        heads = options.attention_heads or max(1, width // 64)
        self.check_divides("attention_heads", heads)
        self.context = FrameContext(width, options.layers, heads, options.positions)
        self.word_position_embeddings = nn.Embedding(options.positions, width)
        self.pie_net_text, self.pie_net_video = (_Mean(width) for _ in range(2))
        self.uncertain_net_text, self.uncertain_net_video = (_LogSigma(width) for _ in range(2))
        self.text_weight_fc, self.video_weight_fc = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)) for _ in range(2)
        )
        context = set(self.context.modules())
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module not in context:
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def initialise_from(self, text: TextTransformer) -> None:
        """Frame positions and layers start as the text tower's first, as far as their shapes agree."""
        self.context.initialise_from(text)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Unit tokens (A, W + E, D), their mask and weights (A, W + E); in training μ and log σ (A, D), too.

        Raises:
            UserError: more words than positions.
        """
        options, mask = self.options, token_mask.bool()
        unit, seen = self._contextual(tokens, mask, self.word_position_embeddings, options.extra_text_tokens, "words")
        if not options.mask_padding and not options.extra_text_tokens:
            seen = seen.index_fill(1, torch.zeros(1, dtype=torch.int64, device=seen.device), False)
        features = self._weigh(self.text_weight_fc, unit, seen)
        if self.training:
            pooled = mask.index_fill(1, torch.zeros(1, dtype=torch.int64, device=mask.device), False)
            features |= self._distribution(self.pie_net_text, self.uncertain_net_text, unit, pooled, mask)
        return features

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Unit tokens (B, F + E, D), their mask and weights (B, F + E); in training μ and log σ (B, D), too.

        Raises:
            UserError: more frames than positions.
        """
        extra, mask = self.options.extra_video_tokens, frame_mask.bool()
        unit, seen = self._contextual(frames, mask, self.context.position_embeddings, extra, "frames")
        features = self._weigh(self.video_weight_fc, unit, seen)
        if self.training:
            features |= self._distribution(self.pie_net_video, self.uncertain_net_video, unit, mask, mask)
        return features

    def match(
        self, text: Features, video: Features, all_text: Features, draws: Draws, wanted: Collection[str]
    ) -> tuple[Features, Features]:
        """Samples of the texts and of the videos (b, S, D)."""
        if "samples" not in wanted:
            return {}, {}
        samples = []
        for side, count in ((text, self.options.text_samples), (video, self.options.video_samples)):
            noise = draws.normal(count, self.width).to(side["log_sigma"].dtype)
            samples.append({"samples": side["mu"].unsqueeze(1) + noise * side["log_sigma"].exp().unsqueeze(1)})
        return samples[0], samples[1]

    def forward(self, text: Features, video: Features) -> Tensor:
        """Weighted means of best cosines (A, B)."""
        with torch.autocast(text["mask"].device.type, enabled=False):
            return maximum_scores(
                text["tokens"],
                video["tokens"],
                (text["mask"], video["mask"]),
                (text["weights"], video["weights"]),
                hidden=-1.0 if self.options.mask_padding else 0.0,
            )

    def multiply_adds(self, words: int, frames: int) -> int:
        """``(W + E_t)(F + E_v) D``: every word or text token with every frame or video token."""
        return (words + self.options.extra_text_tokens) * (frames + self.options.extra_video_tokens) * self.width

    def _contextual(
        self, features: Tensor, mask: Tensor, table: nn.Embedding, extra: int, what: str
    ) -> tuple[Tensor, Tensor]:
        """Unit outputs of the transformer (N, L + E, D) and their mask."""
        length = features.shape[1]
        if length + extra > self.options.positions:
            raise UserError(
                f"model.heads.uatvr.positions: {length} {what} and {extra} extra tokens, but the position tables have "
                f"{self.options.positions} rows; raise it before training, or lower model.max_{what}"
            )
        rows = table(torch.arange(length + extra, device=features.device))
        outputs, seen = self.context.attend_with(features, mask, rows[:length], rows[length:])
        return F.normalize(wide(outputs), dim=-1), seen

    def _weigh(self, network: nn.Module, unit: Tensor, seen: Tensor) -> Features:
        """What is cached of unit tokens (N, L, D): they, their mask (N, L) and weights that sum to 1 over the seen."""
        logits = network(unit.to(self.context.position_embeddings.weight.dtype)).squeeze(-1)
        weights = wide(logits).masked_fill(~seen, torch.finfo(torch.float32).min).softmax(-1)
        return {"tokens": unit, "mask": seen, "weights": weights}

    def _distribution(
        self, mean: nn.Module, log_sigma: nn.Module, unit: Tensor, pooled_mask: Tensor, mask: Tensor
    ) -> Features:
        """μ and log σ (N, D) of unit tokens, of which those of the mask (N, L) are no extra ones."""
        tokens = unit[:, : mask.shape[1]]
        share = pooled_mask.to(unit.dtype)
        pooled = (tokens * share.unsqueeze(-1)).sum(1) / share.sum(1, keepdim=True).clamp_min(1)
        pooled = F.normalize(pooled, dim=-1)
        attended = mask if self.options.mask_padding else torch.ones_like(mask)
        dtype = self.context.position_embeddings.weight.dtype
        given = pooled.to(dtype), tokens.to(dtype), attended
        return {"mu": mean(*given), "log_sigma": log_sigma(*given)}
