"""GLSCL: global text-conditioned pooling plus local concepts from shared queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.models.heads.base import Features, Head, register_head
from glscl.models.scores.pooling import pooled_scores
from glscl.options import MAX_LAYERS, MAX_SIZE, Options

_LEAST_NORM = 1e-12


class GLSCLOptions(Options):
    """Head of GLSCL (arXiv 2405.12710): similarity = global + local_weight · local."""

    tau: float = Field(3.0, gt=0)
    """Temperature of the text-conditioned frame pooling (τ)."""
    local_weight: float = 0.5
    """Weight of the local similarity (ξ)."""
    queries: int = Field(8, ge=1, le=MAX_SIZE)
    """Number of shared queries, hence of concepts per text and video (K)."""
    layers: int = Field(3, ge=1, le=MAX_LAYERS)
    """Layers of the shared decoder."""
    attention_heads: int = Field(8, ge=1, le=MAX_SIZE)
    """Attention heads of the shared decoder; must divide the feature width."""
    feedforward: int | None = Field(None, ge=1, le=MAX_SIZE)
    """Hidden width of the decoder's feed-forward layer; 4 × the feature width where not given."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout inside the decoder while training."""
    mask_padding: bool = True
    """Hide padded tokens and frames from the decoder; false attends to them, as the authors' code does."""
    use_global: bool = True
    """Include the global similarity."""
    use_local: bool = True
    """Include the local similarity; false leaves a head without parameters."""


@register_head("glscl")
class GLSCL(Head):
    """Global-local semantic consistent learning (zchoi/GLSCL, ``tvr/models/modeling.py``).

    Global: ``α_abf = softmax_f(t_a · v_bf / τ) m_bf``, ``s1_ab = cos(t_a, Σ_f α_abf v_bf)``. With ``l = t · v`` and
    the Gram matrix ``G_b = V_b V_bᵀ`` that is ``Σ_f α l / (|t| √(αᵀ G α))``, so that the texts × videos × D tensor
    of pooled videos never exists.

    Local: concepts ``C = norm(Dec(Q, x))`` of the tokens and of the frames, with the same queries Q (K, D) and the
    same decoder; ``s2_ab = (1/K) Σ_k C^t_ak · C^v_bk``.
    """

    Options = GLSCLOptions
    provides: tuple[str, ...] = ("concepts",)

    def __init__(self, width: int, options: GLSCLOptions) -> None:
        super().__init__(width, options)
        if not (options.use_global or options.use_local):
            raise UserError("model.heads.glscl: use_global and use_local are both false; switch one on")
        self.options = options
        if not options.use_local:
            self.provides = ()
        else:
            self.check_divides("attention_heads", options.attention_heads)
            self.queries = nn.Parameter(torch.rand(options.queries, width))
            layer = nn.TransformerDecoderLayer(
                width,
                options.attention_heads,
                options.feedforward or 4 * width,
                options.dropout,
                batch_first=True,
            )
            self.decoder = nn.TransformerDecoder(layer, options.layers)

    def encode_text(self, sentence: Tensor, tokens: Tensor, token_mask: Tensor) -> Features:
        """Sentence features (A, D) and, where local is on, text concepts (A, K, D)."""
        features = {"sentence": sentence}
        if self.options.use_local:
            features["concepts"] = self._concepts(tokens, token_mask)
        return features

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """Frame features (B, F, D), mask and Gram matrix (B, F, F) for global; video concepts (B, K, D) for local."""
        features: Features = {}
        if self.options.use_global:
            with torch.autocast(frames.device.type, enabled=False):
                gram = frames.float() @ frames.float().transpose(1, 2)
            features |= {"frames": frames, "frame_mask": frame_mask.bool(), "gram": gram}
        if self.options.use_local:
            features["concepts"] = self._concepts(frames, frame_mask)
        return features

    def forward(self, text: Features, video: Features) -> Tensor:
        """Similarities (A, B): global + local_weight · local, or the one that is on."""
        with torch.autocast(text["sentence"].device.type, enabled=False):
            if not self.options.use_local:
                return self.global_similarity(text, video)
            local = self.options.local_weight * self.local_similarity(text, video)
            return self.global_similarity(text, video) + local if self.options.use_global else local

    def multiply_adds(self, words: int, frames: int) -> int:
        """``2FD + D`` for the pooled video and its cosine, ``KD`` for the concepts."""
        pooled = (2 * frames + 1) * self.width if self.options.use_global else 0
        return pooled + (self.options.queries * self.width if self.options.use_local else 0)

    def implemented_multiply_adds(self, words: int, frames: int) -> int:
        """``FD + F²`` with the Gram matrix, ``KD`` for the concepts."""
        pooled = frames * self.width + frames**2 if self.options.use_global else 0
        return pooled + (self.options.queries * self.width if self.options.use_local else 0)

    def global_similarity(self, text: Features, video: Features) -> Tensor:
        """Cosine of each text and the video pooled for it: (A, B)."""
        # Hidden frames take no part in the softmax. Dropping them after it, as the authors' code does, scales each
        # pair's weights by one number, which the cosine cancels.
        gram = video["gram"].float()
        pooled = pooled_scores(text["sentence"], video["frames"], gram, video["frame_mask"], self.options.tau)
        length: Tensor = text["sentence"].float().norm(dim=1, keepdim=True)
        return pooled / length.clamp_min(_LEAST_NORM)

    def local_similarity(self, text: Features, video: Features) -> Tensor:
        """Mean cosine of the K pairs of concepts: (A, B)."""
        concepts = text["concepts"].float()
        return concepts.flatten(1) @ video["concepts"].float().flatten(1).T / concepts.shape[1]

    def _concepts(self, features: Tensor, mask: Tensor) -> Tensor:
        """Unit query outputs (N, K, D), float32, of features (N, L, D) and their mask (N, L)."""
        padding = None
        if self.options.mask_padding:
            mask = mask.bool()
            # Attention over no key at all is NaN: an item without a real entry attends to its padding instead.
            padding = ~(mask | ~mask.any(-1, keepdim=True))
        queries = self.queries.to(features.dtype).expand(features.shape[0], -1, -1)
        decoded = self.decoder(queries, features, memory_key_padding_mask=padding)
        return F.normalize(decoded.float(), dim=-1)
