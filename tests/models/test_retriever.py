"""The retriever: one call, its logit scale, its parameter groups."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from glscl.errors import UserError
from glscl.models import ModelConfig, Retriever, head_names, tokenize

HEADS = {"glscl": {"queries": 2, "layers": 1, "attention_heads": 2, "feedforward": 16}}


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "retriever-test.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 1}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, _ = tokenize(["a red square", "blue", "a green circle moves"], 16)
    return (
        ids,
        torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8),
        torch.tensor([[1] * 4, [1, 1, 0, 0], [0] * 4]),
    )


@pytest.mark.parametrize("context", ["none", "transformer"])
@pytest.mark.parametrize("head", head_names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_gets_a_finite_gradient(clip: str, head: str, context: str, dtype: torch.dtype) -> None:
    config = ModelConfig.model_validate(
        {"clip": clip, "head": head, "heads": HEADS, "frame_context": context, "max_words": 16, "max_frames": 4}
    )
    model = Retriever(config).to(dtype)
    ids, frames, mask = _batch()
    text, video = model("text", ids), model("video", frames, mask)
    similarity = model("score", text, video)
    assert similarity.shape == (3, 3)
    assert similarity.dtype == torch.float32
    objective = (model("scale") * similarity).square().sum()
    if head == "uatvr":  # its distributions are read by loss terms alone
        objective = objective + sum(t.float().square().sum() for t in (*text.values(), *video.values()))
    elif model.head.detail is not None:
        objective = objective + model.head(text, video, detail=True).square().sum()
    objective.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_padded_frames_do_not_matter(clip: str) -> None:
    model = Retriever(ModelConfig.model_validate({"clip": clip, "heads": HEADS, "frame_context": "transformer"})).eval()
    _, frames, mask = _batch()
    other = frames.clone()
    other[1, 2:] = 255
    before, after = model.encode_video(frames, mask), model.encode_video(other, mask)
    text = model.encode_text(_batch()[0])
    assert torch.allclose(model.score(text, before)[:, 1], model.score(text, after)[:, 1], atol=1e-5)


def test_padding_that_is_attended_to_does_not_depend_on_its_bytes(clip: str) -> None:
    """`mask_padding: false` reads the padding: what it reads is the mean colour, not what a buffer happens to hold."""
    heads = {"glscl": {**HEADS["glscl"], "mask_padding": False}}
    torch.manual_seed(0)
    model = Retriever(ModelConfig.model_validate({"clip": clip, "heads": heads, "frame_context": "transformer"})).eval()
    _, frames, mask = _batch()
    other = frames.clone()
    other[mask == 0] = 255
    before, after = model.encode_video(frames, mask), model.encode_video(other, mask)
    assert all(torch.equal(before[name], after[name]) for name in before)
    shorter = model.encode_video(frames[:, :2], mask[:, :2])
    assert not torch.allclose(shorter["concepts"][1], before["concepts"][1], atol=1e-6), "padding is read"


@pytest.mark.parametrize(
    ("log_scale", "gradient", "passes"),
    [(1.0, -1.0, True), (1.0, 1.0, True), (5.0, -1.0, False), (5.0, 1.0, True)],
)
def test_logit_scale_is_at_most_100_and_can_come_back(
    clip: str, log_scale: float, gradient: float, passes: bool
) -> None:
    model = Retriever(ModelConfig.model_validate({"clip": clip, "head": "mean_pool"}))
    with torch.no_grad():
        model.logit_scale.fill_(log_scale)
    scale = model.scale()
    assert scale.item() == pytest.approx(min(math.exp(log_scale), 100.0), rel=1e-5)
    (gradient * scale).sum().backward()
    assert model.logit_scale.grad is not None
    assert model.logit_scale.grad.item() == pytest.approx(gradient * scale.item() if passes else 0.0)


def test_groups_hold_every_parameter_once(clip: str) -> None:
    model = Retriever(ModelConfig.model_validate({"clip": clip, "heads": HEADS, "frame_context": "transformer"}))
    groups = model.parameter_groups(0.2)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    assert [(group["name"], group["weight_decay"]) for group in groups] == [
        ("towers", 0.2),
        ("towers", 0.0),
        ("head", 0.2),
        ("head", 0.0),
    ]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name.startswith(("towers.", "logit_scale")) == (group["name"] == "towers")
            vector = name.endswith("bias") or "ln_" in name or "norm" in name or name == "logit_scale"
            assert not (vector and group["weight_decay"]), name
    counts = model.describe()
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert all(counts.values())


def test_configuration_errors_name_the_knob(clip: str) -> None:
    with pytest.raises(UserError, match=r"model\.max_words: 78"):
        Retriever(ModelConfig.model_validate({"clip": clip, "max_words": 78}))
    with pytest.raises(UserError, match="unknown head"):
        ModelConfig(head="glcsl")
    with pytest.raises(ValidationError, match="taux"):
        ModelConfig.model_validate({"heads": {"glscl": {"taux": 1}}})


def test_position_std_spreads_the_tables_that_nothing_was_learned_of(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Retriever(ModelConfig(clip="glscl-tiny", frame_context="transformer", position_std=0.4))
    assert model.towers.visual.positional_embedding.std().item() == pytest.approx(0.4, rel=0.1)
    assert model.frame_context is not None
    assert model.frame_context.position_embeddings.weight.std().item() == pytest.approx(0.4, rel=0.1)
    path = str(tmp_path / "towers.pt")
    torch.save(
        {name.removeprefix("towers."): t for name, t in model.state_dict().items() if "towers." in name}
        | {"logit_scale": model.logit_scale.detach()},
        path,
    )
    again = Retriever(ModelConfig(clip="glscl-tiny", pretrained=path, frame_context="transformer", position_std=0.2))
    assert torch.equal(again.towers.visual.positional_embedding, model.towers.visual.positional_embedding)
    assert again.frame_context is not None
    assert again.frame_context.position_embeddings.weight.std().item() == pytest.approx(0.2, rel=0.1)
    own = Retriever(ModelConfig(clip="glscl-tiny", pretrained=path, head="video_colbert", position_std=0.4))
    assert float(own.head.context.position_embeddings.weight.std()) == pytest.approx(0.4, rel=0.1)
    with pytest.raises(UserError, match=r"model\.position_std has no table to act on"):
        Retriever(ModelConfig(clip="ViT-B-32", pretrained="openai", position_std=0.4), load_weights=False)


def test_the_sigmoid_loss_needs_a_bias(clip: str) -> None:
    """SigLIP's towers bring one, which counts to the towers; with others it is an option, and counts to the head."""
    with pytest.raises(UserError, match=r"loss\.sigmoid: it needs a logit bias, and .* set model\.logit_bias"):
        Retriever(ModelConfig(clip=clip, head="mean_pool"))("bias")
    own = Retriever(ModelConfig(clip=clip, head="mean_pool", logit_bias=-4.0))
    assert own("bias").item() == -4.0
    theirs = Retriever(ModelConfig(clip="glscl-tiny-siglip", head="mean_pool"))
    assert theirs("bias").item() == -10.0
    for model, group in ((own, "head"), (theirs, "towers")):
        groups = model.parameter_groups(0.1)
        assert [g["name"] for g in groups if any(p is model.logit_bias for p in g["params"])] == [group]
        assert model.describe()["towers"] == sum(p.numel() for p in model.towers.parameters()) + 2
        assert "logit_bias" in model.state_dict()
        assert torch.equal(model.scale(), model.logit_scale.exp())
        model.scale().sum().backward()
        assert model.logit_bias.grad.item() == 0.0  # there, whatever the loss is
    assert "logit_bias" not in Retriever(ModelConfig(clip=clip, head="mean_pool")).state_dict()
