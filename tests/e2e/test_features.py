"""Features as users make and use them: encoded, trained on, killed and continued, scored; and a study on them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from glscl.models.towers import Towers
from glscl.study.options import StudyConfig
from glscl.study.results import parse_study
from glscl.training.checkpoint.retention import Retention
from tests.e2e.conftest import wait_for_checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.exhaustive]

TOY = ("toy_clips", "toy_stories")


def weights(run: Path) -> str:
    return hashlib.sha256((run / "model" / "weights.safetensors").read_bytes()).hexdigest()


def test_encoded_trained_on_killed_and_scored(
    glscl: Callable[..., Any], train_words: Callable[..., list[str]], clips: Path, clip: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    towers = str(tmp_path / "towers.safetensors")
    built = Towers(clip)
    save_file(built.state_dict() | {"logit_scale": torch.tensor([2.66])}, towers, metadata=built.metadata)
    source, features = str(clips / "msrvtt" / "train"), tmp_path / "features" / "msrvtt" / "train"
    words = ["encode", "--towers", clip, "--pretrained", towers, "--max-frames", "2", "--sample-fps", "4"]
    words += ["--dtype", "float32", "--shards", source, "--output", str(features)]
    killed = glscl(*words)
    killed.wait_until(lambda: any(features.glob("*.tar.json")) or (features / "manifest.json").exists())
    killed.kill()
    output = glscl(*words).wait() if not (features / "manifest.json").exists() else killed.text()
    assert re.search(r"glscl: OK .*features of 60 videos, 180 pairs in 8 tars", output)
    glscl("shards", "verify", str(features)).wait()

    base = train_words(str(tmp_path / "features"), str(tmp_path), "reference")
    options = ["--model.pretrained", towers, "--model.freeze", "towers", "--data.test", str(features), source]
    glscl(*base, *options).wait()
    run = tmp_path / "reference"
    ours, pixels = json.loads((run / "results.json").read_text())["tests"]
    assert ours["videos"] == 60
    assert pixels["text_to_video"] == ours["text_to_video"], "the head scores videos as it scores their features"

    words = train_words(str(tmp_path / "features"), str(tmp_path), "killed")
    command = glscl(*words, *options)
    command.wait_for_step(15)
    wait_for_checkpoint(str(tmp_path / "killed"), command)
    command.kill()
    assert Retention(str(tmp_path / "killed"), 2).known()
    assert "resumed step=" in glscl(*words, *options).wait()
    assert weights(tmp_path / "killed") == weights(run), "bit by bit"


def test_a_study_on_features_and_its_cells_under_ray_train(glscl: Callable[..., Any], tmp_path: Path) -> None:
    values = yaml.safe_load(StudyConfig.text("toy_small")) | {
        "name": "frozen",
        "features": True,
        "controls": ["shuffled"],
    }
    values["run"]["model"]["freeze"] = "towers"
    config = tmp_path / "frozen.yaml"
    config.write_text(yaml.safe_dump(values))
    words = ["study", "--config", str(config), "--storage", str(tmp_path)]
    folder = tmp_path / "frozen"
    first = glscl(*words)
    first.wait_until(lambda: len(list(folder.glob("cells/*/*/cell.json"))) >= 2)
    first.kill()
    left = {path: path.stat().st_mtime_ns for path in folder.glob("cells/*/*/cell.json")}
    output = glscl(*words).wait()
    assert "cells=5/5" in output.splitlines()[-1]
    assert "encoding" not in output
    assert {path: path.stat().st_mtime_ns for path in left} == left

    controls = parse_study(json.loads((folder / "study.json").read_text())).controls
    assert {(c.variant, c.training, c.test, c.frames) for c in controls} == {
        (variant, training, test, "shuffled")
        for variant, trainings in (("xpool", TOY), ("glscl", TOY), ("zero-shot", ("zero-shot",)))
        for training in trainings
        for test in TOY
    }
    blind = [control.change["text_to_video"].estimate for control in controls if control.variant == "zero-shot"]
    assert blind == [0.0, 0.0], "the mean of frames has no order"
    assert "Shuffled frames on toy_clips (in-domain): text-to-video R@1 is shown lower for" in output
    assert 'id="controls"' in (folder / "report.html").read_text()

    cell = folder / "cells" / "16_words_2_frames" / "xpool.toy_stories.s1"
    saved = json.loads((cell / "config.json").read_text())
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(saved | {"storage": str(tmp_path), "name": "again"}))
    glscl("train", "--config", str(again)).wait()
    assert weights(tmp_path / "again") == weights(cell), "one process computes what a worker of Ray Train computes"
