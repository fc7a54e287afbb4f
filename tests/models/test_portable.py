"""Models of towers whose name does not say all: addresses as open_clip spells them, export, reload, foreign cards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import torch
from open_clip.factory import get_model_config
from safetensors.torch import save_file

from glscl.errors import UserError
from glscl.evaluation.saved import ModelCard, check_weights, load_model, load_tokenizer, save_model
from glscl.models import ModelConfig, Retriever
from glscl.models.caption_tokenizer import build_tokenizer
from glscl.models.freezing import frozen_fingerprint, trained_state
from glscl.models.towers import Towers
from glscl.retrieval.export import export_model
from glscl.runs.execution import export_towers
from tests.models.small_tokenizers import write_tokenizer
from tests.models.small_towers import small_timm, write_small, write_text_model

CAPTIONS = ["a red square moves left", "blue"]


def _card(config: ModelConfig) -> ModelCard:
    return ModelCard(
        model=config, sample_fps=1.0, decoder="pyav", train_domains=(), step=0, seed=0, run="run", validation={}
    )


def _config(name: str, tmp_path: Path) -> ModelConfig:
    """A small model of an architecture, with a tokenizer (and a text model) of its own where it needs one."""
    clip, tokenizer = write_small(name, tmp_path), None
    text = get_model_config(name)["text_cfg"]
    if text.get("hf_tokenizer_name"):
        kind = "siglip2" if "SigLIP2" in name else "clipa" if "CLIPA" in name else "xlm"
        tokenizer = write_tokenizer(tmp_path / "tokenizer", kind)
    if text.get("hf_model_name"):
        write_text_model(tmp_path / "tokenizer", "xlm-roberta")
        config = json.loads(Path(clip).read_text())
        config["text_cfg"]["hf_model_name"] = text["hf_model_name"]  # as the hub has it, found in the folder
        Path(clip).write_text(json.dumps(config))
    options = {"head": "mean_pool", "max_words": 16, "max_frames": 2}
    spread = {"position_std": 0.4} if name == "ViT-L-14-CLIPA" else {}  # what only a start from random weights reads
    return ModelConfig.model_validate({"clip": clip, "tokenizer": tokenizer} | options | spread)


@pytest.mark.parametrize(
    "name",
    ["ViT-B-16-SigLIP2", "coca_ViT-B-32", "ViT-L-14-CLIPA", "xlm-roberta-base-ViT-B-32", "PE-Core-B-16", "RN50"],
)
def test_a_trained_model_is_whole(name: str, tmp_path: Path) -> None:
    """It is loaded where nothing is left of the folders that it was made from, and gives the same features."""
    config = _config(name, tmp_path)
    with small_timm():
        torch.manual_seed(0)
        model = Retriever(config).eval()
        save_model(str(tmp_path / "model"), _card(config), model.state_dict())
        ids, _ = build_tokenizer(config)(CAPTIONS)
        kept = sorted(path.name for path in (tmp_path / "model").iterdir())
        if config.tokenizer:
            shutil.rmtree(config.tokenizer)
            Path(config.clip).write_text("{}")
            assert kept == ["model.json", "towers", "weights.safetensors"]
        else:
            assert kept == ["model.json", "weights.safetensors"]
        again, card = load_model(str(tmp_path / "model"))
        assert card.model == again.config == config
        assert torch.equal(load_tokenizer(str(tmp_path / "model"))(CAPTIONS)[0], ids)
        frames = torch.randint(0, 256, (1, 2, 3, model.frame_size, model.frame_size), dtype=torch.uint8)
        with torch.no_grad():
            for one, other in zip(model.towers.encode_text(ids), again.towers.encode_text(ids), strict=True):
                assert torch.equal(one, other)
            features = [m.towers.encode_frames(frames, torch.ones(1, 2)) for m in (model, again)]
        assert torch.equal(*features)


def test_exported_towers_are_loaded_with_their_bias(tmp_path: Path) -> None:
    for name in ("ViT-B-16-SigLIP2", "coca_ViT-B-32"):
        config = _config(name, tmp_path)
        with small_timm():
            model = Retriever(config)
            with torch.no_grad():
                model.logit_scale.fill_(2.5)
                if model.logit_bias is not None:
                    model.logit_bias.fill_(-7.5)
            save_model(str(tmp_path / name), _card(config), model.state_dict())
            export_towers(str(tmp_path / name), str(tmp_path / f"{name}.safetensors"))
            towers = Towers(config.clip, str(tmp_path / f"{name}.safetensors"))
        assert towers.log_scale == 2.5
        assert towers.logit_bias == (-7.5 if "SigLIP" in name else None)
        for key, tensor in towers.state_dict().items():
            assert torch.equal(tensor, model.towers.state_dict()[key]), key


def _local_folder(tmp_path: Path, name: str = "open_clip_model.safetensors") -> tuple[Path, torch.nn.Module]:
    """A folder as open_clip saves one: description with colours of its own, weights, tokenizer."""
    config = json.loads(Path(write_small("ViT-B-16-SigLIP2", tmp_path)).read_text())
    folder = Path(write_tokenizer(tmp_path / "folder", "siglip2"))
    described = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    with small_timm():
        torch.manual_seed(1)
        plain = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False).eval()
        with torch.no_grad():
            plain.logit_bias.fill_(-6.0)
    save_file(plain.state_dict(), folder / name)
    return folder, plain


@pytest.mark.parametrize("where", ["local-dir", "hf-hub"])
def test_addresses_as_open_clip_spells_them(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, plain = _local_folder(tmp_path)
    clip = f"local-dir:{folder}"
    if where == "hf-hub":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the cache is all there is
        repository = tmp_path / "cache" / "models--org--model"
        shutil.copytree(folder, repository / "snapshots" / "01")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("01")
        clip = "hf-hub:org/model"
    config = ModelConfig(clip=clip, head="mean_pool", max_words=8, max_frames=1)
    with small_timm():
        model = Retriever(config).eval()
        assert model.logit_bias is not None
        assert model.logit_bias.item() == -6.0
        assert model.towers.colours == {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        ids, _ = build_tokenizer(config)(CAPTIONS)
        whole, _ = build_tokenizer(config.model_copy(update={"max_words": 64}))(CAPTIONS)
        with torch.no_grad():
            assert torch.allclose(model.towers.encode_text(ids)[0], plain.encode_text(whole), atol=1e-5)
        save_model(str(tmp_path / "model"), _card(config), model.state_dict())
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        again, _ = load_model(str(tmp_path / "model"))
    assert again.towers.colours == model.towers.colours


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folder: shutil.rmtree(folder), "no open_clip_config.json in"),
        (lambda folder: (folder / "open_clip_model.safetensors").unlink(), "no weights .* for random weights give"),
        (lambda folder: (folder / "open_clip_config.json").write_text("[1]"), "describes no architecture"),
        (lambda folder: (folder / "open_clip_config.json").write_text("{"), "open_clip_config.json"),
        (lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"torn"), "cannot be loaded into"),
    ],
)
def test_folders_that_lack_something_are_refused(break_it: object, says: str, tmp_path: Path) -> None:
    folder, _ = _local_folder(tmp_path)
    break_it(folder)  # type: ignore[operator]
    with small_timm(), pytest.raises(UserError, match=says):
        Towers(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("section", "changes", "says"),
    [
        ("vision_cfg", {"timm_model_name": "hf-hub:stranger/model"}, "its image tower comes from elsewhere"),
        ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}, r"not known here \(trust_remote_code"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "thoroughly"}}, r"not known here \(clean"),
        ("text_cfg", {"tokenizer_kwargs": ["clean"]}, r"tokenizer_kwargs is \['clean'\]"),
        ("text_cfg", {"tokenizer_mode": "clips"}, "a mode of its own"),
        ("text_cfg", {"hf_model_name": "a/b", "hf_pooler_type": "max_pooler"}, "cannot run its pooler"),
        ("text_cfg", {"pool_type": "none"}, "no sentence feature"),
        ("text_cfg", {"hf_tokenizer_name": None, "vocab_size": 400}, "knows 400 of the 49408 tokens"),
        ("text_cfg", {"surprise": 1}, r"does not know its text_cfg\.surprise"),
        (None, {"surprise": 1}, "does not know its surprise"),
        ("vision_cfg", {"image_size": [32, 64]}, "square"),
        ("vision_cfg", {"timm_model_name": None, "attentional_pool": "parallel"}, "not one vector"),
        (None, {"text_cfg": 3}, "it has no text_cfg"),
        ("text_cfg", {"layers": 10**6}, "at most 256"),
    ],
)
def test_cards_of_strangers_are_refused(
    section: str | None, changes: dict[str, object], says: str, tmp_path: Path
) -> None:
    """What a model brings along is not trusted either: refused before any memory is taken, and nothing is fetched."""
    config = _config("ViT-B-16-SigLIP2", tmp_path)
    with small_timm():
        save_model(str(tmp_path / "model"), _card(config), Retriever(config).state_dict())
    path = tmp_path / "model" / "towers" / "open_clip_config.json"
    described = json.loads(path.read_text())
    (described["model_cfg"][section] if section else described["model_cfg"]).update(changes)
    path.write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"model\.json: model\.clip: .*" + says):
        check_weights(str(tmp_path / "model"))


def test_a_text_model_that_is_none_is_refused(tmp_path: Path) -> None:
    config = _config("xlm-roberta-base-ViT-B-32", tmp_path)
    path = Path(str(config.tokenizer)) / "config.json"
    good = json.loads(path.read_text())
    for changes, says in (
        ({"auto_map": {"AutoModel": "evil.Evil"}}, "of no text model that open_clip knows"),
        ({"num_hidden_layers": 10**5}, r"num_hidden_layers 100000; at most 256"),
        ({"vocab_size": 10**9}, r"vocab_size 1000000000; at most"),
    ):
        path.write_text(json.dumps(good | changes))
        with pytest.raises(UserError, match=says):
            Towers(config.clip, tokenizer=config.tokenizer)
    path.write_text(json.dumps(good | {"max_position_embeddings": 20}))
    assert Towers(config.clip, tokenizer=config.tokenizer).context_length == 18


def test_a_card_names_no_repository_to_fetch_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    config = ModelConfig(clip="hf-hub:stranger/model", head="mean_pool")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(json.dumps(_card(config).model_dump(mode="json")))
    save_file({"a": torch.zeros(1)}, tmp_path / "model" / "weights.safetensors")
    with pytest.raises(UserError, match=r"stranger/model is not in Hugging Face's cache .* nothing is fetched here"):
        check_weights(str(tmp_path / "model"))


def test_what_a_frozen_model_needs_beside_weights_is_in_its_folder(tmp_path: Path) -> None:
    """The weights are made or read as the card says; exported, it needs nothing else."""
    config = _config("xlm-roberta-base-ViT-B-32", tmp_path).model_copy(update={"freeze": "towers"})
    run, whole = str(tmp_path / "model"), str(tmp_path / "whole")
    torch.manual_seed(0)
    model = Retriever(config).eval()
    card = _card(config).model_copy(update={"frozen": frozen_fingerprint(model, config)})
    save_model(run, card, trained_state(model))
    ids, _ = build_tokenizer(config)(CAPTIONS)
    shutil.rmtree(str(config.tokenizer))
    for uri in (run, whole):
        loaded, _ = load_model(uri)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(load_tokenizer(uri)(CAPTIONS)[0], ids)
        if uri == run:
            export_model(run, whole)
            shutil.rmtree(run)
            Path(config.clip).write_text("{}")
