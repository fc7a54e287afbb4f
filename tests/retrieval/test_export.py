"""An export is one folder that loads anywhere and computes the same, also without this project."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors import safe_open

import glscl
from glscl.cli import main
from glscl.errors import UserError
from glscl.evaluation.metrics import RECALLS
from glscl.evaluation.results import Results, Test
from glscl.evaluation.saved import ModelCard, load_model, save_model
from glscl.models import ModelConfig, Retriever
from glscl.models.freezing import frozen_fingerprint, trained_state
from glscl.models.tokenizer import tokenize
from glscl.retrieval.export import Preprocessing, export_model
from glscl.retrieval.record import Record
from glscl.system import storage
from tests.models.small_tokenizers import write_tokenizer
from tests.models.small_towers import small_timm, write_small
from tests.retrieval.test_model import TEXTS, write_run

FILES = {"README.md", "head.safetensors", "model.json", "model.safetensors", "open_clip_config.json"}
FILES |= {"preprocessing.json", "record.json", "owner"}


def _test(domain: str, relation: str, recall: float) -> Test:
    metrics: dict[str, int | float] = dict.fromkeys(RECALLS, recall) | {"MdR": 2.0, "queries": 20}
    return Test.model_validate(
        {
            "name": f"{domain}/test", "domain": domain, "split": "test", "relation": relation, "videos": 20,
            "texts": 40,
            "shards": "/home/me/shards", "captions_per_video": 2.0, "max_frames": 3, "max_words": 8,
            "truncated_texts": 1, "quarantined": 2, "text_to_video": metrics, "video_to_text": metrics,
            "hubness_skewness": float("nan"),
        }
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run directory with a model, a configuration and results."""
    directory = write_run(tmp_path)
    tests = [_test("toy", "in-domain", 71.25), _test("a|b <i>", "cross-domain", 8.5)]
    results = Results(
        run="r", verdict="", created="", head="glscl", clip="x", checkpoint_step=7, seed=3, git_commit="abc123",
        command="", train_domains=["toy"], tests=tests,
    )  # fmt: skip
    storage.write_json(f"{directory}/results.json", results.to_json())
    config = {
        "name": "r",
        "seed": 3,
        "storage": "/home/me",
        "data": {"train": ["/home/me/shards/toy"]},
        "loss": {"a": 1},
    }
    storage.write_json(f"{directory}/config.json", config)
    return directory


@pytest.fixture
def video(tmp_path: Path, make_video: Any) -> str:
    (tmp_path / "a.mp4").write_bytes(make_video())
    return str(tmp_path / "a.mp4")


def _export(run: str, output: Path, *more: str) -> Path:
    assert main(["export", "--run", run, "--output", str(output), *more]) == 0
    return output


def test_one_folder_that_scores_the_same(
    run: str, tmp_path: Path, video: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit by bit, elsewhere, without the files that the model was made from; also exported once more."""
    expected = glscl.load(run, "cpu").score(TEXTS, video)
    folder = _export(run, tmp_path / "out")
    assert "head glscl, step 7 of run r" in capsys.readouterr().out.splitlines()[-1]
    assert {path.name for path in folder.iterdir()} == FILES
    shutil.rmtree(run)
    (tmp_path / "retrieval-test.json").unlink()
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert torch.equal(glscl.load(moved, "cpu").score(TEXTS, video), expected)
    again = _export(str(moved), tmp_path / "again")
    assert torch.equal(glscl.load(again, "cpu").score(TEXTS, video), expected)
    for file in (*again.glob("*.json"), again / "README.md"):
        text = file.read_text()
        assert "/home/me" not in text, file
        assert str(tmp_path) not in text, file
    record = Record.model_validate_json((again / "record.json").read_text())
    assert [test.name for test in record.tests] == ["toy/test", "a|b <i>/test"]
    assert record.config == {"seed": 3, "data": {"train": ["toy"]}, "loss": {"a": 1}}
    preprocessing = Preprocessing.model_validate_json((again / "preprocessing.json").read_text())
    assert (preprocessing.frame.size, preprocessing.sampling.max_frames, preprocessing.sampling.fps) == (32, 3, 2.0)
    assert preprocessing.frame.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert preprocessing.text.max_words == 8


@pytest.mark.parametrize("bottleneck", [None, 3])
def test_frozen_towers_and_lora(tmp_path: Path, video: str, bottleneck: int | None) -> None:
    """What is not in the run's file is in the export; LoRA's changes are added to the weights, bottlenecks stay."""
    adapters = {"lora_rank": 2, "bottleneck": bottleneck}
    base = write_run(tmp_path, head="mean_pool")
    config = load_model(base)[1].model.model_copy(
        update={"freeze": "towers", "adapters": ModelConfig.model_validate({"adapters": adapters}).adapters}
    )
    torch.manual_seed(3)
    model = Retriever(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.rand_like(parameter))
    card = ModelCard(
        model=config, sample_fps=1.0, decoder="pyav", train_domains=(), step=1, seed=3, run="lora", validation={},
        frozen=frozen_fingerprint(model, config),
    )  # fmt: skip
    save_model(str(tmp_path / "lora" / "model"), card, trained_state(model))
    expected = glscl.load(tmp_path / "lora", "cpu").score(TEXTS, video)
    export_model(str(tmp_path / "lora"), str(tmp_path / "out"))
    torch.testing.assert_close(glscl.load(tmp_path / "out", "cpu").score(TEXTS, video), expected, rtol=1e-5, atol=1e-6)
    assert ("bottlenecks" in (tmp_path / "out" / "README.md").read_text()) == bool(bottleneck)


def test_a_head_without_parameters(tmp_path: Path, video: str) -> None:
    """There is no file for it, and none of another export that lay there before stays."""
    _export(write_run(tmp_path), tmp_path / "out")
    run = write_run(tmp_path, head="mean_pool", frame_context="none")
    expected = glscl.load(run, "cpu").score(TEXTS, video)
    folder = _export(run, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == FILES - {"head.safetensors"}
    assert torch.equal(glscl.load(folder, "cpu").score(TEXTS, video), expected)


PLAIN = """
import json, sys, torch, open_clip
import open_clip.factory
folder, ids, frames = sys.argv[1], torch.load(sys.argv[2]), torch.load(sys.argv[3])
model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
model.eval()
how = json.load(open(f"{folder}/preprocessing.json"))["frame"]
mean, std = (torch.tensor(how[name]).view(3, 1, 1) for name in ("mean", "std"))
ids = torch.nn.functional.pad(ids, (0, model.context_length - ids.shape[1]))
with torch.no_grad():
    features = model.encode_text(ids), model.encode_image((frames / 255 - mean) / std)
torch.save([*features, model.logit_scale.detach()], sys.argv[4])
print("glscl" in sys.modules)
"""


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP2", "RN50"])
def test_open_clip_loads_the_towers_without_this_project(name: str, tmp_path: Path) -> None:
    """Text and frame features of a small model of open_clip's are the same to 1e-6, in a process of its own."""
    clip = write_small(name, tmp_path)
    options: dict[str, Any] = {"clip": clip, "head": "mean_pool", "max_words": 16, "max_frames": 2}
    if "SigLIP" in name:  # its tokenizer is not CLIP's, and timm's part is built small in this process only
        options["tokenizer"] = write_tokenizer(tmp_path / "tokenizer", "siglip2")
    with small_timm():
        torch.manual_seed(0)
        model = Retriever(ModelConfig.model_validate(options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        card = ModelCard(
            model=model.config, sample_fps=1.0, decoder="pyav", train_domains=(), step=0, seed=0, run="r", validation={}
        )
        save_model(str(tmp_path / "model"), card, model.state_dict())
        export_model(str(tmp_path / "model"), str(tmp_path / "out"))
        size = model.frame_size
        frames = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
        ids = tokenize(["a red square", "blue"], 16)[0] % 500 if "SigLIP" in name else tokenize(TEXTS, 16)[0]
        with torch.no_grad():
            sentence = model.towers.encode_text(ids)[0]
            pictures = model.towers.encode_frames(frames[None], torch.ones(1, 3))[0]
        for value, path in ((ids, "ids.pt"), (frames, "frames.pt")):
            torch.save(value, tmp_path / path)
        arguments = [str(tmp_path / part) for part in ("out", "ids.pt", "frames.pt", "features.pt")]
        if "SigLIP" in name:
            with mock.patch.object(sys, "argv", ["-c", *arguments]):
                exec(PLAIN, {})
        else:
            done = subprocess.run([sys.executable, "-c", PLAIN, *arguments], capture_output=True, text=True, check=True)
            assert done.stdout.splitlines()[-1] == "False"
    text, image, scale = torch.load(tmp_path / "features.pt")
    assert sentence.std() > 1e-2
    torch.testing.assert_close(text, sentence, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(image, pictures, rtol=1e-6, atol=1e-6)
    assert scale.reshape(()) == model.logit_scale.detach().reshape(())


def test_the_folder_for_the_hub(run: str, tmp_path: Path) -> None:
    """Its metadata are read by the hub's own client, with every result; names of strangers break no table."""
    folder = _export(run, tmp_path / "hub", "--to", "hub-folder")
    assert {path.name for path in folder.iterdir()} == FILES | {".gitattributes", ".gitignore"}
    page = huggingface_hub.ModelCard.load(folder / "README.md")
    assert page.data.library_name == "glscl"
    assert "text-video-retrieval" in page.data.tags
    found = {(r.dataset_name, r.metric_name): r.metric_value for r in page.data.eval_results}
    assert found["toy/test", "Text to video R@1"] == 71.25
    assert found["a|b <i>/test", "Video to text R@5"] == 8.5
    assert len(found) == 2 * 2 * len(RECALLS)
    assert "| a&#124;b &#60;i&#62;/test | cross-domain | 20 of 22 | 40 | T→V | 8.5 |" in page.text
    assert "is 71.2 where it was trained and 8.5 in the hardest other domain" in page.text
    assert "- 2 texts of the test sets were cut." in page.text
    assert not (_export(run, tmp_path / "plain") / "README.md").read_text().startswith("---")


def test_an_export_without_results_says_so(tmp_path: Path) -> None:
    folder = _export(write_run(tmp_path), tmp_path / "out", "--to", "hub-folder")
    assert "It was not tested" in (folder / "README.md").read_text()
    assert huggingface_hub.ModelCard.load(folder / "README.md").data.eval_results is None


def test_no_pickle(run: str, tmp_path: Path) -> None:
    folder = _export(run, tmp_path / "out")
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            assert tensors.metadata()["format"] == "pt"
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {".json", ".md", ".safetensors"}


@pytest.mark.e2e
def test_on_s3(bucket: str, run: str, video: str) -> None:
    expected = glscl.load(run, "cpu").score(TEXTS, video)
    assert main(["export", "--run", run, "--output", f"{bucket}/models/a"]) == 0
    assert torch.equal(glscl.load(f"{bucket}/models/a", "cpu").score(TEXTS, video), expected)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("model.safetensors", b"torn", r"model\.safetensors: not a readable safetensors file"),
        ("head.safetensors", None, r"weights of another architecture than model\.json says: 'frame_context"),
        ("model.json", b"{}", r"model\.json: not a model card of this version"),
        ("record.json", b'{"run": 3}', r"record\.json: not the record of an export"),
    ],
)
def test_damage_is_one_line(run: str, tmp_path: Path, file: str, content: bytes | None, says: str) -> None:
    folder = _export(run, tmp_path / "out")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=says) as raised:
        export_model(str(folder), str(tmp_path / "again"))
    assert "\n" not in str(raised.value)
