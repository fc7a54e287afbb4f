"""Tokenizers of towers: open_clip's own, of the model, and never fetched unasked."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import torch
from open_clip.factory import get_model_config

from glscl.errors import UserError
from glscl.models import ModelConfig
from glscl.models.caption_tokenizer import build_tokenizer
from glscl.models.overview import describe_architectures
from glscl.models.tokenizer import tokenize
from tests.models.small_tokenizers import write_tokenizer
from tests.models.small_towers import write_small

CAPTIONS = ["A red square, moves left!", "blue", "", "and then a green circle moves up and then stops and moves right"]
KINDS = {
    "siglip": "ViT-B-16-SigLIP", "siglip2": "ViT-B-16-SigLIP2", "clipa": "ViT-L-14-CLIPA",
    "xlm": "ViT-H-14-worldwide-quickgelu",
}  # fmt: skip


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hugging Face's cache is an empty folder, and a look at any host fails the test."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _fill_cache(cache: Path, repository: str, source: str) -> None:
    """Lay a folder's files down where Hugging Face's client keeps a repository's."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / "0123abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abc")


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_ids_are_those_of_open_clips_tokenizer(kind: str, name: str, tmp_path: Path) -> None:
    clip, folder = write_small(name, tmp_path), write_tokenizer(tmp_path / "tokenizer", kind)
    options = get_model_config(name)["text_cfg"].get("tokenizer_kwargs", {})
    for words in (5, 32):
        expected = open_clip.tokenizer.HFTokenizer(folder, context_length=words, **options)(CAPTIONS)
        tokenizer = build_tokenizer(ModelConfig(clip=clip, max_words=words, tokenizer=folder))
        for copy in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
            ids, truncated = copy(CAPTIONS)
            assert torch.equal(ids, expected)
            assert truncated.tolist() == ([True, False, False, True] if words == 5 else [False] * 4)
    assert tokenizer([])[0].shape == (0, 32)


@pytest.mark.parametrize("kind", ["siglip2", "xlm"])
def test_control_words_and_hostile_lengths_do_no_harm(kind: str, tmp_path: Path) -> None:
    clip, folder = write_small(KINDS[kind], tmp_path), write_tokenizer(tmp_path / "tokenizer", kind)
    tokenizer = build_tokenizer(ModelConfig(clip=clip, max_words=8, tokenizer=folder))
    end = "<eos>" if kind == "siglip2" else "</s>"
    plain = tokenizer(["red blue"])[0]
    escaped = end.replace("<", "&lt;")
    ids, _ = tokenizer([f"red {escaped} blue"])
    if kind == "xlm":  # SigLIP's takes punctuation away, so that the word is no control word
        assert torch.equal(ids, plain)
    assert (ids == plain[plain != 0].max()).sum() <= 1
    ids, truncated = tokenizer(["red " * 10**6, "a" * 10**6, "\ud800 red"])
    assert truncated.tolist() == [True, True, False]
    assert ids.shape == (3, 8)


def test_most_towers_read_clips_tokens_as_ever(no_network: Path) -> None:
    ids, truncated = build_tokenizer(ModelConfig(clip="PE-Core-B-16", max_words=16))(CAPTIONS)
    assert torch.equal(ids, tokenize(CAPTIONS, 16)[0])
    assert not truncated.any()


def test_nothing_is_fetched_that_the_configuration_does_not_name(no_network: Path) -> None:
    foreign = [row for row in describe_architectures() if row.refusal is None and row.tokens != "CLIP"]
    assert len(foreign) > 40
    for row in foreign:
        text = get_model_config(row.name)["text_cfg"]
        with pytest.raises(UserError, match=rf"set model\.tokenizer to hf-hub:{text['hf_tokenizer_name']}, or to a fo"):
            build_tokenizer(ModelConfig(clip=row.name))


@pytest.mark.parametrize(
    "named",
    [{"tokenizer": "hf-hub:org/tokens"}, {"pretrained": "webli"}],
    ids=lambda named: next(iter(named)),
)
def test_what_the_configuration_names_is_asked_for(no_network: Path, named: dict[str, str]) -> None:
    config = ModelConfig.model_validate({"clip": "ViT-B-16-SigLIP"} | named)
    with pytest.raises(UserError, match=r"(org/tokens|timm/ViT-B-16-SigLIP) cannot be fetched from Hugging Face"):
        build_tokenizer(config)
    with pytest.raises(UserError, match=r"nothing is fetched"):
        build_tokenizer(config, fetch=False)


def test_the_cache_is_enough(no_network: Path, tmp_path: Path) -> None:
    _fill_cache(no_network, "timm/ViT-B-16-SigLIP", write_tokenizer(tmp_path / "tokenizer", "siglip"))
    ids, _ = build_tokenizer(ModelConfig(clip="ViT-B-16-SigLIP-384", max_words=6), fetch=False)(["a red square"])
    assert ids.tolist() == [[3, 4, 7, 1, 1, 1]]
    named = ModelConfig(clip="ViT-B-16-SigLIP2", tokenizer="hf-hub:org/tokens")
    _fill_cache(no_network, "org/tokens", write_tokenizer(tmp_path / "other", "siglip2"))
    assert build_tokenizer(named)(["a"])[0][0, :3].tolist() == [4, 1, 0]


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("siglip2", {}, r"fills captions up with token 0, and the text tower of .* expects 1"),
        ("siglip", {"padding_side": "left"}, "does not fill captions up at their end"),
        (
            "siglip",
            {"tokenizer_class": "NoSuchTokenizer", "auto_map": {"AutoTokenizer": ["a.B", None]}},
            "no tokenizer",
        ),
        (None, {}, r"tokenizer has none of tokenizer\.json"),
        ("missing", {}, r"no folder at"),
    ],
)
def test_other_tokenizers_are_refused(kind: str | None, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    if kind is None:
        folder.mkdir()
    elif kind != "missing":
        write_tokenizer(folder, kind)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=r"model\.tokenizer: .*" + says):
        build_tokenizer(ModelConfig(clip="ViT-B-16-SigLIP", tokenizer=str(folder)))


def test_a_token_that_the_tower_does_not_know_is_refused(tmp_path: Path) -> None:
    clip = Path(write_small("ViT-B-16-SigLIP", tmp_path))
    config = json.loads(clip.read_text())
    config["text_cfg"]["vocab_size"] = 20
    clip.write_text(json.dumps(config))
    tokenizer = build_tokenizer(ModelConfig(clip=str(clip), tokenizer=write_tokenizer(tmp_path / "t", "siglip")))
    assert tokenizer(["a red"])[0].max() < 20
    with pytest.raises(UserError, match=r"it has a token \d+, and the text tower knows 20"):
        tokenizer(["a red zebra"])


def test_without_transformers_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glscl.models.text_files.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package transformers for its text; pip install 'glscl\[hf\]'"):
        build_tokenizer(ModelConfig(clip="ViT-B-16-SigLIP"))
