"""The retriever: clip towers, frame context and head behind one call."""

import math
from functools import partial
from typing import Any, Literal, Self, cast

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from glscl.errors import UserError
from glscl.models.frame_context import FrameContext
from glscl.models.freezing import freeze_towers, group_of
from glscl.models.heads.base import Features, Head, build_head
from glscl.models.options import MAX_SCALE, ModelConfig
from glscl.models.towers import Towers


class _ClampLog(torch.autograd.Function):
    """``min(l, ln 100)`` whose gradient still lets a value above the limit come back down."""

    @staticmethod
    def forward(ctx: Any, log_scale: Tensor) -> Tensor:
        limit = math.log(MAX_SCALE)
        ctx.save_for_backward(log_scale > limit)
        return log_scale.clamp(max=limit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (above,) = ctx.saved_tensors
        return grads[0].masked_fill(above & (grads[0] < 0), 0.0)  # a negative gradient would raise it further


class Retriever(nn.Module):
    """Text-video retrieval model; random weights come from torch's global generator: seed it first.

    Training goes through ``model(mode, ...)`` (so that an engine's hooks run); `encode_text`, `encode_video`, `score`,
    `score_parts` and `scale` are the same things as plain methods. Without ``load_weights``, ``config.pretrained`` is
    not loaded, for a model whose weights are set afterwards. Frozen towers stay in evaluation mode. While
    ``head_only`` is set, both towers are used as if they were frozen. Without ``towers``, they are let go once
    everything is initialised as it is with them: the model takes their features in place of token ids and pixels.
    Without ``fetch``, nothing but weights is fetched from a network, whatever the configuration names.

    Raises `UserError`: unknown architecture, head or weights, or lengths that the towers cannot take.
    """

    logit_bias: nn.Parameter | None

    def __init__(
        self, config: ModelConfig, *, load_weights: bool = True, towers: bool = True, fetch: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.towers = Towers(
            config.clip,
            config.pretrained,
            config.grad_checkpointing,
            load_weights,
            config.trust_pickle,
            tokenizer=config.tokenizer,
            fetch=fetch,
        )
        if config.max_words > self.towers.context_length:
            raise UserError(
                f"model.max_words: {config.max_words} is more than the {self.towers.context_length} tokens "
                f"that {config.clip} can read"
            )
        log_scale = self.towers.log_scale if config.logit_scale is None else math.log(config.logit_scale)
        self.logit_scale = nn.Parameter(torch.tensor([log_scale]))
        bias = self.towers.logit_bias if config.logit_bias is None else config.logit_bias
        self.register_parameter("logit_bias", None if bias is None else nn.Parameter(torch.tensor([bias])))
        text = self.towers.text if isinstance(self.towers.text, TextTransformer) else None
        self.frame_context = self._build_frame_context(text)
        if config.position_std is not None:
            self._spread_positions(config.position_std)
        lengths = (config.max_words, config.max_frames)
        options = getattr(config.heads, config.head)
        self.head: Head = build_head(config.head, self.towers.width, options, lengths)
        if text:
            self.head.initialise_from(text)
        if config.position_std is not None:
            self._spread_positions_of_head(config.position_std)
        self.head_only = False
        if not towers:
            self.towers.drop()
        # Last, so that adapters draw no number of another part.
        self._frozen = freeze_towers(self.towers, config) if towers else []
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all that is trained."""
        super().train(mode)
        for tower in self._frozen:
            tower.set_mode(mode)
        if self.head_only:
            self.towers.eval()
        return self

    def _build_frame_context(self, text: TextTransformer | None) -> FrameContext | None:
        config, width = self.config, self.towers.width
        if config.frame_context != "transformer":
            return None
        heads = text.heads if text and text.width == width else max(1, width // 64)
        if width % heads:
            raise UserError(f"model.frame_context: feature width {width} of {config.clip} is no multiple of {heads}")
        context = FrameContext(width, config.context_layers, heads, max(self.towers.context_length, config.max_frames))
        if text:
            context.initialise_from(text)
        return context

    @torch.no_grad()
    def _spread_positions(self, std: float) -> None:
        if self.config.weights is None:
            table = getattr(self.towers.visual, "positional_embedding", None)
            if table is None:
                raise UserError(f"model.position_std: the image tower of {self.config.clip} has no position table")
            table.normal_(std=std)
        if self.frame_context is not None:
            self.frame_context.position_embeddings.weight.normal_(std=std)

    @torch.no_grad()
    def _spread_positions_of_head(self, std: float) -> None:
        own = [module for module in self.head.modules() if isinstance(module, FrameContext)]
        if self.config.weights is not None and self.frame_context is None and not own:
            raise UserError(
                "model.position_std has no table to act on: the picture's comes with model.pretrained, "
                f"model.frame_context is none, and the head {self.config.head} has none of its own; leave it out"
            )
        for context in own:
            context.position_embeddings.weight.normal_(std=std)

    @property
    def frame_size(self) -> int:
        """Height and width in pixels of the frames that the image tower takes."""
        return self.towers.frame_size

    def forward(
        self,
        mode: Literal[
            "text", "video", "match", "score", "score_parts", "score_detail", "scored", "provides", "scale", "bias"
        ],
        *args: Any,
    ) -> Any:
        """Run one of `encode_text` ("text"), `encode_video` ("video"), or the method that a mode is named after.

        "match" is the head's `Head.match`; "scored" calls its first argument with `score` and the other
        arguments, of which the first is the logit scale; "provides" says what loss terms may ask the head for.
        """
        if mode == "text":
            return self.encode_text(*args)
        if mode == "video":
            return self.encode_video(*args)
        if mode == "score":
            return self.score(*args)
        if mode == "score_parts":
            return self.score_parts(*args)
        if mode == "score_detail":
            return self.score_detail(*args)
        if mode == "scored":
            return args[0](partial(self.score, scale=args[1]), *args[1:])
        if mode == "match":
            return self.head.match(*args)
        if mode == "provides":
            return self.head.provides
        return self.bias() if mode == "bias" else self.scale()

    def encode_text(self, text: Tensor, token_mask: Tensor | None = None) -> Features:
        """What the head caches of token ids (A, W) int64; leading dimension A.

        Or of features (A, 1 + W, D), the sentence's and then the tokens', and the token mask (A, W).
        """
        if token_mask is not None:
            features = text.to(self.logit_scale.dtype)
            return self.head.encode_text(features[:, 0], features[:, 1:], token_mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.head_only):
            encoded = self.towers.encode_text(text)
        return self.head.encode_text(*encoded)

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Features:
        """What the head caches of uint8 frames (B, F, 3, S, S), or features (B, F, D), with mask (B, F)."""
        if frames.is_floating_point():
            features = frames.to(self.logit_scale.dtype)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.head_only):
                features = self.towers.encode_frames(frames, frame_mask)
        if self.frame_context is not None:
            features = self.frame_context(features, frame_mask)
        return self.head.encode_video(features, frame_mask)

    def score(self, text: Features, video: Features, scale: Tensor | None = None) -> Tensor:
        """Similarities (A, B), float32, before the logit scale; ``scale`` is that scale, if it is known already."""
        return cast(Tensor, self.head(text, video, **self._given_scale(scale)))

    def score_parts(self, text: Features, video: Features) -> Tensor:
        """The scores (A, B, P), float32, whose mean is the similarity; one for a head that has a single score."""
        if not self.head.parts:
            return self.score(text, video).unsqueeze(-1)
        return cast(Tensor, self.head(text, video, parts=True))

    def score_detail(self, text: Features, video: Features, scale: Tensor | None = None) -> Tensor:
        """Similarities, and behind them what the head's `detail` names: (A, B, 1 + P), float32."""
        return cast(Tensor, self.head(text, video, detail=True, **self._given_scale(scale)))

    def _given_scale(self, scale: Tensor | None) -> dict[str, Tensor]:
        """The logit scale for a head whose similarities depend on it."""
        return {"scale": self.scale() if scale is None else scale} if self.head.uses_scale else {}

    def scale(self) -> Tensor:
        """The logit scale (1,), float32, at most 100.

        Above the limit, only gradients that would lower it pass. With several ranks, the gradient that arrives here
        must already be the average over them, or ranks would disagree about its sign.
        """
        scale = cast(Tensor, _ClampLog.apply(self.logit_scale.float())).exp()
        # An engine expects a gradient of every parameter, also of a bias that no term of the loss asks for.
        return scale if self.logit_bias is None else scale + 0.0 * self.logit_bias.float()

    def bias(self) -> Tensor:
        """The logit bias (1,), float32, that the sigmoid loss adds to logits. Raises `UserError`: there is none."""
        if self.logit_bias is None:
            raise UserError(
                f"loss.sigmoid: it needs a logit bias, and the towers of {self.config.clip} bring none: set "
                "model.logit_bias (SigLIP's starts at -10)"
            )
        return self.logit_bias.float().clone()  # a copy, because sharded parameters are taken apart after the call

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Optimiser groups: name ("towers", "adapters" or "head"), params, weight_decay. What is frozen is in none.

        The head group holds everything that is not pretrained, the frame context included; the logit scale counts to
        the towers, as does a logit bias that came with them. Biases, norms and other vectors are not decayed
        (CLIP4Clip).
        """
        groups = []
        for name in ("towers", "adapters", "head"):
            parameters = [
                parameter
                for key, parameter in self.named_parameters()
                if parameter.requires_grad and group_of(key, self.config) == name
            ]
            for decay, params in (
                (weight_decay, [parameter for parameter in parameters if parameter.ndim > 1]),
                (0.0, [parameter for parameter in parameters if parameter.ndim <= 1]),
            ):
                if params:
                    groups.append({"name": name, "params": params, "weight_decay": decay})
        return groups

    def describe(self) -> dict[str, int]:
        """Number of parameters of the towers (adapters, logit scale and bias included), the frame context, the head."""

        def count(module: nn.Module | None) -> int:
            return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0

        return {
            "towers": count(self.towers) + self.logit_scale.numel() + (self.logit_bias is not None),
            "frame_context": count(self.frame_context),
            "head": count(self.head),
        }
