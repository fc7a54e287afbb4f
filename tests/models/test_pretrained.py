"""Weights that would load into the wrong architecture and be wrong are refused, whatever gives them away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import pretrained as open_clip_pretrained
from safetensors.torch import save_file

from glscl.errors import UserError
from glscl.models.hub import DESCRIPTION
from glscl.models.towers import Towers
from glscl.runs.execution import export_towers

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
HALVES = (
    "in_proj_weight",
    "out_proj.weight",
    "c_fc.weight",
    "c_proj.weight",
    "conv1.weight",
    "text_projection",
    ".proj",
)
THREE = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """An architecture that open_clip has twice, as it has ViT-B-32: with GELU, and with QuickGELU."""
    folder = tmp_path / "architectures"
    folder.mkdir()
    (folder / "twin.json").write_text(json.dumps(TINY))
    (folder / "twin-quickgelu.json").write_text(json.dumps(TINY | {"quick_gelu": True}))
    open_clip.add_model_config(folder / "twin-quickgelu.json")
    return str(folder / "twin.json")


def _state(clip: str) -> dict[str, torch.Tensor]:
    Towers(clip)
    torch.manual_seed(0)
    return dict(open_clip.create_model("twin").state_dict())


class QuickGELU(torch.nn.Module):
    """What OpenAI's archives hold under this name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


def _archive(state: dict[str, torch.Tensor], path: Path, activation: torch.nn.Module) -> None:
    archive = torch.nn.Module()
    for name, tensor in state.items():
        *folders, leaf = name.split(".")
        module = archive
        for folder in folders:
            if not hasattr(module, folder):
                module.add_module(folder, torch.nn.Module())
            module = getattr(module, folder)
        module.register_buffer(leaf, tensor)
    archive.add_module("gelu", activation)
    torch.jit.save(torch.jit.script(archive), path)


def _half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Types as OpenAI's ``convert_weights`` leaves them."""
    return {name: tensor.half() if name.endswith(HALVES) else tensor for name, tensor in state.items()}


def _integers() -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in THREE.items()}


def _write_sidecar(folder: Path, quick_gelu: bool = True, **more: Any) -> None:
    config = TINY | {"quick_gelu": quick_gelu} | more.pop("model_cfg", {})
    (folder / DESCRIPTION).write_text(json.dumps({"model_cfg": config} | more))


WRITERS: dict[str, Callable[[dict[str, torch.Tensor], Path], Path]] = {}


def _writer(function: Callable[[dict[str, torch.Tensor], Path], Path]) -> None:
    WRITERS[function.__name__] = function


@_writer
def archive_with_the_activation(state: dict[str, torch.Tensor], folder: Path) -> Path:
    _archive(state, folder / "ViT-B-32.pt", QuickGELU())
    return folder / "ViT-B-32.pt"


@_writer
def archive_with_the_integers(state: dict[str, torch.Tensor], folder: Path) -> Path:
    _archive(state | _integers(), folder / "ViT-B-32.pt", torch.nn.Identity())
    return folder / "ViT-B-32.pt"


@_writer
def state_with_the_integers(state: dict[str, torch.Tensor], folder: Path) -> Path:
    torch.save(state | _integers(), folder / "state.pt")
    return folder / "state.pt"


@_writer
def types_of_openai(state: dict[str, torch.Tensor], folder: Path) -> Path:
    save_file(_half(state), folder / "half.safetensors")
    return folder / "half.safetensors"


@_writer
def configuration_beside_them(state: dict[str, torch.Tensor], folder: Path) -> Path:
    _write_sidecar(folder)
    save_file(state, folder / "open_clip_model.safetensors")
    return folder / "open_clip_model.safetensors"


@_writer
def towers_that_a_study_exported(state: dict[str, torch.Tensor], folder: Path) -> Path:
    save_file(state, folder / "towers.safetensors", metadata={"quick_gelu": "True"})
    return folder / "towers.safetensors"


@pytest.mark.parametrize("kind", WRITERS)
def test_quick_gelu_weights_are_refused_by_a_gelu_architecture(clip: str, tmp_path: Path, kind: str) -> None:
    path = str(WRITERS[kind](_state(clip), tmp_path))
    with pytest.raises(UserError, match=r"trained with QuickGELU \(.*\), and twin computes GELU.*to twin-quickgelu$"):
        Towers(clip, path, trust_pickle=True)
    towers = Towers("twin-quickgelu", path, trust_pickle=True)
    assert towers.activation == ", computed with QuickGELU"
    assert torch.equal(towers.text.ln_final.weight, torch.ones(16))


@pytest.mark.parametrize("beside", [True, False])
def test_gelu_weights_are_refused_by_a_quick_gelu_architecture(clip: str, tmp_path: Path, beside: bool) -> None:
    path = tmp_path / "w.safetensors"
    save_file(_state(clip), path, metadata=None if beside else {"quick_gelu": "False"})
    if beside:
        _write_sidecar(tmp_path, quick_gelu=False)
    with pytest.raises(UserError, match=r"trained with GELU .*, and twin-quickgelu computes QuickGELU.*to twin$"):
        Towers("twin-quickgelu", str(path))
    Towers(clip, str(path))


def test_an_architecture_without_a_twin_names_its_configuration(tmp_path: Path) -> None:
    path = tmp_path / "alone.json"
    path.write_text(json.dumps(TINY))
    Towers(str(path))
    weights = tmp_path / "w.safetensors"
    save_file(_half(dict(open_clip.create_model("alone").state_dict())), weights)
    with pytest.raises(UserError, match=r'set "quick_gelu": true in the configuration that model\.clip names'):
        Towers(str(path), str(weights))


def test_what_a_file_cannot_say_is_said_before_the_start(clip: str, tmp_path: Path) -> None:
    save_file(_state(clip), tmp_path / "w.safetensors")
    assert Towers(clip, str(tmp_path / "w.safetensors")).activation == (
        ", computed with GELU (OpenAI's weights need twin-quickgelu)"
    )
    assert Towers(clip).activation == ""


@pytest.mark.parametrize(
    ("section", "key", "value"), [("vision_cfg", "image_size", 48), ("text_cfg", "context_length", 16)]
)
def test_position_tables_are_not_stretched(clip: str, tmp_path: Path, section: str, key: str, value: int) -> None:
    """open_clip interpolates them without a word."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps(TINY | {section: TINY[section] | {key: value}}))
    Towers(str(other))
    path = tmp_path / "w.safetensors"
    save_file(dict(open_clip.create_model("other").state_dict()), path)
    with pytest.raises(UserError, match=r"cannot be loaded into twin .*size mismatch.*positional_embedding"):
        Towers(clip, str(path))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"vision_cfg": TINY["vision_cfg"] | {"head_width": 8}}, r"vision_cfg.head_width 8, and twin has 16"),
        ({"text_cfg": TINY["text_cfg"] | {"pool_type": "last"}}, r"text_cfg.pool_type last, and twin has argmax"),
        ({"text_cfg": TINY["text_cfg"] | {"no_causal_mask": True}}, r"no_causal_mask True, and twin has False"),
    ],
)
def test_what_no_tensor_shows_is_compared_with_the_configuration_beside(
    clip: str, tmp_path: Path, more: dict[str, Any], says: str
) -> None:
    save_file(_state(clip), tmp_path / "w.safetensors")
    _write_sidecar(tmp_path, quick_gelu=False, model_cfg=more)
    with pytest.raises(UserError, match=DESCRIPTION + " says .*" + says):
        Towers(clip, str(tmp_path / "w.safetensors"))


def test_weights_of_other_colours_are_refused(clip: str, tmp_path: Path) -> None:
    save_file(_state(clip), tmp_path / "w.safetensors")
    _write_sidecar(tmp_path, quick_gelu=False, preprocess_cfg={"mean": [0.5] * 3, "std": [0.5] * 3})
    with pytest.raises(UserError, match=r"colours of another mean \(0\.5000 0\.5000 0\.5000, open_clip_config\.json\)"):
        Towers(clip, str(tmp_path / "w.safetensors"))


def test_an_architecture_whose_weights_all_share_their_colours_keeps_them_for_files(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as MobileCLIP's, whose pictures are not normalised; open_clip would take OpenAI's colours for any file."""
    colours = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, "twin", {"a": {"file": "a", **colours}})
    save_file(_state(clip), tmp_path / "w.safetensors")
    for load in (True, False):  # also where a saved model is rebuilt
        towers = Towers(clip, str(tmp_path / "w.safetensors"), load_weights=load)
        assert (towers._mean, towers._std) == ((0.0,) * 3, (255.0,) * 3)
    other = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    monkeypatch.setitem(
        open_clip_pretrained._PRETRAINED, "twin", {"a": {"file": "a", **colours}, "b": {"file": "b", **other}}
    )
    assert Towers(clip, str(tmp_path / "w.safetensors"))._mean[0] == pytest.approx(255 * 0.48145466)


def test_exported_towers_say_what_they_were_trained_with(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study's pretraining from a tag computes QuickGELU under the name of a GELU architecture; its cells must not."""
    from glscl.models import ModelConfig, Retriever
    from glscl.runs import execution

    save_file(_state(clip), tmp_path / "w.safetensors")
    tag = {"file": str(tmp_path / "w.safetensors"), "quick_gelu": True}
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, "twin", {"special": tag})
    model = Retriever(ModelConfig(clip=clip, pretrained="special", head="mean_pool"))
    monkeypatch.setattr(execution, "load_model", lambda uri: (model, None))
    export_towers("a run", str(tmp_path / "towers.safetensors"))
    with pytest.raises(UserError, match=r"trained with QuickGELU \(its own header\), and twin computes GELU"):
        Towers(clip, str(tmp_path / "towers.safetensors"))
    towers = Towers("twin-quickgelu", str(tmp_path / "towers.safetensors"))
    assert torch.equal(towers.text.token_embedding.weight, model.towers.text.token_embedding.weight)
