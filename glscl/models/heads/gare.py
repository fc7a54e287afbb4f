"""GARE: every pair moves the text by an increment of its own before it meets the video that it pools."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glscl.models.heads.base import Features, Head, register_head
from glscl.models.heads.folding import Tail, quadratic_form
from glscl.models.heads.scoring import score_by_tiles, wide
from glscl.options import Options

_LEAST_SQUARED_NORM = 1e-12


class GAREOptions(Options):
    """Head of GARE (arXiv 2505.12499): gap-aware increments of the text. Made for `frame_context: transformer`."""

    tau: float = Field(3.0, gt=0)
    """Temperature of the text-conditioned frame pooling (``--temp`` of the authors' script)."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout of the residual linear layer while training."""
    mask_padding: bool = True
    """Hide padded frames; false lets them into the mean frame and the attention, as the authors' code does."""


@register_head("gare")
class GARE(Head):
    """``s_ab = cos(t_a + Δ_ab, p_ab)`` (musicman217/GARE-text-video-retrieval, ``tvr/models``).

    ``p_ab = Σ_f softmax_f(t_a · v_bf / τ) v_bf``. With the gap ``g_ab = mean_f v_bf - t_a``, the increment is
    ``Δ = W_μ LN3(o + dropout(W_1 o)) + b_μ``, ``o = LN2(W_o Σ_f softmax_f(W_q LN1(g) · k_f / √D) u_f)``, where k and u
    are the keys and values of LN1(v). Maps start at N(0, 0.02²), as the authors' do in the end.

    The maps of the queries and W_o are in the cached keys and values, since LN1 divides by one number per pair. Where
    nothing is dropped, W_1 and W_μ are in the values, too (`Tail`): ``Δ = Σ_j c_j n_j`` of F + 2 vectors n. Then
    ``|t + Δ|²`` and ``(t + Δ) · p`` are quadratic forms, and nothing per pair has D numbers.

    The authors' code registers an unused 2.6 M of parameters, which are left out. Dropping out, a pair that two ranks
    score draws two masks.
    """

    Options = GAREOptions
    detail = "increments"
    provides = ("increments",)

    def __init__(self, width: int, options: GAREOptions) -> None:
        super().__init__(width, options)
        self.options = options
        self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.linear_proj, self.mean_proj = (
            nn.Linear(width, width) for _ in range(6)
        )
        self.layer_norm1, self.layer_norm2, self.layer_norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(options.dropout)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.linear_proj, self.mean_proj):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Sentence features (A, D), and their dots with two vectors and squared norms, centred and not (A, 4)."""
        sentence = wide(sentence)
        with torch.autocast(sentence.device.type, enabled=False):
            centred = sentence - sentence.mean(-1, keepdim=True)
            squares = torch.stack([centred.square().sum(-1), sentence.square().sum(-1)], -1)
            return {"sentence": sentence, "numbers": torch.cat([sentence @ self._constants().T, squares], -1)}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Frames (B, F, D), their mask and Gram matrix, the centred mean frame (B, D), and attention keys (B, F, D).

        Further what the keys make of the mean frame and of a bias, the mean's squared norm (B, F, 3), and what is
        attended to: values after W_o while dropping out, else F + 2 vectors of which Δ is made (B, F + 2, D), and four
        matrices of products of these, of the frames, and for `Tail`.
        """
        mask = frame_mask.bool() | (not self.options.mask_padding)
        normed = self.layer_norm1(frames)
        key, value = wide(self.k_proj(normed)), wide(self.out_proj(self.v_proj(normed)))
        with torch.autocast(frames.device.type, enabled=False):
            frames, norm = wide(frames), self.layer_norm1
            share = mask.to(frames.dtype) / mask.sum(-1, keepdim=True).clamp_min(1)
            mean = (frames * share.unsqueeze(-1)).sum(1)
            mean = mean - mean.mean(-1, keepdim=True)
            mapped = key @ wide(self.q_proj.weight) / self.width**0.5
            bias = mapped @ wide(norm.bias) + key @ wide(self.q_proj.bias) / self.width**0.5
            mapped = mapped * wide(norm.weight)
            mapped = mapped - mapped.mean(-1, keepdim=True)
            of_mean = torch.einsum("bfd,bd->bf", mapped, mean)
            squared = mean.square().sum(-1, keepdim=True).expand_as(bias)
            features = {
                "frames": frames,
                "frame_mask": frame_mask.bool(),
                "attended_mask": mask,
                "frame_gram": frames @ frames.transpose(1, 2),
                "mean": mean,
                "key": mapped,
                "key_numbers": torch.stack([of_mean, bias, squared], -1),
            }
            if self.training and self.options.dropout:
                return features | {"attended": value}
            folded = self._tail.fold(value)
            increments = folded.pop("mapped") @ wide(self.mean_proj.weight).T
            increments = torch.cat([increments, self._constants().expand(frames.shape[0], -1, -1)], 1)
            return (
                features
                | folded
                | {
                    "increments": increments,
                    "increment_gram": increments @ increments.transpose(1, 2),
                    "increment_frames": increments @ frames.transpose(1, 2),
                }
            )

    def forward(self, text: Features, video: Features, detail: bool = False) -> Tensor:
        """Cosines (A, B); with ``detail`` (A, B, 1 + D), the increments behind them."""
        folds = "increments" in video
        if folds and not detail:
            return score_by_tiles(self._score_folded, text, video, video["increments"].shape[1], 16.0)
        scores = score_by_tiles(self._scores_folded if folds else self._scores, text, video, self.width + 1)
        return scores if detail else scores[..., 0]

    def multiply_adds(self, words: int, frames: int) -> int:
        """``4D²`` for the maps, ``4FD`` for two poolings, ``D`` for the cosine."""
        return 4 * self.width**2 + 4 * frames * self.width + self.width

    def implemented_multiply_adds(self, words: int, frames: int) -> int:
        """``(3F + 1) D`` for dots of the text, five quadratic forms of F to F + 2 numbers. Where nothing is dropped."""
        forms = 2 * frames**2 + (frames + 1) ** 2 + (frames + 2) ** 2 + (frames + 2) * frames
        return (3 * frames + 1) * self.width + forms

    @property
    def _tail(self) -> Tail:
        return Tail(self.layer_norm2, self.linear_proj, self.layer_norm3)

    def _constants(self) -> Tensor:
        """The two vectors of Δ that no video changes (2, D)."""
        shift, bias = self._tail.constants() @ wide(self.mean_proj.weight).T
        return torch.stack([shift, bias + wide(self.mean_proj.bias)])

    def _attend(self, text: Features, video: Features) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of ψ's attention and of the pooling, and the frames' dots with the texts, each (b, F, a)."""
        sentence, least = text["sentence"].T, torch.finfo(text["sentence"].dtype).min
        shape = (*video["frame_mask"].shape, sentence.shape[1])
        keys, frames = ((video[name].flatten(0, 1) @ sentence).view(shape) for name in ("key", "frames"))
        of_mean, bias, squared = video["key_numbers"].unbind(-1)
        gap = squared[:, :1] - 2 * (video["mean"] @ sentence) + text["numbers"][:, 2]  # |g - mean(g)|², (b, a)
        deviation = (gap.clamp_min(0) / self.width + self.layer_norm1.eps).sqrt()
        logits = (of_mean.unsqueeze(-1) - keys) / deviation.unsqueeze(1) + bias.unsqueeze(-1)
        weights = logits.masked_fill(~video["attended_mask"].unsqueeze(-1), least).softmax(1)
        mask = video["frame_mask"].unsqueeze(-1)
        pooling = (frames / self.options.tau).masked_fill(~mask, least).softmax(1) * mask
        return weights, pooling, frames

    def _coefficients(self, weights: Tensor, video: Features) -> Tensor:
        """Of the vectors in Δ (b, F + 2, a); the last is 1."""
        coefficients = self._tail.coefficients(weights, video)
        return coefficients / coefficients[:, -1:]

    def _score_folded(self, text: Features, video: Features) -> Tensor:
        return self._cosines(text, video)[0]

    def _scores_folded(self, text: Features, video: Features) -> Tensor:
        """Cosines and increments (a, b, 1 + D)."""
        cosines, coefficients = self._cosines(text, video)
        increments = torch.bmm(coefficients.transpose(1, 2), video["increments"])  # (b, a, D)
        return torch.cat([cosines.unsqueeze(-1), increments.transpose(0, 1)], -1)

    def _cosines(self, text: Features, video: Features) -> tuple[Tensor, Tensor]:
        """Cosines (a, b), and the coefficients of the vectors in Δ (b, F + 2, a)."""
        weights, pooling, frames = self._attend(text, video)
        coefficients = self._coefficients(weights, video)
        shift, bias, _, squared = text["numbers"].T
        vectors = video["increments"][:, :-2]
        dots = (vectors.flatten(0, 1) @ text["sentence"].T).view(weights.shape)
        with_text = (dots * coefficients[:, :-2]).sum(1) + coefficients[:, -2] * shift + bias  # t · Δ, (b, a)
        moved = squared + 2 * with_text + quadratic_form(video["increment_gram"], coefficients).squeeze(1)
        of_frames = torch.bmm(video["increment_frames"].transpose(1, 2), coefficients)  # v_f · Δ, (b, F, a)
        dot = (pooling * (frames + of_frames)).sum(1)
        pooled = quadratic_form(video["frame_gram"], pooling).squeeze(1)
        cosines = dot * moved.clamp_min(_LEAST_SQUARED_NORM).rsqrt() * pooled.clamp_min(_LEAST_SQUARED_NORM).rsqrt()
        return cosines.T, coefficients

    def _scores(self, text: Features, video: Features) -> Tensor:
        """Cosines and increments (a, b, 1 + D) with every vector of a pair built."""
        weights, pooling, _ = self._attend(text, video)
        attended, pooled = (
            torch.bmm(share.transpose(1, 2), video[name])
            for share, name in ((weights, "attended"), (pooling, "frames"))
        )
        attended = self._tail.unfolded(attended, self.dropout)
        increments = wide(self.mean_proj(attended.to(self.mean_proj.weight.dtype)))
        moved = F.normalize(text["sentence"] + increments, dim=-1)
        cosines = (moved * F.normalize(pooled, dim=-1)).sum(-1, keepdim=True)
        return torch.cat([cosines, increments], -1).transpose(0, 1)
