"""A model of single vectors in sentence-transformers' stock modules gives the same similarities; others are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glscl
from glscl.cli import main
from glscl.errors import UserError
from glscl.evaluation.saved import ModelCard, load_model, save_model
from glscl.models import Retriever
from glscl.retrieval.sentence_transformers import export_sentence_transformers
from tests.models.small_towers import write_small
from tests.retrieval.test_model import TEXTS, write_run

THEIRS = """
import sys, numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

folder, frames, output, *texts = sys.argv[1:]
model = SentenceTransformer(folder, device="cpu")
text = model.encode(texts)
pictures = model.encode([Image.fromarray(frame) for frame in np.load(frames)])
video = pictures.mean(0)
np.save(output, text @ video / (video @ video) ** 0.5)
print("glscl" in sys.modules)
"""


def test_the_same_similarities_without_this_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentence_transformers")
    run = write_run(tmp_path, head="mean_pool", frame_context="none")
    folder = tmp_path / "vectors"
    assert main(["export", "--run", run, "--output", str(folder), "--to", "sentence-transformers"]) == 0
    assert "head mean_pool" in capsys.readouterr().out.splitlines()[-1]
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)  # no size to change
    np.save(tmp_path / "frames.npy", frames)
    texts = [*TEXTS, "red " * 30]  # longer than the model's words
    arguments = [str(folder), str(tmp_path / "frames.npy"), str(tmp_path / "scores.npy"), *texts]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", THEIRS, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "False"
    expected = glscl.load(run, "cpu").score(texts, glscl.Frames(frames, fps=2))[:, 0].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, rtol=0, atol=1e-6)
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"head": "glscl", "frame_context": "none"}, r"the head 'glscl' is more than one vector"),
        ({"head": "mean_pool"}, r"its frame context lets frames see each other"),
    ],
)
def test_models_that_are_more_than_vectors_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as raised:
        export_sentence_transformers(write_run(tmp_path, **changes), str(tmp_path / "out"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "says"), [("RN50", "has a ResNet for pictures"), ("coca_ViT-B-32", r"\w+_cfg\.\w+")])
def test_towers_that_are_no_clip_of_hugging_face_are_refused(name: str, says: str, tmp_path: Path) -> None:
    config = load_model(write_run(tmp_path, head="mean_pool", frame_context="none"))[1].model
    config = config.model_copy(update={"clip": write_small(name, tmp_path)})
    torch.manual_seed(0)
    card = ModelCard(
        model=config, sample_fps=1.0, decoder="pyav", train_domains=(), step=0, seed=0, run="r", validation={}
    )
    save_model(str(tmp_path / "model"), card, Retriever(config).state_dict())
    with pytest.raises(UserError, match=says):
        export_sentence_transformers(str(tmp_path / "model"), str(tmp_path / "out"))
