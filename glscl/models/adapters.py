"""Adapters: small trained parts in frozen towers. LoRA changes projections of their blocks, bottlenecks follow blocks.

peft's LoRA is not used: inside open_clip's fused attention it writes the changed weights into the frozen ones and takes
them out again in every forward call, which weights that ZeRO 3 has sharded do not allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from glscl.errors import UserError, did_you_mean
from glscl.models.blocks import find_blocks, token_width
from glscl.options import MAX_SIZE, Options

ADAPTERS = frozenset({"lora", "bottleneck"})
"""Names of the modules that adapters are, inside the modules that they change."""
TARGETS = ("query", "key", "value", "output", "mlp")
_DEFAULT_TARGETS = ("query", "value")  # of the LoRA paper
_FUSED = ("query", "key", "value")  # rows of a fused projection
_ENDINGS = (  # of the names of linear layers in a block; the first that fits says what it is
    ("qkv", _FUSED),
    *((name, ("query",)) for name in ("q_proj", "query", "q", "q_lin")),
    *((name, ("key",)) for name in ("k_proj", "key", "k", "k_lin")),
    *((name, ("value",)) for name in ("v_proj", "value", "v", "v_lin")),
    *((name, ("output",)) for name in ("out_proj", "attention.output.dense", "attn.proj", "o", "out_lin")),
    *((name, ("mlp",)) for name in ("mlp.c_fc", "mlp.c_proj", "fc1", "fc2", "fc1_g", "fc1_x", "lin1", "lin2")),
    *((name, ("mlp",)) for name in ("intermediate.dense", "output.dense", "wi", "wi_0", "wi_1", "wo")),
)


class AdapterConfig(Options):
    """Small trained parts in the towers that model.freeze freezes, at training.lr_head."""

    lora_rank: int | None = Field(None, ge=1, le=4096)
    """Rank of LoRA's changes of projections in every frozen block (Hu et al. 2021); none is no LoRA."""
    lora_alpha: float | None = Field(None, gt=0, le=MAX_SIZE)
    """Changes are multiplied by lora_alpha / lora_rank; none is a factor of 1."""
    lora_targets: str | None = None
    """The projections that are changed, with commas between: query, key, value, output (of the attention) and mlp. none
    is query,value."""
    bottleneck: int | None = Field(None, ge=1, le=MAX_SIZE)
    """Width of a bottleneck behind every frozen block (Pfeiffer et al. 2020); none is no bottleneck."""

    @field_validator("lora_targets")
    @classmethod
    def _known_targets(cls, names: str | None) -> str | None:
        given = [] if names is None else [name.strip() for name in names.split(",")]
        for name in given:
            if name not in TARGETS:
                raise ValueError(f"'{name}' is none of {', '.join(TARGETS)}{did_you_mean(name, TARGETS)}")
        if len(set(given)) < len(given):
            raise ValueError("a projection is given twice")
        return names

    @property
    def targets(self) -> tuple[str, ...]:
        """The projections that LoRA changes."""
        if self.lora_targets is None:
            return _DEFAULT_TARGETS
        return tuple(name.strip() for name in self.lora_targets.split(","))

    @property
    def are_on(self) -> bool:
        """Whether there are any adapters."""
        return self.lora_rank is not None or self.bottleneck is not None


class LowRank(nn.Module):
    """The change of a weight (rows, width): ``scale · B A``, zero at the start, for some of ``parts`` equal row ranges.

    A row range has a rank of its own: ``a`` is (ranges · rank, width), ``b`` is (ranges, rows of a range, rank).
    """

    def __init__(self, rows: int, width: int, parts: int, changed: tuple[int, ...], rank: int, scale: float) -> None:
        super().__init__()
        self._rows, self._changed, self._rank, self._scale = rows, changed, rank, scale
        self.a = nn.Parameter(torch.empty(len(changed) * rank, width))
        self.b = nn.Parameter(torch.zeros(len(changed), rows // parts, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # as a linear layer starts, in LoRA's code and in peft

    def forward(self, x: Tensor | None = None) -> Tensor:
        """The change of the products (..., rows) of ``x`` (..., width); without ``x``, of the weight itself."""
        size, rank = self.b.shape[1], self._rank
        spread = self.b.new_zeros(self._rows, len(self._changed) * rank)
        for index, part in enumerate(self._changed):
            spread[part * size : (part + 1) * size, index * rank : (index + 1) * rank] = self.b[index]
        if x is None:
            return self._scale * (spread @ self.a)
        return self._scale * F.linear(F.linear(x, self.a), spread)


class Bottleneck(nn.Module):
    """``x + up(gelu(down(norm(x))))`` of tokens (..., D), the identity at the start."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x + cast(Tensor, self.up(F.gelu(self.down(self.norm(x)))))


class _Changed(nn.Module):
    """What a module becomes whose weight is changed by its ``lora``; names and classes of parameters stay."""

    lora: LowRank
    plain_class: type[nn.Module]
    weight_name = "weight"

    def frozen_weight(self) -> Tensor:
        """The weight without its change."""
        return cast(Tensor, self._parameters[self.weight_name])


class _ChangedLinear(_Changed):
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, F.linear(x, self.frozen_weight(), self.bias) + self.lora(x))

    @property
    def weight(self) -> Tensor:
        """For attention that multiplies by it without calling the layer."""
        return cast(Tensor, self.frozen_weight() + self.lora())


class _ChangedProjection(_Changed):
    """Of attention with a fused projection that is no layer of its own."""

    weight_name = "in_proj_weight"

    @property
    def in_proj_weight(self) -> Tensor:
        """What the attention multiplies by."""
        return cast(Tensor, self.frozen_weight() + self.lora())


class _ChangedAttention(_Changed):
    """Of ``nn.MultiheadAttention`` as blocks call it: of one sequence (N, L, D) with itself, without its weights."""

    weight_name = "in_proj_weight"
    in_proj_bias: Tensor | None
    num_heads: int
    dropout: float
    out_proj: nn.Linear

    def forward(self, x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **__: object) -> tuple[Tensor, None]:
        projected = F.linear(x, self.frozen_weight(), self.in_proj_bias) + self.lora(x)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mask = attn_mask
        if mask is not None:
            mask = ~mask if mask.dtype == torch.bool else mask.to(x.dtype)  # here true hides, there it shows
            mask = mask.unflatten(0, (len(x), self.num_heads)) if mask.ndim == 3 else mask
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def add_adapters(
    towers: Mapping[str, tuple[nn.Module, tuple[nn.Module, ...]]], config: AdapterConfig, knob: str = "model.adapters"
) -> None:
    """Put adapters into the frozen blocks of towers: by what messages call a tower, itself and its trained parts.

    Raises `UserError`: a tower has no blocks that are known, none of the projections, or blocks of no tokens.
    """
    present: set[str] = set()
    for what, (tower, trained) in towers.items():
        blocks = [block for block in find_blocks(tower, what, knob).blocks if not set(block) & set(trained)]
        if config.lora_rank is not None and blocks:
            present |= _check_targets(blocks, config.targets, what, knob)
        if config.bottleneck is not None and any(token_width(block) is None for block in blocks):
            raise UserError(
                f"{knob}.bottleneck: the blocks of {what} ({type(tower).__name__}) give feature maps, and a bottleneck "
                f"takes tokens; leave it out, or let model.freeze name the other tower"
            )
        for block in blocks:
            _adapt(block, config)
    missing = sorted(set(config.targets) - present)
    if present and missing:
        raise UserError(f"{knob}.lora_targets: no block of {' and '.join(towers)} has {', '.join(missing)}")


def _check_targets(blocks: list[tuple[nn.Module, ...]], targets: tuple[str, ...], what: str, knob: str) -> set[str]:
    """The kinds of projections that a tower's blocks have. Raises `UserError`: none of the targets is among them."""
    present = {name for block in blocks for *_, names in _projections(block) for name in names}
    if not present & set(targets):
        has = f"only {', '.join(sorted(present))}" if present else "none at all"
        raise UserError(f"{knob}.lora_targets: the blocks of {what} have no projections {', '.join(targets)}, {has}")
    return present


def _adapt(block: tuple[nn.Module, ...], config: AdapterConfig) -> None:
    width = token_width(block)
    if config.lora_rank is not None:
        scale = 1.0 if config.lora_alpha is None else config.lora_alpha / config.lora_rank
        for owner, weight, names in list(_projections(block)):
            changed = tuple(index for index, name in enumerate(names) if name in config.targets)
            if changed:
                rows, columns = cast(Tensor, getattr(owner, weight)).shape
                _change(owner, LowRank(rows, columns, len(names), changed, config.lora_rank, scale))
    if config.bottleneck is not None and width is not None:
        block[-1].bottleneck = Bottleneck(width, config.bottleneck)
        block[-1].register_forward_hook(_through_bottleneck)


def _through_bottleneck(block: nn.Module, _: object, output: Any) -> Any:
    """The output of a block, which is its tokens or a tuple that begins with them, through its bottleneck."""
    bottleneck = cast(Bottleneck, block.bottleneck)
    return (bottleneck(output[0]), *output[1:]) if isinstance(output, tuple) else bottleneck(output)


def _projections(block: tuple[nn.Module, ...]) -> Iterator[tuple[nn.Module, str, tuple[str, ...]]]:
    """The weights of a block that LoRA may change: whose, the attribute, and what its equal ranges of rows are."""
    for part in block:
        for name, module in part.named_modules():
            if isinstance(getattr(module, "in_proj_weight", None), nn.Parameter):
                yield module, "in_proj_weight", _FUSED
            elif isinstance(module, nn.Linear):
                names = next((names for ending, names in _ENDINGS if f".{name}".endswith(f".{ending}")), None)
                if names is not None:
                    yield module, "weight", names


def _change(owner: nn.Module, change: LowRank) -> None:
    if isinstance(owner, nn.MultiheadAttention):
        kind: type[_Changed] = _ChangedAttention
    else:
        kind = _ChangedLinear if isinstance(owner, nn.Linear) else _ChangedProjection
    plain = type(owner)
    owner.__class__ = cast(type[_Changed], type(f"Changed{plain.__name__}", (kind, plain), {"plain_class": plain}))
    owner.lora = change


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add every LoRA change to its weight, and take the changes out of the model: it computes the same."""
    for module in list(model.modules()):
        if isinstance(module, _Changed):
            weight = module.frozen_weight()
            weight.copy_(weight.double() + module.lora.double()())  # rounded once
            del module.lora
            cast(nn.Module, module).__class__ = module.plain_class
