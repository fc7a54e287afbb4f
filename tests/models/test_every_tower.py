"""Every architecture of open_clip, built small, gives the sentence and frame features that open_clip itself gives."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from open_clip.factory import get_model_config
from torch import Tensor, nn

from glscl.commands.towers import run
from glscl.errors import UserError
from glscl.models import ModelConfig, Retriever
from glscl.models.architectures import find_architecture
from glscl.models.fingerprint import tower_fingerprint
from glscl.models.freezing import frozen_fingerprint
from glscl.models.overview import describe_architectures
from glscl.models.tokenizer import tokenize
from glscl.models.towers import Towers
from glscl.training.speed import tower_operations
from tests.models.small_towers import small_timm, write_small

ROWS = describe_architectures()
CAPTIONS = ["a red square moves left! and on, and on, and on", "blue", "!"]
FAMILIES = {
    "CLIP": "ViT-B-32", "CLIP, ResNet": "RN50", "SigLIP": "ViT-B-16-SigLIP", "SigLIP 2": "ViT-B-16-SigLIP2",
    "SigLIP without projection": "ViT-SO400M-16-SigLIP-i18n-256", "CoCa": "coca_ViT-B-32", "CLIPA": "ViT-L-14-CLIPA",
    "MetaCLIP worldwide": "ViT-H-14-worldwide", "RoBERTa": "roberta-ViT-B-32", "XLM": "xlm-roberta-base-ViT-B-32",
    "mT5": "mt5-base-ViT-B-32", "NLLB": "nllb-clip-base-siglip", "PE-Core": "PE-Core-B-16", "EVA02": "EVA02-B-16",
    "MobileCLIP 2": "MobileCLIP2-S3", "ViTamin": "ViTamin-S", "ConvNeXt": "convnext_base_w",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("towers")


def _towers(name: str, folder: Path, **options: Any) -> tuple[str, Towers]:
    """A small one, whose parameters are all far from zero, so that what any of them does is seen."""
    path = write_small(name, folder)
    torch.manual_seed(0)
    with small_timm():
        towers = Towers(path, **options).eval()
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return path, towers


def _open_clips_own(path: str, towers: Towers) -> nn.Module:
    """open_clip's model of that architecture as it makes it by itself, with the same weights."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.CRITICAL)
    with small_timm():
        model = open_clip.create_model(Path(path).stem, pretrained_text=False).eval()
    logging.getLogger().setLevel(level)
    names = towers.state_dict()
    if isinstance(model, open_clip.CLIP):
        names = {name.removeprefix("text."): tensor for name, tensor in names.items()}
    missing, unexpected = model.load_state_dict(names, strict=False)
    assert not unexpected
    assert all(name.startswith(("logit_", "text_decoder.")) for name in missing)
    return model


def _ids(name: str, config: dict[str, Any], words: int) -> tuple[Tensor, list[int]]:
    """Token ids of captions of every length, filled up as the architecture's tokenizer does; and their real tokens."""
    text = config["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        ids = tokenize(CAPTIONS, words)[0]
        return ids, [row.index(49407) + 1 for row in ids.tolist()]
    architecture = find_architecture(name)
    end, padding = text.get("eos_id", 1), architecture.padding
    if text.get("hf_model_name"):
        end, padding = (1, 0) if "mt5" in name else (2, 1)
    if text.get("tokenizer_kwargs", {}).get("strip_sep_token"):
        end = 0
    generator = torch.Generator().manual_seed(words)
    ids = torch.randint(3, 500, (3, words), generator=generator)
    real = [words, min(4, words), 2]
    for row, length in enumerate(real):
        ids[row, length - 1 :] = padding
        ids[row, length - 1] = end
    return ids, [length - (end == padding) for length in real]


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.refusal is None])
def test_features_are_open_clips_own(name: str, folder: Path) -> None:
    config = get_model_config(name)
    path, towers = _towers(name, folder)
    plain = _open_clips_own(path, towers)
    options = {"normalize": False}
    context = towers.context_length
    assert context == config["text_cfg"].get("context_length", 77)
    frames = torch.randint(0, 256, (1, 2, 3, towers.frame_size, towers.frame_size), dtype=torch.uint8)
    mean, std = (torch.tensor(towers.colours[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = plain.encode_image((frames.flatten(0, 1) / 255 - mean) / std, **options)
        _check(towers.encode_frames(frames, torch.ones(1, 2))[0], expected)
        for words in (5, 12, context):
            ids, real = _ids(name, config, words)
            sentence, tokens, mask = towers.encode_text(ids)
            padding = ids[2, -1].item()  # the caption of one word does not reach that far
            whole = torch.nn.functional.pad(ids, (0, context - words), value=padding)
            _check(sentence, plain.encode_text(whole, **options))
            assert tokens.shape == (3, words, towers.width)
            assert torch.equal(mask, torch.arange(words) < torch.tensor(real)[:, None])


def _check(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    largest = expected.abs().max().item()
    assert largest > 1e-3
    assert (found - expected).abs().max().item() <= 1e-5 * max(1.0, largest)


def test_nearly_all_are_accepted() -> None:
    accepted = [row.name for row in ROWS if row.refusal is None and not row.name.startswith("glscl-")]
    assert len(accepted) >= 134
    assert all(row.refusal for row in ROWS if row.name not in accepted and not row.name.startswith("glscl-"))


def _gradients(name: str, folder: Path, checkpointing: bool) -> dict[str, Tensor]:
    _, towers = _towers(name, folder, grad_checkpointing=checkpointing)
    ids, _ = _ids(name, get_model_config(name), 12)
    frames = torch.arange(2 * 3 * towers.frame_size**2).remainder(251).to(torch.uint8)
    frames = frames.view(1, 2, 3, towers.frame_size, towers.frame_size)
    towers.train()
    torch.manual_seed(0)  # dropout draws the same
    sentence, tokens, mask = towers.encode_text(ids)
    features = towers.encode_frames(frames, torch.ones(1, 2))
    (sentence.square().sum() + tokens[mask].sum() + features.square().sum()).backward()
    return {name: parameter.grad for name, parameter in towers.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns_with_recomputed_activations_too(family: str, folder: Path) -> None:
    name = FAMILIES[family]
    plain = _gradients(name, folder, False)
    assert plain.keys() == dict(_towers(name, folder)[1].named_parameters()).keys()
    assert all(grad.abs().max() > 0 for key, grad in plain.items() if not key.endswith("k_proj.bias"))  # cancels
    if family == "CLIP, ResNet":
        with pytest.raises(UserError, match=r"model\.grad_checkpointing: the image tower of .* cannot recompute"):
            _towers(name, folder, grad_checkpointing=True)
        return
    again = _gradients(name, folder, True)
    for key, grad in plain.items():
        assert torch.allclose(again[key], grad, rtol=1e-4, atol=1e-5 * grad.abs().max().item()), key


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_known_without_memory(family: str, folder: Path) -> None:
    path, towers = _towers(FAMILIES[family], folder)
    with small_timm(), torch.device("meta"):
        empty = Towers(path, load_weights=False, fetch=False).state_dict()
    assert all(tensor.is_meta for tensor in empty.values())
    assert {name: tensor.shape for name, tensor in empty.items()} == {
        name: tensor.shape for name, tensor in towers.state_dict().items()
    }
    model: Any = SimpleNamespace(towers=towers)
    assert 0 < tower_operations(model, 8, 2) < tower_operations(model, 8, 4)


@pytest.mark.parametrize("head", ["seq_transformer", "tight_transformer", "glscl"])
def test_heads_do_without_what_other_text_towers_have_not(head: str, folder: Path) -> None:
    """CLIP4Clip's parts start from CLIP's text tower; beside a text model of Hugging Face they start anew."""
    name = FAMILIES["RoBERTa"]
    options = {"head": head, "heads": {"glscl": {"attention_heads": 2, "queries": 2}}, "frame_context": "transformer"}
    with small_timm():
        model = Retriever(ModelConfig.model_validate({"clip": write_small(name, folder), "max_words": 8} | options))
    frames = torch.zeros(2, 3, 3, model.frame_size, model.frame_size, dtype=torch.uint8)
    text = model("text", _ids(name, get_model_config(name), 8)[0])
    assert model("score", text, model("video", frames, torch.ones(2, 3))).isfinite().all()


def test_the_command_lists_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in open_clip.factory._MODEL_CONFIGS if name.startswith("small-")]:
        monkeypatch.delitem(open_clip.factory._MODEL_CONFIGS, name)  # of other tests in this process
    assert run(["siglip2-512"], "glscl towers") == "3 of 3 architectures accepted"
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["architecture", "tokens", "weights", "frame", "width", "words"]
    assert first.split() == ["ViT-B-16-SigLIP2-512", "timm/ViT-B-16-SigLIP2-512", "webli", "512", "768", "64"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-odd", {"embed_dim": 8, "audio_cfg": {}})
    assert run(["vit-odd"], "glscl towers") == "0 of 1 architectures accepted"
    assert "ViT-odd: refused, it has no text_cfg" in capsys.readouterr().out
    with pytest.raises(UserError, match="no architecture with 'nothing'"):
        run(["nothing"], "glscl towers")


def _retriever(family: str, folder: Path, **model: Any) -> Retriever:
    clip = write_small(FAMILIES[family], folder)
    torch.manual_seed(0)
    with small_timm():
        values = {"clip": clip, "head": "mean_pool", "max_words": 8, "max_frames": 2}
        return Retriever(ModelConfig.model_validate(values | model))


def _encode(model: Retriever, family: str) -> list[Tensor]:
    name, size = FAMILIES[family], model.frame_size
    frames = torch.arange(2 * 3 * size**2).remainder(251).to(torch.uint8).view(1, 2, 3, size, size)
    sentence, tokens, _ = model.towers.encode_text(_ids(name, get_model_config(name), 8)[0])
    return [sentence, tokens, model.towers.encode_frames(frames, torch.ones(1, 2))]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tower_can_be_frozen_and_adapted(family: str, folder: Path) -> None:
    plain = _retriever(family, folder).eval()
    frozen = {"freeze": "towers"}
    models = [_retriever(family, folder, **frozen, unfreeze_blocks=1)]
    lora = {"adapters": {"lora_rank": 2, "lora_targets": "query,value,mlp"}}
    if family == "CLIP, ResNet":
        with pytest.raises(UserError, match=r"model\.adapters\.lora_targets: the blocks of the image tower"):
            _retriever(family, folder, **frozen, **lora)
    else:
        models.append(_retriever(family, folder, **frozen, **lora))
    for model in models:
        with torch.no_grad():
            for found, expected in zip(_encode(model.eval(), family), _encode(plain, family), strict=True):
                assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
        torch.stack([part.square().sum() for part in _encode(model.train(), family)]).sum().backward()
        given = dict(model.towers.named_parameters())
        trained = {name for name, parameter in given.items() if parameter.requires_grad}
        assert trained == {name for name, parameter in given.items() if parameter.grad is not None}
        assert {name.partition(".")[0] for name in trained} == {"text", "visual"}
        assert trained < given.keys()
        assert frozen_fingerprint(model, model.config)
    still = _retriever(family, folder, **frozen)
    assert tower_fingerprint(still.towers) == tower_fingerprint(plain.towers)
    with torch.no_grad():
        next(still.towers.text.parameters()).add_(0.1)
    assert tower_fingerprint(still.towers) != tower_fingerprint(plain.towers)
