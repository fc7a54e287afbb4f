"""The README's commands and its Python, run as they are written."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glscl.data.gallery import Gallery
from glscl.data.shards import open_shard_set
from glscl.data.toy import write_toy
from glscl.evaluation.embed import embed
from glscl.evaluation.saved import load_model, load_tokenizer
from glscl.retrieval.model import Videos

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SMALLER = {
    "shards build": "--samples-per-shard 5",
    "train": "--model.clip glscl-tiny --model.pretrained None --model.context-layers 1 --training.use-gpu False"
    " --training.cpus-per-worker 1 --training.epochs 1 --training.global-batch 4 --training.precision fp32"
    " --training.zero-stage 0 --data.virtual-streams 2 --data.loader-workers 0 --data.augment None",
    "eval": "--workers 1 --cpus-per-worker 1 --loader-workers 0",
    "study": "--dry-run",
    "sweep": "--dry-run",
}
"""What is added to a command, so that it takes seconds."""
HELD_OUT = "4"
"""Videos that are held out of the few there are here, in place of the README's number."""

DRIVER = """
import json, sys
from glscl.cli import main
from glscl.system.session import ray_session

with ray_session(quiet=True):  # one cluster for all of them
    for words in json.loads(sys.argv[1]):
        print("$ glscl", *words, flush=True)
        status = main(words)
        if status:
            break
sys.exit(status)
"""


def blocks(language: str) -> Iterator[str]:
    """The README's fenced blocks in a language, continued lines joined."""
    for block in re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        yield block.replace("\\\n", " ")


def shell_lines() -> list[list[str]]:
    """The words of every line of shell, without comments."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def made_small(words: list[str]) -> list[str]:
    """A command of the README, with what makes it small."""
    words = [HELD_OUT if before == "--hold-out" else word for before, word in zip(["", *words], words, strict=False)]
    name = next((name for name in SMALLER if words[: len(name.split())] == name.split()), "")
    return [*words, *SMALLER.get(name, "").split()]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder as the README describes it: ``videos/0001.mp4`` ..., a CSV file per split in ``captions/``."""
    records = write_toy("toy_clips", "train", 24, 0, str(tmp_path / "toy"), processes=1)
    for folder in ("videos", "captions"):
        (tmp_path / folder).mkdir()
    rows = []
    for number, record in enumerate(records, 1):
        (tmp_path / "toy" / "videos" / f"{record.video_id}.mp4").rename(tmp_path / "videos" / f"{number:04d}.mp4")
        rows.append({"video_id": f"{number:04d}", "caption": record.captions[0]})
    for split, part in (("train", rows[6:]), ("test", rows[:6])):
        with (tmp_path / "captions" / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["video_id", "caption"])
            table.writeheader()
            table.writerows(part)
    return tmp_path


@torch.no_grad()
def test_the_commands_and_the_python(
    videos: Path, leaves_nothing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [words[1:] for words in shell_lines() if words[0] == "glscl"]
    assert [words[0] for words in commands] == ["--help", "shards", "shards", "train", "eval", "study", "sweep"]
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(leaves_nothing), "PYTHONPATH": str(ROOT)}
    whole = [{"shards/test": "shards/whole"}.get(word, word) for word in commands[2]]
    del whole[whole.index("--short-side") :]
    driver = [sys.executable, "-c", DRIVER, json.dumps([*map(made_small, commands), whole])]
    done = subprocess.run(driver, cwd=videos, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert done.stdout.count("glscl: OK") == len(commands), done.stdout

    (code,) = blocks("python")
    monkeypatch.chdir(videos)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    scores = names["scores"]
    assert scores.shape == (2, 2)
    order = scores[0].argsort(descending=True, stable=True).tolist()
    printed = [f"{scores[0, number]:.3f} videos/{number + 1:04d}.mp4" for number in order]
    assert capsys.readouterr().out.splitlines() == printed
    _check_against_evaluation(names["videos"])


def _check_against_evaluation(videos: Videos) -> None:
    """The README's code encodes a video as an evaluation does of a shard set that holds the files themselves."""
    model, card = load_model("runs/first")
    shard_set = open_shard_set("shards/whole")
    words = load_tokenizer("runs/first")
    gallery = Gallery(shard_set, 0, shard_set.manifest.videos, card.sampling(model.frame_size), words, batch_size=8)
    embeddings = embed(model, gallery, 0, torch.device("cpu"))
    row, cpu = embeddings.video_ids.index("0001"), torch.device("cpu")
    evaluated = embeddings.caches.video.read(range(row, row + 1), cpu)
    found = videos.caches.read(range(1), cpu)
    assert found.keys() == evaluated.keys()
    for name, expected in evaluated.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)


def test_what_else_the_readme_says_of_this_tree() -> None:
    """The make targets exist, the installed command is where the README says, and the page is short."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert targets == {"quickstart", "test", "test-slow", "docs"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "BIN := .venv/bin\n" in makefile
    assert ["source", ".venv/bin/activate"] in shell_lines()
    assert 'glscl = "glscl.cli:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "--constraint constraints.txt" in makefile
    assert len(README.splitlines()) <= 100
