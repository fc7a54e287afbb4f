"""DiCoSA: text-conditioned pooling, then a weighted sum of cosines of equal chunks of the feature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glscl.models.heads.base import Features, Head, register_head
from glscl.models.heads.scoring import score_by_tiles
from glscl.options import MAX_SIZE, Options

_LEAST_NORM = 1e-12


class DiCoSAOptions(Options):
    """Head of DiCoSA (arXiv 2305.12218): disentangled conceptualisation and set-to-set alignment."""

    tau: float = Field(3.0, gt=0)
    """Temperature of the text-conditioned frame pooling."""
    centers: int = Field(8, ge=1, le=MAX_SIZE)
    """Parts that a feature is cut into; must divide the feature width."""
    mask_padding: bool = True
    """Hide padded frames from the softmax; false drops them only after it, as the authors' code does, so that they
    still take weight."""


@register_head("dicosa")
class DiCoSA(Head):
    """``s_ab = Σ_c MLP([t_ac; v̄_abc]) cos(t_ac, v̄_abc)`` (jpthu17/DiCoSA, ``tvr/models/modeling.py``).

    ``v̄_ab = Σ_f softmax_f(t_a · v_bf / τ) v_bf``; c counts equal chunks of the feature. The MLP's first layer is
    linear in its two inputs, so that the text's share of it is cached.
    """

    Options = DiCoSAOptions

    def __init__(self, width: int, options: DiCoSAOptions) -> None:
        super().__init__(width, options)
        self.check_divides("centers", options.centers)
        self.options = options
        chunk = width // options.centers
        self.hidden = nn.Linear(2 * chunk, 4 * chunk)
        self.weight = nn.Linear(4 * chunk, 1)
        for linear in (self.hidden, self.weight):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Sentence features (A, D) and their share of the MLP's hidden layer (A, C, 4D/C)."""
        chunks = sentence.float().unflatten(-1, (self.options.centers, -1))
        with torch.autocast(sentence.device.type, enabled=False):
            weight = self.hidden.weight[:, : chunks.shape[-1]].float()
            return {"sentence": sentence, "hidden": chunks @ weight.T + self.hidden.bias.float()}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Frame features (B, F, D) and the mask (B, F).

        Where frames are fewer than a chunk has numbers, also Gram matrices of the frames' chunks (B, C, F, F) and the
        frames' share of the hidden layer (B, F, 4D): to mix that is less than to map the mixed chunks.
        """
        features: Features = {"frames": frames, "frame_mask": frame_mask.bool()}
        if self._mixes(frames.shape[1]):
            with torch.autocast(frames.device.type, enabled=False):
                chunks = frames.float().unflatten(-1, (self.options.centers, -1))  # (B, F, C, D/C)
                by_chunk = chunks.transpose(1, 2)
                features["gram"] = by_chunk @ by_chunk.transpose(2, 3)
                features["hidden"] = (chunks @ self._video_weight().T).flatten(2)
        return features

    def forward(self, text: Features, video: Features) -> Tensor:
        """Weighted sums of cosines (A, B)."""
        return score_by_tiles(self._score, text, video, 4 * self.width, 16.0)

    def multiply_adds(self, words: int, frames: int) -> int:
        """``2FD + D`` for pooling and cosines, ``8D²/C + 4D`` for the MLP."""
        return (2 * frames + 5) * self.width + 8 * self.width**2 // self.options.centers

    def implemented_multiply_adds(self, words: int, frames: int) -> int:
        """``5FD + CF² + 4D`` where hidden layers are mixed, else half of the MLP's first layer is cached."""
        if self._mixes(frames):
            return (5 * frames + 4) * self.width + self.options.centers * frames**2
        return (2 * frames + 4) * self.width + 4 * self.width**2 // self.options.centers

    def _mixes(self, frames: int) -> bool:
        """Whether the frames' shares of the hidden layer are mixed, rather than the pooled chunks mapped."""
        return frames < self.width // self.options.centers

    def _video_weight(self) -> Tensor:
        """The hidden layer's weight of the video's chunk (4D/C, D/C)."""
        return self.hidden.weight[:, self.width // self.options.centers :].float()

    def _score(self, text: Features, video: Features) -> Tensor:
        """Scores (a, b)."""
        centers, texts = self.options.centers, len(text["sentence"])
        hidden, cosines = (self._mixed if "hidden" in video else self._pooled)(text, video)
        hidden = hidden.relu_().view(len(video["frames"]), texts, centers, 4 * self.width // centers)
        weights = (hidden @ self.weight.weight.float().T).squeeze(-1) + self.weight.bias.float()  # (b, a, C)
        similarity: Tensor = (weights * cosines).sum(-1).T
        return similarity

    def _weights(self, products: Tensor, video: Features) -> Tensor:
        """Weights (b, F, a) of the frames, from their products with the sentences."""
        mask, logits = video["frame_mask"].unsqueeze(-1), products / self.options.tau
        if self.options.mask_padding:
            logits = logits.masked_fill(~mask, torch.finfo(torch.float32).min)
        return logits.softmax(1) * mask

    def _mixed(self, text: Features, video: Features) -> tuple[Tensor, Tensor]:
        """Hidden layer (b, a, 4D) before its ReLU and cosines (b, a, C), without pooled features.

        With α the softmax, chunk c's cosine is ``Σ_f α_f t_c · v_fc / (|t_c| √(αᵀ G_c α))``.
        """
        centers, (videos, length) = self.options.centers, video["frame_mask"].shape
        chunks = text["sentence"].float().unflatten(-1, (centers, -1))
        by_chunk = video["frames"].float().flatten(0, 1).unflatten(-1, (centers, -1)).transpose(0, 1)  # (C, b F, D/C)
        products = torch.bmm(by_chunk, chunks.permute(1, 2, 0)).view(centers, videos, length, len(chunks))
        weights = self._weights(products.sum(0), video)
        dots = (products * weights).sum(2)  # (C, b, a)
        mixed = torch.bmm(video["gram"].flatten(1, 2), weights).view(videos, centers, length, len(chunks))
        squared = (mixed * weights.unsqueeze(1)).sum(2).transpose(0, 1)
        norms = chunks.norm(dim=-1).clamp_min(_LEAST_NORM).T.unsqueeze(1)  # (C, 1, a)
        cosines = dots * squared.clamp_min(_LEAST_NORM**2).rsqrt() / norms
        hidden = torch.baddbmm(text["hidden"].flatten(1), weights.transpose(1, 2), video["hidden"])
        return hidden, cosines.permute(1, 2, 0)

    def _pooled(self, text: Features, video: Features) -> tuple[Tensor, Tensor]:
        """The same by pooled features."""
        sentence, frames = text["sentence"].float(), video["frames"].float()
        products = (frames.flatten(0, 1) @ sentence.T).view(*frames.shape[:2], len(sentence))
        pooled = torch.bmm(self._weights(products, video).transpose(1, 2), frames)
        pooled, chunks = (x.unflatten(-1, (self.options.centers, -1)) for x in (pooled, sentence))
        cosines = (F.normalize(chunks, dim=-1) * F.normalize(pooled, dim=-1)).sum(-1)
        return (text["hidden"] + pooled @ self._video_weight().T).flatten(2), cosines
