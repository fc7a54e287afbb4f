"""What is frozen runs without graph and in evaluation mode, what is trained is what the configuration says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from glscl.errors import UserError
from glscl.models import ModelConfig, Retriever
from glscl.models.freezing import describe_training, frozen_fingerprint, trained_state
from glscl.options.mistakes import describe_mistake
from glscl.training.config import RunConfig
from glscl.training.speed import tower_operations
from tests.training.ranks import FRAMES, WORDS, global_batch

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
VIT = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 3}
ADAPTERS = {"lora_rank": 2, "bottleneck": 3}


def build(folder: Path, vision: dict[str, Any] = VIT, text: dict[str, Any] = TEXT, **model: Any) -> Retriever:
    path = folder / "freezing-test.json"
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    torch.manual_seed(0)
    values = {"clip": str(path), "head": "xpool", "heads": {"xpool": {"attention_heads": 2}}}
    return Retriever(ModelConfig.model_validate(values | {"max_words": WORDS, "max_frames": FRAMES} | model))


def timm(name: str, size: int) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear", "image_size": size}


def _trained(model: Retriever, prefix: str = "towers.") -> set[str]:
    """What is trained of the towers, by the names of their parts."""
    names = [name.removeprefix(prefix) for name, p in model.named_parameters() if p.requires_grad]
    return {name for name in names if not name.startswith(("head.", "logit_scale"))}


def test_what_each_value_freezes(tmp_path: Path) -> None:
    whole = build(tmp_path)
    for freeze, frozen in (
        ("none", ()),
        ("image", ("visual.",)),
        ("text", ("text.",)),
        ("towers", ("visual.", "text.")),
    ):
        model = build(tmp_path, freeze=freeze)
        expected = {name for name in _trained(whole) if not name.startswith(frozen)}
        assert _trained(model) == expected
        others = [p for name, p in model.named_parameters() if not name.startswith("towers.")]
        assert all(p.requires_grad for p in others), "head and logit scale"
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))
        listed = [id(p) for group in model.parameter_groups(0.2) for p in group["params"]]
        assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_the_last_blocks_are_trained_with_what_follows_them(tmp_path: Path) -> None:
    model = build(tmp_path, freeze="towers", unfreeze_blocks=2)
    expected = {name for name in _trained(build(tmp_path)) if any(f"resblocks.{block}." in name for block in (1, 2))}
    after = {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"}
    after |= {"text.ln_final.weight", "text.ln_final.bias", "text.text_projection"}
    assert _trained(model) == expected | after


@pytest.mark.parametrize(
    ("vision", "first", "after"),
    [
        (timm("test_vit", 160), "visual.trunk.blocks.5.", "visual.trunk.norm.weight"),
        (timm("test_convnext", 160), "visual.trunk.stages.3.blocks.1.", "visual.trunk.head.norm.weight"),
        ({"image_size": 64, "layers": [1, 1, 1, 2], "width": 8}, "visual.layer4.1.", "visual.attnpool.c_proj.weight"),
    ],
    ids=["timm vit", "timm convnext", "resnet"],
)
def test_the_last_block_of_other_towers(tmp_path: Path, vision: dict[str, Any], first: str, after: str) -> None:
    """The last block and what follows it, the projection included; batch norms of what is frozen stay as they are."""
    model = build(tmp_path, vision, freeze="image", unfreeze_blocks=1)
    trained = {name for name in _trained(model) if name.startswith("visual.")}
    assert after in trained
    following = ("visual.trunk.norm", "visual.trunk.head", "visual.head", "visual.trunk.fc_norm", "visual.attnpool")
    assert {name for name in trained if not name.startswith(following)} == {
        name for name, _ in model.towers.named_parameters() if name.startswith(first)
    }
    before = {name: buffer.clone() for name, buffer in model.towers.visual.named_buffers()}
    size = model.frame_size
    frames = torch.randint(0, 256, (2, 2, 3, size, size), dtype=torch.uint8)
    model.train()
    features = model.towers.encode_frames(frames, torch.ones(2, 2))
    features.sum().backward()
    missing = [name for name in trained if model.towers.get_parameter(name).grad is None]
    assert missing == []
    moved = {name for name, buffer in model.towers.visual.named_buffers() if not torch.equal(buffer, before[name])}
    assert all(f"visual.{name}".startswith((first, *following)) for name in moved)


@pytest.mark.parametrize(
    "more", [{}, {"unfreeze_blocks": 1}, {"adapters": ADAPTERS}], ids=["frozen", "last", "adapters"]
)
def test_frozen_parts_are_in_evaluation_mode(tmp_path: Path, more: dict[str, Any]) -> None:
    model = build(tmp_path, freeze="towers", **more)
    for training in (True, False, True):
        assert model.train(training) is model
        assert all(module.training == training for module in model.head.modules())
        for name, module in model.towers.named_modules():
            if not name:
                continue  # what holds both towers
            last = "unfreeze_blocks" in more and ("resblocks.2" in name or "ln_post" in name or "ln_final" in name)
            assert module.training == (training and last), name


@pytest.mark.parametrize("head_only", [False, True], ids=["frozen", "head_only"])
def test_nothing_is_kept_for_a_backward_pass(tmp_path: Path, head_only: bool) -> None:
    """Neither through frozen towers nor, while the head alone is trained, through towers that will be trained."""
    model = build(tmp_path, freeze="none" if head_only else "towers")
    model.head_only = head_only
    model.train()
    for tower in (model.towers.visual, model.towers.text):
        assert not any(module.training for module in tower.modules())
    batch = global_batch()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        tokens = model.towers.encode_text(*batch.text) if not head_only else ()
        frames = model.towers.encode_frames(batch.frames, batch.frame_mask) if not head_only else None
        assert kept == []
        caches = model("text", *batch.text), model("video", batch.frames, batch.frame_mask)
    assert all(not tensor.requires_grad for tensor in tokens)
    assert frames is None or not frames.requires_grad
    assert len(kept) < 40, "the head's alone"
    model.score(*caches).sum().backward()
    assert all(p.grad is None for p in model.towers.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
    model.head_only = False
    model.train()
    assert model.towers.visual.training == head_only


def test_the_fingerprint_is_of_what_is_frozen(tmp_path: Path) -> None:
    assert frozen_fingerprint(build(tmp_path), ModelConfig()) is None
    model = build(tmp_path, freeze="image", adapters=ADAPTERS)
    before = frozen_fingerprint(model, model.config)
    assert before == frozen_fingerprint(build(tmp_path, freeze="image"), model.config), "adapters are not frozen"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert frozen_fingerprint(model, model.config) == before
    with torch.no_grad():
        model.towers.visual.conv1.weight[0, 0, 0, 0] += 1e-3
    assert frozen_fingerprint(model, model.config) != before
    model.towers.drop()
    assert frozen_fingerprint(model, model.config) is None, "of a model of features, the towers' own fingerprint counts"


def test_a_model_is_whole_from_its_frozen_weights_and_its_trained_state(tmp_path: Path) -> None:
    model = build(tmp_path, freeze="towers", adapters=ADAPTERS, unfreeze_blocks=1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand_like(parameter))
    other = build(tmp_path, freeze="towers", adapters=ADAPTERS, unfreeze_blocks=1)
    other.load_state_dict(trained_state(model), strict=False)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    share = sum(tensor.numel() for tensor in trained_state(model).values()) / sum(p.numel() for p in model.parameters())
    assert share < 0.05


def test_the_log_says_what_is_trained(tmp_path: Path) -> None:
    model = build(tmp_path, freeze="towers", unfreeze_blocks=1)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    says = describe_training(model, model.config)
    assert says.startswith(f"{count / 1e6:.2f} M of {total / 1e6:.2f} M parameters (towers 0.0")
    assert says.endswith("; frozen: image tower and text tower but for the last 1 block")


def test_operations_count_what_is_trained(tmp_path: Path) -> None:
    """A frozen tower is run forward alone; with adapters the products for frozen matrices' gradients fall away."""
    whole, frozen, adapted = (
        tower_operations(build(tmp_path, **model), WORDS, FRAMES)
        for model in ({}, {"freeze": "towers"}, {"freeze": "towers", "adapters": {"lora_rank": 1}})
    )
    assert frozen * 3 == whole
    assert 1.4 < adapted / frozen < 2.4


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"freeze": "all"}, "model.freeze = 'all': Input should be 'none', 'towers', 'image' or 'text'"),
        ({"freeze": "text", "adapters": {"lora_rank": 0}}, "model.adapters.lora_rank = 0: Input should be greater"),
        (
            {"adapters": {"lora_targets": "query,values"}},
            "'values' is none of query, key, value, output, mlp, did you mean",
        ),
        ({"adapters": {"lora_targets": "mlp,mlp"}}, "a projection is given twice"),
    ],
)
def test_what_makes_no_sense_is_refused(model: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as raised:
        RunConfig.model_validate({"model": model})
    assert says in describe_mistake(raised.value, RunConfig)


@pytest.mark.parametrize(
    ("vision", "model", "says"),
    [
        (
            VIT,
            {"unfreeze_blocks": 2},
            r"model\.unfreeze_blocks is for frozen towers: set model\.freeze to towers, image",
        ),
        (
            VIT,
            {"adapters": {"lora_rank": 2}},
            r"model\.adapters is for frozen towers: set model\.freeze to towers, image",
        ),
        (
            VIT,
            {"freeze": "text", "trust_pickle": True},
            r"model\.pretrained as safetensors, and leave model\.trust_pickle",
        ),
        (
            VIT,
            {"freeze": "text", "unfreeze_blocks": 4},
            r"model\.unfreeze_blocks: 4 is more than the 3 blocks of the text",
        ),
        (
            {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
            {"freeze": "image", "adapters": {"lora_rank": 2}},
            r"model\.adapters\.lora_targets: the blocks of the image tower of \S+ have no projections query, value",
        ),
        (
            {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
            {"freeze": "image", "adapters": {"bottleneck": 2}},
            r"model\.adapters\.bottleneck: .* \(ModifiedResNet\) give feature maps, and a bottleneck takes tokens",
        ),
        (
            timm("test_convnext", 160),
            {"freeze": "image", "adapters": {"lora_rank": 2, "lora_targets": "mlp,key"}},
            r"model\.adapters\.lora_targets: no block of the image tower of \S+ has key",
        ),
    ],
    ids=[
        "nothing frozen",
        "nothing to adapt",
        "pickle",
        "too many",
        "lora in a resnet",
        "bottleneck in a resnet",
        "one projection",
    ],
)
def test_what_a_tower_cannot_do_is_refused(
    tmp_path: Path, vision: dict[str, Any], model: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as raised:
        build(tmp_path, vision, **model)
    assert "\n" not in str(raised.value)


def test_a_tower_without_known_blocks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glscl.models.blocks._LISTS", ("trunk.blocks",))
    with pytest.raises(
        UserError, match=r"model\.unfreeze_blocks: the text tower of .* \(TokenTextTransformer\) has no"
    ):
        build(tmp_path, freeze="text", unfreeze_blocks=1)
