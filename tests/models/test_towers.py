"""The clip towers: what they give, and how weights are loaded or refused."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from glscl.errors import UserError
from glscl.models.tokenizer import tokenize
from glscl.models.towers import Towers

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """An architecture of the user's own."""
    path = tmp_path / "towers-test.json"
    path.write_text(json.dumps(TINY))
    return str(path)


def _plain(clip: str) -> torch.nn.Module:
    """open_clip's own model of that architecture, with random weights."""
    Towers(clip)
    return open_clip.create_model(Path(clip).stem).eval()


@pytest.mark.parametrize("kind", ["safetensors", "pt", "torchscript"])
def test_weights_file_gives_open_clips_own_features(clip: str, tmp_path: Path, kind: str) -> None:
    plain = _plain(clip)
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(plain.state_dict(), path)
    elif kind == "pt":
        torch.save({"state_dict": plain.state_dict()}, path)
    else:
        archive = torch.nn.Module()  # as OpenAI publishes them: parameters, and three integers
        for name, tensor in [*plain.state_dict().items(), ("context_length", torch.tensor(77))]:
            *folders, leaf = name.split(".")
            module = archive
            for folder in folders:
                if not hasattr(module, folder):
                    module.add_module(folder, torch.nn.Module())
                module = getattr(module, folder)
            module.register_buffer(leaf, tensor)
        torch.jit.save(torch.jit.script(archive), path)
        with pytest.raises(UserError, match=r"weights\.pt' holds more than tensors.*set model\.trust_pickle"):
            Towers(clip, str(path))
    towers = Towers(clip, str(path), trust_pickle=kind == "torchscript").eval()

    ids, _ = tokenize(["a red square moves left", "blue"], 77)
    sentence, tokens, mask = towers.encode_text(ids)
    assert torch.allclose(sentence, plain.encode_text(ids), atol=1e-5)
    assert tokens.shape == (2, 77, 16)
    assert mask.sum(1).tolist() == [7, 3]

    frames = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    expected = plain.encode_image((frames.flatten(0, 1) / 255 - mean) / std).view(2, 3, 16)
    assert torch.allclose(towers.encode_frames(frames, torch.ones(2, 3)), expected, atol=1e-5)
    assert towers.log_scale == pytest.approx(plain.logit_scale.item())


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_with_code_is_loaded_on_the_users_word_only(clip: str, tmp_path: Path, new: bool) -> None:
    path, harm = tmp_path / "weights.bin", tmp_path / "harm"
    content = {"state_dict": _plain(clip).state_dict(), "extra": Evil(harm)}
    torch.save(content, path, _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=r"holds more than tensors.*as safetensors, or.*set model\.trust_pickle"):
        Towers(clip, str(path))
    assert not harm.exists()
    Towers(clip, str(path), trust_pickle=True)
    assert harm.exists()


def test_fewer_words_change_nothing_but_the_padding(clip: str) -> None:
    towers = Towers(clip).eval()
    captions = ["a red square moves left", "blue"]
    short, whole = towers.encode_text(tokenize(captions, 8)[0]), towers.encode_text(tokenize(captions, 77)[0])
    assert torch.allclose(short[0], whole[0], atol=1e-6)
    assert torch.allclose(short[1], whole[1][:, :8], atol=1e-6)
    assert torch.equal(short[2], whole[2][:, :8])


def test_sentence_feature_is_the_last_real_token(clip: str) -> None:
    sentence, tokens, mask = Towers(clip).encode_text(tokenize(["a red square", "x"], 32)[0])
    last = mask.sum(1) - 1
    assert torch.equal(sentence, tokens[torch.arange(2), last])


def test_text_without_causal_mask_sees_its_full_padding(tmp_path: Path) -> None:
    path = tmp_path / "towers-bidirectional.json"
    path.write_text(json.dumps(TINY | {"text_cfg": TINY["text_cfg"] | {"no_causal_mask": True}}))
    towers = Towers(str(path)).eval()
    captions = ["a red square moves left", "blue"]
    short, whole = towers.encode_text(tokenize(captions, 8)[0]), towers.encode_text(tokenize(captions, 77)[0])
    assert torch.allclose(short[0], whole[0], atol=1e-6)
    assert torch.allclose(short[1], whole[1][:, :8], atol=1e-6)


@pytest.mark.parametrize("bytes_of_padding", [0, 200])
def test_padding_is_the_mean_colour_as_in_the_authors_loaders(clip: str, bytes_of_padding: int) -> None:
    """zchoi/GLSCL allocates an array of zeros and copies the real, normalised frames into it."""
    towers = Towers(clip).eval()
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    frames[mask == 0] = bytes_of_padding
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    theirs = torch.zeros(2, 4, 3, 32, 32)
    for video, real in enumerate((3, 1)):
        theirs[video, :real] = (frames[video, :real] / 255 - mean) / std
    expected = towers.visual(theirs.flatten(0, 1)).view(2, 4, 16)
    assert torch.allclose(towers.encode_frames(frames, mask), expected, atol=1e-5)
    assert expected[0, 3].norm() > 0.01  # it has a feature, and is not the feature of a black frame
    black = towers.encode_frames(torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8), torch.ones(1, 1))
    assert not torch.allclose(black[0, 0], expected[0, 3], atol=1e-3)


def test_gradient_checkpointing_changes_no_gradient(clip: str) -> None:
    ids, _ = tokenize(["a red square moves left", "blue"], 16)
    frames = torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8)
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        towers = Towers(clip, grad_checkpointing=checkpointing)
        (towers.encode_text(ids)[1].sum() + towers.encode_frames(frames, torch.ones(2, 2)).square().sum()).backward()
        grads.append({name: parameter.grad for name, parameter in towers.named_parameters()})
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])


def test_missing_weights_name_the_knob(clip: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.pretrained: '.*nothing\.pt' is neither an existing file nor a tag"):
        Towers(clip, str(tmp_path / "nothing.pt"))


@pytest.mark.parametrize("content", ["other architecture", "garbage", "empty"])
def test_unfit_weights_name_the_knob(clip: str, tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pt"
    if content == "other architecture":
        torch.save(open_clip.create_model("glscl-tiny").state_dict(), path)
    else:
        path.write_bytes(b"not weights" if content == "garbage" else b"")
    with pytest.raises(UserError, match=r"model\.pretrained: .* cannot be loaded into towers-test"):
        Towers(clip, str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-23", "did you mean 'ViT-B-32'"),
        ("missing.json", "no open_clip configuration file"),
    ],
)
def test_unknown_architectures_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=r"model\.clip: .*" + message):
        Towers(name)


def test_building_leaves_logging_alone(clip: str, caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger().level
    Towers(clip)
    assert logging.getLogger().level == level
    assert caplog.records == []
