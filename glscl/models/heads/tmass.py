"""T-MASS: a text is a mass of points around its feature, and the point nearest to a video counts."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glscl.models.heads.base import Draws, Features, LengthTiedHead, register_head
from glscl.models.heads.folding import quadratic_form
from glscl.models.heads.scoring import score_by_tiles, split, wide
from glscl.models.heads.xpool import XPool, XPoolOptions
from glscl.models.scores.tiles import tile_numbers
from glscl.options import MAX_SIZE, Options

_LEAST_SQUARED_NORM = 1e-20


class TMASSOptions(Options):
    """Head of T-MASS (arXiv 2403.17998): stochastic text embedding. Tied to frames."""

    attention_heads: int = Field(1, ge=1, le=MAX_SIZE)
    """Attention heads of the pooling; must divide the feature width."""
    dropout: float = Field(0.3, ge=0, lt=1)
    """Dropout of the pooling's residual linear layer while training (0.4 for DiDeMo)."""
    prior: Literal["uniform", "normal"] = "uniform"
    """Where points are drawn from: numbers from 0 to 1, or normal ones (the authors' command for LSMDC)."""
    prior_std: float = Field(1.0, gt=0)
    """Standard deviation of the normal prior (0.003 for LSMDC)."""
    trials: int = Field(20, ge=1, le=MAX_SIZE)
    """Points of every text at test time, of which the best counts."""
    seed: int = Field(24, ge=0)
    """Of the points at test time."""
    mask_padding: bool = True
    """Hide padded frames; false attends to them, as the authors' code does."""


class _Radius(nn.Linear):
    """R = ``exp(W_r c + b)`` (..., D) of the frames' cosines c (..., F), in their precision."""

    def forward(self, cosines: Tensor) -> Tensor:
        return F.linear(cosines, wide(self.weight), wide(self.bias)).exp()


@register_head("tmass")
class TMASS(LengthTiedHead):
    """``s_ab = max_s cos(t_a + ε_s ⊙ R_ab, z_ab)`` at test time (Jiamian-Wang/T-MASS-text-video-retrieval).

    z is X-Pool's pooled video, and the radius ``R_ab = exp(W_r c_ab + b)`` with ``c_ab`` the cosines of the text and
    the frames. In training a text has one point, with the radius of its own video, for all videos:
    ``s_ab = cos(t_a + ε_a ⊙ R_aa, z_ab)``; the loss term ``support_text`` contrasts
    ``t_a + R_aa ⊙ unit(mean_a' z_a'a - t_a)`` as well.

    Different from the authors' code: the similarity is the cosine that their loop selects by. What they rank by pools
    every video for its own caption, which leaks which one that is. The S points ε are drawn once, from ``seed``, for
    all pairs, where theirs are drawn anew for every video, trial and text: every pair's score has the same
    distribution, but depends neither on batch, block nor worker, and ``(t + ε_s ⊙ R) · z`` and ``|t + ε_s ⊙ R|²`` of
    all points are three products of matrices. X-Pool's maps are folded as there; the exponential keeps W_r and D
    numbers per pair. An unused parameter of theirs is left out.
    """

    Options = TMASSOptions
    length_tied = ("frames",)
    detail = "support"
    provides = ("support",)

    def __init__(self, width: int, options: TMASSOptions, lengths: tuple[int, int]) -> None:
        super().__init__(width, options, lengths)
        self.check_divides("attention_heads", options.attention_heads)
        self.options = options
        pooling = {name: getattr(options, name) for name in ("attention_heads", "dropout", "mask_padding")}
        self.pool = XPool(width, XPoolOptions.model_validate(pooling))
        self.radius = _Radius(self.frames, width)
        nn.init.eye_(self.radius.weight)
        nn.init.zeros_(self.radius.bias)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Sentence features (A, D) and attention queries (A, heads, D / heads)."""
        return {"sentence": wide(sentence), "query": self.pool.query(sentence)}

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """X-Pool's caches, the unit frames (B, F, D), zero where hidden, and vectors that z is a sum of (B, n + 2, D).

        Raises:
            UserError: another number of frames than the head was built for.
        """
        self.check_length("frames", frames.shape[1])
        features = self.pool.encode_video(frames, frame_mask)
        unit = F.normalize(wide(frames), dim=-1) * features["frame_mask"].unsqueeze(-1)
        features["unit_frames"] = unit
        if "mapped" in features:
            constants = self.pool.tail.constants().expand(frames.shape[0], -1, -1)
            features["vectors"] = torch.cat([features.pop("mapped"), constants], 1)
        return features

    def match(
        self, text: Features, video: Features, all_text: Features, draws: Draws, wanted: Collection[str]
    ) -> tuple[Features, Features]:
        """Unit points of texts, of the radius of their own videos, and where asked for unit support texts: (b, D)."""
        with torch.autocast(text["sentence"].device.type, enabled=False):
            sentence = text["sentence"]
            radius = self.radius(torch.einsum("bd,bfd->bf", F.normalize(sentence, dim=-1), video["unit_frames"]))
            uniform = self.options.prior == "uniform"
            noise = draws.uniform(self.width) if uniform else self.options.prior_std * draws.normal(self.width)
            points = {"point": F.normalize(sentence + noise.to(sentence.dtype) * radius, dim=-1)}
            if "support" in wanted:
                towards = F.normalize(self._mean_pooled(all_text, video) - sentence, dim=-1)
                points["support"] = F.normalize(sentence + towards * radius, dim=-1)
        return points, {}

    def forward(self, text: Features, video: Features, detail: bool = False) -> Tensor:
        """Cosines (A, B): of the best point, or of matched texts of their one; ``detail`` adds the support texts'."""
        if "point" not in text:
            noise = self._noise(text["sentence"])
            return score_by_tiles(partial(self._best, noise), text, video, self.width, 4.0)
        points = ("point", "support") if detail else ("point",)
        numbers = video["vectors"].shape[1] if "vectors" in video else self.width
        scores = score_by_tiles(partial(self._of_points, points), text, video, numbers, 4.0)
        return scores if detail else scores[..., 0]

    def multiply_adds(self, words: int, frames: int) -> int:
        """X-Pool's ``2D² + 2FD``, ``2FD`` for cosines and radius, ``SD`` for the points."""
        return 2 * self.width**2 + (4 * frames + self.options.trials) * self.width

    def implemented_multiply_adds(self, words: int, frames: int) -> int:
        """``3FD`` for attention, cosines and radius, ``(n + 2) D`` for z, ``(3S + 1) D`` for the points, two forms.

        That is where nothing is dropped, of n = heads × F values.
        """
        pooled = self.pool.pooled_multiply_adds(frames)
        return pooled + (2 * frames + 3 * self.options.trials + 1) * self.width

    def _noise(self, like: Tensor) -> Tensor:
        """The points ε (S, D)."""
        generator = torch.Generator().manual_seed(self.options.seed)
        shape = self.options.trials, self.width
        if self.options.prior == "uniform":
            return torch.rand(shape, generator=generator).to(like)
        return self.options.prior_std * torch.randn(shape, generator=generator).to(like)

    def _pooled(self, text: Features, video: Features) -> Tensor:
        """z (b, a, D), or a multiple of it."""
        if "vectors" not in video:
            return self.pool.pooled(text, video)
        coefficients = self.pool.tail.coefficients(self.pool.weights(text, video), video)
        return torch.bmm(coefficients.transpose(1, 2), video["vectors"])

    def _mean_pooled(self, text: Features, video: Features) -> Tensor:
        """The mean of z over all texts (b, D) of these videos, a few of which are held at a time."""

        def mean(text: Features, video: Features) -> Tensor:
            if "vectors" not in video:
                return self.pool.pooled(text, video).mean(1)
            coefficients = self.pool.tail.coefficients(self.pool.weights(text, video), video)
            share = (coefficients / coefficients[:, -1:]).mean(2, keepdim=True)  # (b, n + 2, 1)
            return (share * video["vectors"]).sum(1)

        per_video = len(text["sentence"]) * (self.frames if "vectors" in video else self.width)
        some = max(1, tile_numbers(text["sentence"].device) // per_video)
        means = [checkpoint(mean, text, part, use_reentrant=False) for part in split(video, some)]
        return torch.cat(means)

    def _best(self, noise: Tensor, text: Features, video: Features) -> Tensor:
        """Cosines of each pair's best point (a, b)."""
        sentence, pooled = text["sentence"], self._pooled(text, video)
        shape = *video["frame_mask"].shape, len(sentence)
        cosines = (video["unit_frames"].flatten(0, 1) @ F.normalize(sentence, dim=-1).T).view(shape)
        radius: Tensor = self.radius(cosines.transpose(1, 2))  # (b, a, D)
        dots = torch.einsum("ad,bad->ba", sentence, pooled).unsqueeze(-1) + (radius * pooled) @ noise.T
        squares = sentence.square().sum(-1, keepdim=True) + (radius * sentence) @ (2 * noise).T
        squares = squares + radius.square() @ noise.square().T  # |t + ε R|², (b, a, S)
        best = (dots * squares.clamp_min(_LEAST_SQUARED_NORM).rsqrt()).amax(-1)
        length = pooled.square().sum(-1).clamp_min(_LEAST_SQUARED_NORM).rsqrt()
        return (best * length).T

    def _of_points(self, points: tuple[str, ...], text: Features, video: Features) -> Tensor:
        """Cosines of one point per text, of each of these kinds (a, b, P)."""
        if "vectors" not in video:
            unit = F.normalize(self.pool.pooled(text, video), dim=-1)
            return torch.stack([torch.einsum("ad,bad->ab", text[name], unit) for name in points], -1)
        coefficients = self.pool.tail.coefficients(self.pool.weights(text, video), video)
        length = quadratic_form(video["gram_bias"], coefficients).clamp_min(_LEAST_SQUARED_NORM).rsqrt().squeeze(1)
        vectors = video["vectors"].flatten(0, 1)
        dots = [(vectors @ text[name].T).view(coefficients.shape) for name in points]
        return torch.stack([((dot * coefficients).sum(1) * length).T for dot in dots], -1)
