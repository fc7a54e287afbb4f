"""GLCCL: four scores with video features pooled anew for the sentence and for every word."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glscl.models.heads.base import Features, LengthTiedHead, register_head
from glscl.models.heads.scoring import score_by_tiles, wide
from glscl.models.scores.attention import attend_over_scores
from glscl.models.scores.tiles import tile_numbers
from glscl.options import Options

_LEAST_SQUARED_NORM = 1e-12
_TEXTS_PER_VIDEO = 16  # of a tile: vectors are as long as it has texts


class GLCCLOptions(Options):
    """Head of GLCCL (arXiv 2605.17959): global-local interaction without parameters, four scores. Tied to words."""

    tau: float = Field(5.0, gt=0)
    """Temperature of the pooling over frames (τ)."""
    mask_padding: bool = True
    """Leave padded words and frames out of every score; false uses them, as the authors' code does."""


@register_head("glccl")
class GLCCL(LengthTiedHead):
    """Mean of sentence-video, word-video, sentence-frame and word-frame scores (JingXiaolun/GLCCL).

    A text's queries are its sentence and its words, ``q_0 = s`` and ``q_w``. Each pools the video for itself:
    ``g_i = norm(Σ_f α_if v_f)`` with ``α_i = softmax_f(q_i · v_f / τ)``. With unit ŝ, ŵ and
    ``att_M(x) = Σ_i [softmax(x / 0.01) M]_i x_i`` the scores are ``(ŝ G) · g_0``, ``att(ŵ · g_0)``, ``att(ŝ · g_w)``
    and half the sum of two two-level attentions over ``Z_tu = (ŵ_t L) · g_u``.

    Every product with a pooled feature is a mixture of products with frames, and ``|Σ_f α_f v_f|² = αᵀ V Vᵀ α`` with
    a Gram matrix per video: the texts × videos × words × D tensor of pooled features is never built.
    """

    Options = GLCCLOptions
    length_tied = ("words",)
    parts = ("sentence_video", "word_video", "sentence_frame", "word_frame")
    provides = ("score_parts",)

    def __init__(self, width: int, options: GLCCLOptions, lengths: tuple[int, int]) -> None:
        super().__init__(width, options, lengths)
        self.options = options
        self.global_mat_weight, self.local_mat_weight = (nn.Parameter(torch.eye(width)) for _ in range(2))
        self.word_logit_weight, self.word_frame_logit_weight = (nn.Parameter(torch.eye(self.words)) for _ in range(2))
        self.word_mat_weight, self.word_frame_mat_weight, self.word_mat_weight2, self.word_frame_mat_weight2 = (
            nn.Parameter(torch.eye(self.words)) for _ in range(4)
        )

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Queries (A, 1 + W, D), their norms (A, 1 + W), mapped unit queries (ŝ G, ŵ L) and the mask (A, W).

        Raises:
            UserError: another number of tokens than the head was built for.
        """
        self.check_length("words", tokens.shape[1])
        with torch.autocast(tokens.device.type, enabled=False):
            queries = wide(torch.cat([sentence.unsqueeze(1), tokens], 1))
            unit = F.normalize(queries, dim=-1)
            mapped = torch.cat(
                [unit[:, :1] @ wide(self.global_mat_weight), unit[:, 1:] @ wide(self.local_mat_weight)], 1
            )
            return {
                "queries": queries,
                "norms": queries.norm(dim=-1).clamp_min(_LEAST_SQUARED_NORM),
                "mapped": mapped,
                "token_mask": token_mask.bool() | (not self.options.mask_padding),
            }

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Frame features (B, F, D), their Gram matrix (B, F, F) and mask (B, F)."""
        with torch.autocast(frames.device.type, enabled=False):
            gram = wide(frames) @ wide(frames).transpose(1, 2)
        return {
            "frames": frames,
            "gram": gram,
            "frame_mask": frame_mask.bool() | (not self.options.mask_padding),
        }

    def forward(self, text: Features, video: Features, parts: bool = False) -> Tensor:
        """Means of the four scores (A, B); the scores (A, B, 4) themselves where ``parts`` is true."""
        products = (1 + self.words) * video["frames"].shape[1]
        scores = score_by_tiles(self._scores, text, video, products, _TEXTS_PER_VIDEO)
        return scores if parts else scores.mean(-1)

    def multiply_adds(self, words: int, frames: int) -> int:
        """``2(1 + W)FD`` for pooling, ``(1 + 2W + W²) D`` for products, ``4W² + 2W³`` for the learned matrices."""
        pooling = 2 * (1 + words) * frames * self.width
        return pooling + (1 + words) ** 2 * self.width + 4 * words**2 + 2 * words**3

    def implemented_multiply_adds(self, words: int, frames: int) -> int:
        """``2(1 + W)FD`` for products with frames, ``(1 + W)F² + W²F`` to mix them, and the matrices."""
        mixing = (1 + words) * frames**2 + words**2 * frames
        return 2 * (1 + words) * frames * self.width + mixing + 4 * words**2 + 2 * words**3

    def _scores(self, text: Features, video: Features) -> Tensor:
        """Scores (a, b, 4). Everything is laid out with the texts last, which is what is vectorised."""
        (texts, queries), (videos, length) = text["norms"].shape, video["frame_mask"].shape
        frames, real = wide(video["frames"]).flatten(0, 1), video["frame_mask"].unsqueeze(-1)
        words = text["token_mask"].T.contiguous()  # (W, a)
        products = (frames @ text["queries"].flatten(0, 1).T).view(videos, length, texts * queries)
        weights = _unit_weights(products, video["gram"], real, self.options.tau)
        mapped = (frames @ text["mapped"].flatten(0, 1).T).view(videos, length, texts, queries)
        weights, unit = (x.view(videos, length, texts, queries) for x in (weights, products / text["norms"].flatten()))
        with_video = (unit[..., 1:] * weights[..., :1]).sum(1).permute(2, 0, 1)  # (W, b, a)
        with_frames = (weights[..., 1:] * unit[..., :1]).sum(1).permute(2, 0, 1)
        video_word = attend_over_scores(with_video.contiguous(), 0, words.unsqueeze(1), self.word_logit_weight)
        frame_word = attend_over_scores(with_frames.contiguous(), 0, words.unsqueeze(1), self.word_frame_logit_weight)
        group = max(1, tile_numbers(frames.device) // max(1, texts * self.words**2))
        word_frame = [
            self._word_frame(mapped[some : some + group, ..., 1:], weights[some : some + group, ..., 1:], words)
            for some in range(0, videos, group) or [0]
        ]
        sentence_video = (mapped[..., 0] * weights[..., 0]).sum(1)
        return torch.stack([sentence_video, video_word, frame_word, torch.cat(word_frame)], -1).transpose(0, 1)

    def _word_frame(self, mapped: Tensor, weights: Tensor, words: Tensor) -> Tensor:
        """Scores (g, a) of a few videos, from the words' products and unit weights (g, F, a, W) and the mask (W, a)."""
        fine = mapped.permute(0, 2, 3, 1) @ weights.permute(0, 2, 1, 3)  # (g, a, t, u): word t, video for word u
        fine = fine.flatten(2).transpose(1, 2).unflatten(1, (self.words, self.words)).contiguous()  # (g, t, u, a)
        of_views = attend_over_scores(fine, 1, words.unsqueeze(1), self.word_mat_weight)
        of_words = attend_over_scores(fine, 2, words, self.word_frame_mat_weight)
        return (
            attend_over_scores(of_views, 1, words, self.word_frame_mat_weight2)
            + attend_over_scores(of_words, 1, words, self.word_mat_weight2)
        ) / 2


def _unit_weights(products: Tensor, gram: Tensor, real: Tensor, tau: float) -> Tensor:
    """Weights (b, F, N) of the frames in unit pooled features, of products (b, F, N) and the mask (b, F, 1)."""
    logits = products / tau
    weights = logits.masked_fill(~real, torch.finfo(torch.float32).min).softmax(1) * real
    squared = ((gram @ weights) * weights).sum(1, keepdim=True)
    return weights * squared.clamp_min(_LEAST_SQUARED_NORM).rsqrt()
