"""docs/own-videos.md as it is written, on real clips, from a folder to answers; and builds of docs/benchmarks.md."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glscl.data.shards import open_shard_set
from glscl.evaluation.results import parse_results

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def real_captions(clips: Path) -> Iterator[tuple[str, str]]:
    """Video and caption of every clip."""
    for sentence in json.loads((clips / "msrvtt/MSRVTT_data.json").read_text(encoding="utf-8"))["sentences"]:
        yield sentence["video_id"], sentence["caption"]
    for split in ("train", "val_1"):
        for video, entry in json.loads((clips / f"activitynet/{split}.json").read_text(encoding="utf-8")).items():
            for sentence in entry["sentences"]:
                yield video, sentence.strip()


@pytest.fixture
def project(shared: Path, tmp_path: Path) -> Path:
    """A folder as the page has it: ``videos/`` and ``captions.csv``; ``bin/glscl`` is this checkout's."""
    rows = list(real_captions(shared / "clips"))
    with (tmp_path / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("video_id", "caption"), *rows])
    (tmp_path / "videos").mkdir()
    for source in (shared / "clips").glob("*/videos/*.mp4"):
        (tmp_path / "videos" / source.name).symlink_to(source)
    assert len(list((tmp_path / "videos").iterdir())) > 100
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/glscl"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m glscl "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return tmp_path


def run(script: str, folder: Path, ray_folder: Path) -> str:
    """Run shell as it is written; returns what it printed. Fails the test on a non-zero status."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    variables = {"PATH": path, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local", "RAY_TMPDIR": str(ray_folder)}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


def test_the_page_from_a_folder_to_answers(
    project: Path, leaves_nothing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "\n".join(blocks("own-videos.md", "bash"))
    printed = run(script, project, leaves_nothing)
    assert printed.count("glscl: OK") == len(re.findall(r"^glscl ", script, re.MULTILINE))
    answers = re.findall(r"^(\S+)\.mp4 +[\d.-]+ +\d+:\d\d\.\d +\d+:\d\d\.\d$", printed, re.MULTILINE)
    assert len(answers) == 3

    monkeypatch.chdir(project)
    names: dict[str, Any] = {}
    (code,) = blocks("own-videos.md", "python")
    exec(compile(code, "own-videos.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [f"{name}.mp4" for name in answers]

    tested = parse_results(json.loads(Path("eval/results.json").read_text(encoding="utf-8"))).tests[0]
    assert (tested.videos, tested.text_to_video["queries"]) == (40, 120)
    assert "R@1" in Path("eval/report.html").read_text(encoding="utf-8")
    trained = set(open_shard_set("shards/mine").manifest.video_ids)
    with Path("captions.csv").open(encoding="utf-8") as file:
        asked = [row for row in csv.DictReader(file) if row["video_id"] in trained][::12]
    index = names["index"]
    right = sum(f"{row['video_id']}.mp4" in {one.id for one in index.search(row["caption"], k=10)} for row in asked)
    assert right > len(asked) / 2, f"{right} of {len(asked)} where chance has {len(asked) * 10 // 160}"


def test_the_builds_of_the_benchmarks(project: Path, shared: Path, leaves_nothing: Path) -> None:
    for kind in ("annotations", "videos"):
        for name, folder in (("MSRVTT", "msrvtt"), ("ActivityNet", "activitynet")):
            target = shared / "clips" / folder / ("videos" if kind == "videos" else "")
            (project / kind).mkdir(exist_ok=True)
            (project / kind / name).symlink_to(target)
    commands = [
        line
        for block in blocks("benchmarks.md", "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if re.match(r"glscl shards (build --benchmark (msrvtt|activitynet)|verify)", line)
    ]
    assert len(commands) == 4
    script = "\n".join(commands).replace("--hold-out 500", "--hold-out 20")  # of the sixty there are here
    assert run(script, project, leaves_nothing).count("glscl: OK") == 4
    sizes = {
        name: open_shard_set(str(project / "shards" / name)).manifest.videos
        for name in ("msrvtt/train_9k", "msrvtt/train_9k-held-out", "msrvtt/test_1k_a", "activitynet/val_1")
    }
    assert sizes == {
        "msrvtt/train_9k": 40,
        "msrvtt/train_9k-held-out": 20,
        "msrvtt/test_1k_a": 30,
        "activitynet/val_1": 25,
    }
