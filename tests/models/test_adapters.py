"""Adapters by their equations: LoRA is a changed weight, a bottleneck a residual network; both start as nothing."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from glscl.models import Retriever
from glscl.models.adapters import AdapterConfig, LowRank, add_adapters, merge_lora
from glscl.models.freezing import group_of
from tests.models.test_freezing import TEXT, VIT, build, timm
from tests.training.ranks import global_batch

ALL = {"lora_rank": 2, "lora_alpha": 3.0, "lora_targets": "query,key,value,output,mlp"}
SCALE = 1.5
TOWERS = {
    "open_clip": (VIT, TEXT),
    "query and key norms": (VIT | {"qk_norm": True}, TEXT | {"qk_norm": True}),  # a fused projection that is no layer
    "timm": (timm("test_vit", 160), TEXT),
}


def _features(model: Retriever) -> tuple[Tensor, ...]:
    batch, size = global_batch(), model.frame_size
    frames = torch.randint(0, 256, (2, 2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sentence, tokens, _ = model.towers.encode_text(*batch.text)
    return sentence, tokens, model.towers.encode_frames(frames, torch.ones(2, 2))


def _stir(model: nn.Module) -> None:
    """Take adapters away from where they start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def _distance(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))


def _delta(change: LowRank) -> Tensor:
    """``scale · B A`` in fp64, number by number of rows: again, in plain loops."""
    rank = change.b.shape[2]
    size = change.b.shape[1]
    delta = torch.zeros(change._rows, change.a.shape[1], dtype=torch.float64)
    for place, part in enumerate(change._changed):
        for row in range(size):
            for inner in range(rank):
                b, a = change.b[place, row, inner].double(), change.a[place * rank + inner].double()
                delta[part * size + row] += SCALE * b * a
    return delta


@pytest.mark.parametrize("adapters", [ALL, {"bottleneck": 3}], ids=["lora", "bottleneck"])
@pytest.mark.parametrize("name", TOWERS)
def test_adapters_start_as_nothing(tmp_path: Path, name: str, adapters: dict[str, Any]) -> None:
    plain = build(tmp_path, *TOWERS[name]).eval()
    model = build(tmp_path, *TOWERS[name], freeze="towers", adapters=adapters)
    given = dict(model.named_parameters())
    assert all(torch.equal(given[key], value) for key, value in plain.named_parameters()), "names stay, and the draws"
    assert _distance(_features(model), _features(plain)) < 1e-5
    new = given.keys() - dict(plain.named_parameters()).keys()
    assert {group_of(key, model.config) for key in new} == {"adapters"}
    assert {key for key, value in given.items() if value.requires_grad and key.startswith("towers.")} == new
    _stir(model)
    assert _distance(_features(model), _features(plain)) > 0.05


@pytest.mark.parametrize("double", [False, True], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", TOWERS)
def test_lora_is_a_changed_weight_and_merging_is_exact(tmp_path: Path, name: str, double: bool) -> None:
    plain = build(tmp_path, *TOWERS[name]).eval()
    model = build(tmp_path, *TOWERS[name], freeze="towers", adapters=ALL).eval()
    if double:
        plain.double(), model.double()
    _stir(model)
    weights = plain.state_dict()
    blocks = sum(type(block).__name__ in ("ResidualAttentionBlock", "Block") for block in model.modules())
    blocks += sum(type(block).__name__ == "CustomResidualAttentionBlock" for block in model.modules())
    changes = {key: module for key, module in model.named_modules() if isinstance(module, LowRank)}
    assert len(changes) == 4 * blocks, "two projections of the attention and two of the network behind it"
    for key, change in changes.items():
        owner = key.removesuffix(".lora")
        weight = f"{owner}.in_proj_weight" if f"{owner}.in_proj_weight" in weights else f"{owner}.weight"
        weights[weight].copy_(weights[weight].double() + _delta(change))
    plain.load_state_dict(weights)
    expected, tolerance = _features(plain), 1e-12 if double else 1e-6
    assert _distance(_features(model), expected) < (1e-12 if double else 5e-6)
    merge_lora(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert _distance(_features(model), expected) < tolerance


def test_the_gradients_of_lora_are_those_of_the_changed_weight(tmp_path: Path) -> None:
    """``dB = s · dW Aᵀ`` and ``dA = s · Bᵀ dW``, with dW of the same model whose weights are changed."""
    model = build(tmp_path, freeze="towers", adapters=ALL).double()
    _stir(model)
    changes = {key.removesuffix(".lora"): m for key, m in model.named_modules() if isinstance(m, LowRank)}
    sum(((i + 1) * feature.square().sum() for i, feature in enumerate(_features(model))), torch.zeros(())).backward()
    merged = build(tmp_path, freeze="towers", adapters=ALL).double()
    merged.load_state_dict(model.state_dict())
    merge_lora(merged)
    merged.requires_grad_(True)
    sum(((i + 1) * feature.square().sum() for i, feature in enumerate(_features(merged))), torch.zeros(())).backward()
    for owner, change in changes.items():
        module = merged.get_submodule(owner)
        weight = cast(
            Tensor, getattr(module, "in_proj_weight", None) if hasattr(module, "in_proj_weight") else module.weight
        )
        assert weight.grad is not None
        rank, size = change.b.shape[2], change.b.shape[1]
        for place, part in enumerate(change._changed):
            to_rows = weight.grad[part * size : (part + 1) * size]
            a, b = change.a[place * rank : (place + 1) * rank], change.b[place]
            assert change.a.grad is not None
            assert change.b.grad is not None
            torch.testing.assert_close(change.b.grad[place], SCALE * to_rows @ a.T, rtol=1e-8, atol=1e-9)
            to_a = change.a.grad[place * rank : (place + 1) * rank]
            torch.testing.assert_close(to_a, SCALE * b.T @ to_rows, rtol=1e-8, atol=1e-9)


def test_a_weight_that_is_read_and_never_called_is_changed_too(tmp_path: Path) -> None:
    """EVA's fused projection with biases: the attention multiplies by the layer's weight itself."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    tower = nn.ModuleDict({"trunk": Eva(**sizes, qkv_fused=True)}).eval().requires_grad_(False)
    config = AdapterConfig.model_validate(ALL | {"lora_targets": "query,value"})
    add_adapters({"the tower": (tower, ())}, config)
    trunk, x = tower["trunk"], torch.randn(2, 3, 32, 32)
    before = trunk(x)
    _stir(tower)
    changed = trunk(x)
    assert not torch.allclose(changed, before, atol=1e-2)
    changed.sum().backward()
    found = [m for m in tower.modules() if isinstance(m, LowRank)]
    assert len(found) == sizes["depth"]
    assert all(m.b.grad is not None and m.b.grad.abs().min() > 0 for m in found), "query and value, each row"
    merge_lora(tower)
    torch.testing.assert_close(trunk(x), changed, rtol=1e-5, atol=1e-5)


def test_a_bottleneck_follows_every_frozen_block(tmp_path: Path) -> None:
    model = build(tmp_path, freeze="image", adapters={"bottleneck": 3}, unfreeze_blocks=1)
    blocks = model.towers.visual.transformer.resblocks
    assert [hasattr(block, "bottleneck") for block in blocks] == [True, True, False], "the last one is trained itself"
    _stir(model)
    x = torch.randn(2, 5, 16)
    plain = build(tmp_path).towers.visual.transformer.resblocks[0](x)
    mean, deviation = plain.mean(-1, keepdim=True), (plain.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    own = blocks[0].bottleneck
    norm = (plain - mean) / deviation * own.norm.weight + own.norm.bias
    inner = norm @ own.down.weight.T + own.down.bias
    inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    torch.testing.assert_close(blocks[0](x), plain + inner @ own.up.weight.T + own.up.bias, rtol=1e-4, atol=1e-5)


def test_lora_starts_as_its_authors_start_it() -> None:
    """A is uniform between ±1/√width, B is zero."""
    torch.manual_seed(0)
    change = LowRank(rows=30, width=64, parts=3, changed=(0, 2), rank=8, scale=1.0)
    assert change.b.shape == (2, 10, 8)
    assert change.b.abs().max() == 0
    assert change.a.abs().max().item() == pytest.approx(1 / 8, rel=0.05)
    assert change.a.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_computed_again_give_the_same_gradients(tmp_path: Path, checkpointing: bool) -> None:
    grads = []
    for again in (False, checkpointing):
        model = build(tmp_path, freeze="towers", adapters=ALL | {"bottleneck": 3}, grad_checkpointing=again).train()
        _stir(model)
        sum((feature.square().sum() for feature in _features(model)), torch.zeros(())).backward()
        grads.append([p.grad for p in model.towers.parameters() if p.requires_grad])
    assert all(g is not None for g in grads[0])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_targets_of_a_configuration() -> None:
    assert AdapterConfig().targets == ("query", "value")
    assert AdapterConfig(lora_targets=" mlp, output").targets == ("mlp", "output")
    assert not AdapterConfig(lora_alpha=3.0).are_on
    assert SimpleNamespace(**AdapterConfig(bottleneck=4).model_dump()).lora_rank is None
