"""A saved model is the trained model: same weights, same architecture, same input, from disk and from S3."""

from __future__ import annotations

import contextlib
import json
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import pretrained
from safetensors.torch import save, save_file

from glscl.cli import main
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.evaluation.saved import ModelCard, check_weights, load_model, read_card, save_model
from glscl.evaluation.weight_files import header_shapes
from glscl.models import ModelConfig, Retriever, head_names
from glscl.models.freezing import frozen_fingerprint, trained_state
from glscl.models.tokenizer import tokenize
from glscl.system import storage
from stress.fuzz import mutate


def _clip(folder: Path) -> str:
    path = folder / "saved-test.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


def _card(config: ModelConfig) -> ModelCard:
    return ModelCard(
        model=config,
        sample_fps=1.5,
        decoder="pyav",
        train_domains=("toy", "other"),
        step=7,
        seed=3,
        run="r",
        validation={"validation_R@1": 12.5},
    )


def _config(folder: Path, **more: Any) -> ModelConfig:
    head = {"glscl": {"queries": 2, "layers": 1, "attention_heads": 2}}
    values = {"clip": _clip(folder), "frame_context": "transformer", "context_layers": 1, "max_words": 8, "heads": head}
    return ModelConfig.model_validate(values | more)


def _write(folder: Path, config: ModelConfig) -> None:
    """A card beside weights of something else."""
    storage.write_json(str(folder / "model.json"), _card(config).model_dump(mode="json"))
    (folder / "weights.safetensors").write_bytes(save({"a": torch.ones(3)}))


def _scores(model: Retriever) -> torch.Tensor:
    ids, _ = tokenize(["a red ball", "a dog", "two dogs"], 8)
    frames = torch.randint(0, 256, (4, 2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        return model.score(model.encode_text(ids), model.encode_video(frames, torch.ones(4, 2, dtype=torch.bool)))


def test_round_trip(tmp_path: Path) -> None:
    config = _config(tmp_path)
    torch.manual_seed(1)
    model = Retriever(config).eval()
    save_model(str(tmp_path / "run" / "model"), _card(config), model.state_dict())
    for uri in (tmp_path / "run", tmp_path / "run" / "model"):  # a run directory, or the model's own folder
        check_weights(str(uri))
        state = torch.get_rng_state()
        loaded, card = load_model(str(uri))
        assert torch.equal(torch.get_rng_state(), state)
        assert card == _card(config)
        assert not loaded.training
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert torch.equal(_scores(loaded), _scores(model))
    assert card.sampling(32) == FrameSampling(config.max_frames, 1.5, 32, "pyav")


def test_bf16_weights_are_saved_in_fp32(tmp_path: Path) -> None:
    config = _config(tmp_path)
    model = Retriever(config).bfloat16().eval()
    save_model(str(tmp_path / "model"), _card(config), model.state_dict())
    loaded, _ = load_model(str(tmp_path))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert all(torch.equal(a, b.float()) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.e2e
def test_round_trip_over_s3(bucket: str, tmp_path: Path) -> None:
    config = _config(tmp_path)
    model = Retriever(config).eval()
    save_model(f"{bucket}/run/model", _card(config), model.state_dict())
    check_weights(f"{bucket}/run")
    loaded, _ = load_model(f"{bucket}/run")
    assert torch.equal(_scores(loaded), _scores(model))
    weights = f"{bucket}/run/model/weights.safetensors"
    storage.write_bytes(weights, storage.read_bytes(weights)[:-7])
    with pytest.raises(UserError, match=r"weights\.safetensors: not a readable safetensors file \(\d+ bytes where"):
        load_model(f"{bucket}/run")


def test_what_a_pretrained_tag_says_of_the_architecture_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag of open_clip sets the activation function and the colours; a saved model has them without its weights."""
    weights = tmp_path / "weights.pt"
    clip = _clip(tmp_path)
    open_clip.add_model_config(Path(clip))
    original = open_clip.create_model("saved-test", force_custom_text=True, nonscalar_logit_scale=True)
    torch.save(original.state_dict(), weights)
    tag = {"file": str(weights), "quick_gelu": True, "mean": (0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7)}
    monkeypatch.setitem(pretrained._PRETRAINED, "saved-test", {"special": tag})
    config = _config(tmp_path, pretrained="special")
    model = Retriever(config).eval()
    save_model(str(tmp_path / "model"), _card(config), model.state_dict())
    weights.unlink()
    loaded, _ = load_model(str(tmp_path))
    assert torch.equal(_scores(loaded), _scores(model))
    plain = Retriever(config.model_copy(update={"pretrained": None})).eval()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(_scores(plain), _scores(model), atol=1e-5), "the tag does say something"


def test_a_pretrained_file_is_not_needed_any_more(tmp_path: Path) -> None:
    config = _config(tmp_path, pretrained=str(tmp_path / "gone.pt"))
    model = Retriever(config, load_weights=False).eval()
    save_model(str(tmp_path / "model"), _card(config), model.state_dict())
    loaded, card = load_model(str(tmp_path))
    assert card.model.pretrained == str(tmp_path / "gone.pt")
    assert torch.equal(_scores(loaded), _scores(model))


FROZEN = {"freeze": "towers", "adapters": {"lora_rank": 2, "bottleneck": 3}}


def _trained(folder: Path, seed: int = 3, **more: Any) -> Retriever:
    """A model whose towers are frozen, trained from the seed of `_card`."""
    torch.manual_seed(seed)
    model = Retriever(_config(folder, **FROZEN | more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.rand_like(parameter))
    return model


def _save_trained(folder: Path, model: Retriever) -> ModelCard:
    card = _card(model.config).model_copy(update={"frozen": frozen_fingerprint(model, model.config)})
    save_model(str(folder / "model"), card, trained_state(model))
    return card


@pytest.mark.parametrize("pretrained", [False, True], ids=["of a seed", "pretrained"])
def test_a_model_without_its_frozen_weights_is_made_whole(tmp_path: Path, pretrained: bool) -> None:
    more = {}
    if pretrained:
        open_clip.add_model_config(Path(_clip(tmp_path)))
        towers = open_clip.create_model("saved-test", force_custom_text=True, nonscalar_logit_scale=True)
        save_file(towers.state_dict(), tmp_path / "towers.safetensors")
        more = {"pretrained": str(tmp_path / "towers.safetensors")}
    model = _trained(tmp_path, **more)
    card = _save_trained(tmp_path, model)
    size = (tmp_path / "model" / "weights.safetensors").stat().st_size
    assert size < 0.05 * sum(4 * parameter.numel() for parameter in model.parameters())
    state = torch.get_rng_state()
    loaded, read = load_model(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), state)
    assert read == card
    assert torch.equal(_scores(loaded), _scores(model))


def test_an_exported_model_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _trained(tmp_path)
    _save_trained(tmp_path / "run", model)
    assert main(["export", "--run", str(tmp_path / "run"), "--output", str(tmp_path / "whole")]) == 0
    assert "head glscl, step 7 of run r" in capsys.readouterr().out.splitlines()[-1]
    _, card = read_card(str(tmp_path / "whole"))
    storage.write_json(str(tmp_path / "whole" / "model.json"), card.model_dump(mode="json") | {"seed": 99})
    loaded, card = load_model(str(tmp_path / "whole"))
    assert (card.frozen, card.model.adapters.lora_rank, card.model.adapters.bottleneck) == (None, None, 3)
    torch.testing.assert_close(_scores(loaded), _scores(model), rtol=1e-5, atol=1e-6)
    assert main(["export", "--run", str(tmp_path / "nowhere"), "--output", str(tmp_path / "whole")]) == 2
    assert "no trained model there" in capsys.readouterr().out.splitlines()[-1]


def test_frozen_weights_that_are_others_by_now_are_refused(tmp_path: Path) -> None:
    """Of another seed, or of a file that has changed, or is gone."""
    model = _trained(tmp_path, seed=4)
    _save_trained(tmp_path, model)
    with pytest.raises(
        UserError, match=r"its frozen weights, .* are others by now \(fingerprint \w+, found \w+\)"
    ) as raised:
        load_model(str(tmp_path))
    assert "\n" not in str(raised.value)
    gone = _trained(tmp_path).config.model_copy(update={"pretrained": str(tmp_path / "gone.safetensors")})
    card = _card(gone).model_copy(update={"frozen": "a"})
    storage.write_json(str(tmp_path / "model" / "model.json"), card.model_dump(mode="json"))
    with pytest.raises(UserError, match=r"model\.json: model\.pretrained: '.*gone\.safetensors' is neither"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"adapters": {"lora_rank": 3, "bottleneck": 3}}, r"lora\.a' is \[4, 32\], not \[6, 32\]"),
        ({"adapters": {"lora_rank": 2, "lora_targets": "mlp", "bottleneck": 3}}, r"lora\.[ab]' is missing"),
        ({"adapters": {"lora_rank": 2}}, r"bottleneck\.\S+' has no place"),
        ({"freeze": "image"}, "is missing"),
    ],
    ids=["rank", "projection", "kind", "tower"],
)
def test_adapters_of_another_architecture_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    _save_trained(tmp_path, _trained(tmp_path))
    _, card = read_card(str(tmp_path))
    other = ModelConfig.model_validate(card.model.model_dump() | change)
    storage.write_json(
        str(tmp_path / "model" / "model.json"), card.model_copy(update={"model": other}).model_dump(mode="json")
    )
    for read in (check_weights, load_model):
        with pytest.raises(
            UserError, match=rf"weights of another architecture than model\.json says: .*{says}"
        ) as raised:
            read(str(tmp_path))
        assert "\n" not in str(raised.value)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The process may grow by 100 MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (100 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    "model",
    [
        {"heads": {"glscl": {"queries": 1_000_000, "attention_heads": 2}}},
        {"heads": {"glscl": {"feedforward": 1_000_000, "layers": 256, "attention_heads": 2}}},
        {"head": "seq_transformer", "heads": {"seq_transformer": {"positions": 1_000_000}}},
        {"head": "tight_transformer", "heads": {"tight_transformer": {"positions": 1_000_000}}},
        {"head": "xclip", "max_frames": 1024, "frame_context": "transformer", "context_layers": 256},
    ],
)
def test_a_card_that_describes_gigabytes_is_refused_before_they_are_taken(
    tmp_path: Path, little_memory: None, model: dict[str, Any]
) -> None:
    _write(tmp_path, _config(tmp_path, **model))
    for read in (check_weights, load_model):
        with pytest.raises(UserError, match=r"weights of another architecture than model\.json says"):
            read(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("heads.glscl.queries", 5_000_000),
        ("heads.glscl.layers", 257),
        ("heads.glscl.feedforward", 10**30),
        ("heads.seq_transformer.layers", 10**6),
        ("heads.seq_transformer.positions", 10**9),
        ("heads.tight_transformer.layers", 10**6),
        ("heads.tight_transformer.positions", 10**9),
        ("heads.dicosa.centers", 10**9),
        ("heads.xpool.attention_heads", 10**9),
        ("context_layers", 10**6),
        ("max_words", 10**9),
        ("max_frames", 1025),
    ],
)
def test_sizes_that_no_model_has_are_refused(tmp_path: Path, key: str, value: int) -> None:
    card = _card(_config(tmp_path)).model_dump(mode="json")
    *sections, last = key.split(".")
    part = card["model"]
    for section in sections:
        part = part[section]
    part[last] = value
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=rf"model\.{key}: Input should be less than or equal to"):
        check_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("section", "sizes", "says"),
    [
        ("vision_cfg", {"layers": 10**6}, r"vision_cfg\.layers 1000000; at most 256"),
        ("vision_cfg", {"layers": [3, 10**6, 3, 3]}, r"vision_cfg\.layers \[3, 1000000, 3, 3\]; at most 256"),
        ("text_cfg", {"layers": 10**6}, r"text_cfg\.layers 1000000; at most 256"),
        ("text_cfg", {"context_length": 10**6}, r"context_length 1000000; at most 4096"),
        ("text_cfg", {"width": 10**9}, r"width 1000000000; at most 65536"),
        ("vision_cfg", {"image_size": 10**6}, r"image_size 1000000; at most 4096"),
        ("vision_cfg", {"image_size": 4096, "patch_size": 1, "width": 64}, "4096 pixels into patches of 1"),
        (None, {"embed_dim": 10**9}, "embed_dim 1000000000; at most 1000000"),
    ],
)
def test_architectures_of_the_users_own_are_bounded(
    tmp_path: Path, little_memory: None, section: str | None, sizes: dict[str, Any], says: str
) -> None:
    config = _config(tmp_path)
    values = json.loads(Path(config.clip).read_text())
    (values[section] if section else values).update(sizes)
    Path(config.clip).write_text(json.dumps(values))
    _write(tmp_path, config)
    with pytest.raises(UserError, match=r"model\.json: model\.clip: .*" + says):
        check_weights(str(tmp_path))


def test_a_header_of_megabytes_is_not_read(tmp_path: Path, little_memory: None) -> None:
    _write(tmp_path, _config(tmp_path))
    length = 50_000_000
    (tmp_path / "weights.safetensors").write_bytes(length.to_bytes(8, "little") + b"[0," * (length // 3))
    with pytest.raises(UserError, match="not a readable safetensors file \\(a header of 50000000 bytes"):
        check_weights(str(tmp_path))


@pytest.mark.parametrize("head", head_names())
def test_shapes_are_known_without_memory(tmp_path: Path, head: str) -> None:
    """Every head can be built where tensors have shapes only, and has the shapes that it has otherwise."""
    config = _config(tmp_path, head=head)
    with torch.device("meta"):
        empty = Retriever(config, load_weights=False).state_dict()
    assert all(tensor.is_meta for tensor in empty.values())
    whole = Retriever(config).state_dict()
    assert {name: tensor.shape for name, tensor in empty.items()} == {n: tensor.shape for n, tensor in whole.items()}


def test_no_model(tmp_path: Path) -> None:
    for read in (read_card, load_model, check_weights):
        with pytest.raises(UserError, match=r"no trained model there \(model\.json or model/model\.json\)"):
            read(str(tmp_path))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), weights=st.booleans())
def test_mutants_of_card_and_weights_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, seed: int, weights: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutants"
    folder.mkdir(exist_ok=True)
    card = {"model": {}, "sample_fps": 1.0, "decoder": "pyav", "train_domains": ["d"], "step": 1, "seed": 0, "run": "r"}
    sound = save({"a": torch.ones(3, 4), "b": torch.zeros(7)}) if weights else json.dumps(card).encode()
    path = folder / ("weights.safetensors" if weights else "model.json")
    path.write_bytes(mutate(sound, sound, random.Random(seed)))
    with contextlib.suppress(UserError):
        header_shapes(str(path)) if weights else read_card(str(folder))
