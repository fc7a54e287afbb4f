"""TC-MGC: sentence and words pool the video anew by X-Pool's transformer; four scores of what is most alike."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glscl.models.heads.base import Features, LengthTiedHead, register_head
from glscl.models.heads.folding import Tail, quadratic_form
from glscl.models.heads.scoring import score_by_tiles, wide
from glscl.options import MAX_SIZE, Options

_LEAST_SQUARED_NORM = 1e-20
_SCALE = 100.0  # where a caller does not say: CLIP's logit scale


class TCMGCOptions(Options):
    """Head of TC-MGC (arXiv 2504.04707): multi-grained contrast. Tied to words; for `frame_context: transformer`."""

    attention_heads: int = Field(1, ge=1, le=MAX_SIZE)
    """Attention heads of the pooling; must divide the feature width."""
    keep_rate: float = Field(0.1, gt=0, le=1)
    """Share of the words that count in each score, of the largest similarities; rounded down to one at least."""
    softmax_lambda: float = Field(100.0, gt=0)
    """Sharpness of the softmaxes over similarities (λ)."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout of the pooling's residual linear layer while training."""
    mask_padding: bool = True
    """Leave padded words and frames out; false lets them compete, as the authors' code does."""


@register_head("tcmgc")
class TCMGC(LengthTiedHead):
    """Four scores of the sentence s and words w, joined by a softmax over themselves (JingXiaolun/TC-MGC).

    Each query q pools the video for itself: ``z(q) = LN3(o + dropout(W o))`` with
    ``o = LN2(Σ_f softmax_f(LN1 q · LN1 v_f / √d) LN1 v_f)``, X-Pool without its projections. With unit features,
    ``att_M(x) = Σ_i softmax_i(λ softmax(λ x) M) x_i`` and x cut to its largest k = ⌊keep_rate W⌋ numbers, in order, the
    scores are ``(ŝ G) · z(s)``, ``att_w(ŵ_w · z(s))``, ``att_w([ŝ · z(w)_w; the rest's softmax mean])`` and half of two
    two-level attentions over ``(ŵ_t L) · z(w_u)``, cut both ways. Every learned matrix acts on ranks, not on words, and
    starts as the identity. The similarity is ``Σ_i S_i softmax_i(e^l S M)``, of which the logit scale l is a part.

    Nothing per pair has D numbers where nothing is dropped (`Tail`). The authors' release does not run: the 4 × 4
    matrix M is used there and defined nowhere, so that its shape and its start are ours. So is that one word counts at
    least, and what padding may not do.
    """

    Options = TCMGCOptions
    length_tied = ("words",)
    detail = "scores"
    uses_scale = True
    provides = ("scores",)

    def __init__(self, width: int, options: TCMGCOptions, lengths: tuple[int, int]) -> None:
        super().__init__(width, options, lengths)
        self.check_divides("attention_heads", options.attention_heads)
        self.options = options
        self.kept = max(1, int(self.words * options.keep_rate))
        self.global_mat_weight, self.local_mat_weight = (nn.Parameter(torch.eye(width)) for _ in range(2))
        self.attentive_word_logit_weight, self.attentive_word_mat_weight, self.attentive_word_mat_weight2 = (
            nn.Parameter(torch.eye(self.kept)) for _ in range(3)
        )
        self.attentive_frame_word_mat_weight, self.attentive_frame_word_mat_weight2 = (
            nn.Parameter(torch.eye(self.kept)) for _ in range(2)
        )
        self.concat_frame_word_logit_weight = nn.Parameter(torch.eye(self.kept + 1))
        self.logit_weight = nn.Parameter(torch.eye(4))
        self.layer_norm1, self.layer_norm2, self.layer_norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.linear_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(options.dropout)
        nn.init.normal_(self.linear_proj.weight, std=0.02)
        nn.init.zeros_(self.linear_proj.bias)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Of the sentence and the words: attention queries, unit and mapped unit features, each (A, 1 + W, D).

        And the dots of the latter two with two vectors (A, 1 + W, 4), and the words' mask (A, W).

        Raises:
            UserError: another number of tokens than the head was built for.
        """
        self.check_length("words", tokens.shape[1])
        queries = torch.cat([sentence.unsqueeze(1), tokens], 1)
        scaled = wide(self.layer_norm1(queries)) / math.sqrt(self.width / self.options.attention_heads)
        with torch.autocast(tokens.device.type, enabled=False):
            unit = F.normalize(wide(queries), dim=-1)
            mapped = [unit[:, :1] @ wide(self.global_mat_weight), unit[:, 1:] @ wide(self.local_mat_weight)]
            features = {"query": scaled, "unit": unit, "mapped": torch.cat(mapped, 1)}
            constants = self._tail.constants().T
            dots = torch.cat([features["unit"] @ constants, features["mapped"] @ constants], -1)
        return features | {"constants": dots, "token_mask": token_mask.bool() | (not self.options.mask_padding)}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Attention keys (B, heads, F, D / heads), the mask (B, F), and what is attended to.

        That is, of n = heads × F: mapped values (B, n, D) and three Gram matrices; while dropping out the keys alone.
        """
        heads = self.options.attention_heads
        key = wide(self.layer_norm1(frames)).unflatten(-1, (heads, -1)).transpose(1, 2)
        features = {"key": key, "frame_mask": frame_mask.bool() | (not self.options.mask_padding)}
        if self.training and self.options.dropout:
            return features
        with torch.autocast(frames.device.type, enabled=False):
            apart = torch.eye(heads, dtype=key.dtype, device=key.device)  # each head's values in their own place
            values = torch.einsum("bhfd,hg->bhfgd", key, apart).flatten(3).flatten(1, 2)
            folded = self._tail.fold(values)
            vectors = torch.cat([folded["mapped"], self._tail.constants().expand(frames.shape[0], -1, -1)], 1)
            return features | folded | {"gram_bias": vectors @ vectors.transpose(1, 2)}

    def forward(self, text: Features, video: Features, detail: bool = False, scale: Tensor | float = _SCALE) -> Tensor:
        """Similarities (A, B) at a logit scale; with ``detail`` (A, B, 5), the four scores behind them."""
        queries = 1 + self.words
        folds = "mapped" in video
        numbers = max(queries * (video["mapped"].shape[1] + 2), self.words**2) if folds else queries * self.width
        scores = score_by_tiles(self._scores, text, video, numbers)
        with torch.autocast(scores.device.type, enabled=False):
            weights = (scale * scores @ wide(self.logit_weight)).softmax(-1)
            similarity = (scores * weights).sum(-1)
        return torch.cat([similarity.unsqueeze(-1), scores], -1) if detail else similarity

    def multiply_adds(self, words: int, frames: int) -> int:
        """``(1 + W)(2FD + D²)`` for pooling, ``(1 + 2W + W²) D`` for products, and the learned matrices."""
        pooling = (1 + words) * (2 * frames + self.width) * self.width
        return pooling + (1 + words) ** 2 * self.width + self._matrices()

    def implemented_multiply_adds(self, words: int, frames: int) -> int:
        """``(1 + W)(F + 2n) D`` for dots with keys and values, ``1 + W`` times three forms, ``W² (n + 2)`` to mix them.

        And the learned matrices. Where nothing is dropped, of n = heads × F values.
        """
        values = self.options.attention_heads * frames
        forms = values**2 + (values + 1) ** 2 + (values + 2) ** 2
        dots = (frames + 2 * values) * self.width
        return (1 + words) * (dots + forms) + words**2 * (values + 2) + self._matrices()

    @property
    def _tail(self) -> Tail:
        return Tail(self.layer_norm2, self.linear_proj, self.layer_norm3)

    def _matrices(self) -> int:
        """Multiply-adds of the learned matrices over ranks and scores."""
        return 3 * self.kept**2 + (self.kept + 1) ** 2 + 2 * self.kept**3 + 16

    def _scores(self, text: Features, video: Features) -> Tensor:
        """The four scores (a, b, 4)."""
        dots = self._folded_dots if "mapped" in video else self._dots
        sentence_video, with_words, with_sentence, fine = dots(text, video)
        mask = text["token_mask"].unsqueeze(1)  # (a, 1, W)
        real = mask.sum(-1, keepdim=True)
        ranks = torch.arange(self.kept, device=real.device) < real  # (a, 1, k): what has a word at all
        least = torch.finfo(fine.dtype).min
        words = with_words.masked_fill(~mask, least).topk(self.kept).values
        word_video = self._attend(words, ranks, self.attentive_word_logit_weight)
        ordered = with_sentence.masked_fill(~mask, least).sort(descending=True).values
        views, rest = ordered.split([self.kept, self.words - self.kept], -1)
        others = torch.arange(self.kept, self.words, device=real.device) < real
        rest = rest.masked_fill(~others, 0.0)
        fused = (rest.masked_fill(~others, least).softmax(-1) * rest).sum(-1, keepdim=True)
        has_rest = (real > self.kept) | (not self.options.mask_padding)
        sentence_frame = self._attend(
            torch.cat([views, fused], -1), torch.cat([ranks, has_rest], -1), self.concat_frame_word_logit_weight
        )
        fine = fine.masked_fill(~(mask.unsqueeze(-1) & mask.unsqueeze(-2)), least)  # (a, b, word, view)
        fine = fine.topk(self.kept, -2).values.topk(self.kept, -1).values
        fine = fine.masked_fill(~(ranks.unsqueeze(-1) & ranks.unsqueeze(-2)), 0.0)
        by_view = self._attend(fine.mT, ranks.unsqueeze(-2), self.attentive_word_mat_weight)
        by_word = self._attend(fine, ranks.unsqueeze(-2), self.attentive_frame_word_mat_weight)
        word_frame = (
            self._attend(by_view, ranks, self.attentive_frame_word_mat_weight2)
            + self._attend(by_word, ranks, self.attentive_word_mat_weight2)
        ) / 2
        return torch.stack([sentence_video, word_video, sentence_frame, word_frame], -1)

    def _attend(self, scores: Tensor, shown: Tensor, matrix: Tensor) -> Tensor:
        """``Σ_i softmax_i(λ softmax(λ x) M) x_i`` along the last dimension, of what is shown."""
        sharp, least = self.options.softmax_lambda, torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~shown, 0.0)
        first = (sharp * scores).masked_fill(~shown, least).softmax(-1) @ wide(matrix)
        return ((sharp * first).masked_fill(~shown, least).softmax(-1) * scores).sum(-1)

    def _weights(self, text: Features, video: Features) -> Tensor:
        """Attention weights (b, heads, F, N) of all N = a (1 + W) queries."""
        query, key = text["query"].flatten(0, 1), video["key"]
        videos, heads, length, _ = key.shape
        keys = key.transpose(0, 1).flatten(1, 2)  # (heads, b F, D / heads)
        logits = torch.bmm(keys, query.unflatten(-1, (heads, -1)).permute(1, 2, 0))
        logits = logits.view(heads, videos, length, len(query))
        hidden = ~video["frame_mask"].unsqueeze(-1)
        return logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(2).transpose(0, 1)

    def _folded_dots(self, text: Features, video: Features) -> tuple[Tensor, ...]:
        """What `_dots` returns, by the coefficients of n + 2 vectors in the unit pooled features."""
        texts, queries, _ = text["unit"].shape
        weights = self._weights(text, video).flatten(1, 2)
        coefficients = self._tail.coefficients(weights, video)
        length = quadratic_form(video["gram_bias"], coefficients).clamp_min(_LEAST_SQUARED_NORM).rsqrt()
        shares = (coefficients * length).unflatten(-1, (texts, queries))  # (b, n + 2, a, 1 + W)
        values, constants = video["mapped"].flatten(0, 1), text["constants"].permute(2, 0, 1)  # (4, a, 1 + W)
        unit, mapped = (
            torch.cat(
                [
                    (values @ text[name].flatten(0, 1).T).view(*weights.shape[:2], texts, queries),
                    constants[2 * place : 2 * place + 2].expand(weights.shape[0], -1, -1, -1),
                ],
                1,
            )
            for place, name in enumerate(("unit", "mapped"))
        )
        sentence_video = (mapped[..., 0] * shares[..., 0]).sum(1).T
        with_words = (unit[..., 1:] * shares[..., :1]).sum(1).transpose(0, 1)
        with_sentence = (unit[..., :1] * shares[..., 1:]).sum(1).transpose(0, 1)
        fine = mapped[..., 1:].permute(2, 0, 3, 1) @ shares[..., 1:].permute(2, 0, 1, 3)
        return sentence_video, with_words, with_sentence, fine

    def _dots(self, text: Features, video: Features) -> tuple[Tensor, ...]:
        """Products of unit features with unit pooled ones, with every vector of a pair built.

        The sentence with the video pooled for it (a, b), the words with that (a, b, W), the sentence with those pooled
        for the words (a, b, W), and every word with these (a, b, word, view).
        """
        texts, queries, _ = text["unit"].shape
        attended = torch.einsum("bhfn,bhfd->bnhd", self._weights(text, video), video["key"]).flatten(2)
        pooled = F.normalize(self._tail.unfolded(attended, self.dropout), dim=-1)
        pooled = pooled.unflatten(1, (texts, queries)).transpose(0, 1)  # (a, b, 1 + W, D)
        sentence, views = pooled[:, :, 0], pooled[:, :, 1:]
        words, mapped = text["unit"][:, 1:], text["mapped"]
        return (
            torch.einsum("abd,ad->ab", sentence, mapped[:, 0]),
            torch.einsum("abd,awd->abw", sentence, words),
            torch.einsum("abwd,ad->abw", views, text["unit"][:, 0]),
            torch.einsum("atd,abud->abtu", mapped[:, 1:], views),
        )
