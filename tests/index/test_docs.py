"""The commands and the Python of docs/index.md run as they are written."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glscl.cli import main
from tests.retrieval.test_docs import blocks
from tests.retrieval.test_model import write_run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "index.md"


def commands() -> list[list[str]]:
    """Command lines of the page."""
    text = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("glscl ")]


@pytest.fixture
def project(tmp_path: Path, make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``videos/0001.mp4`` to ``0003.mp4``, ``about.jsonl`` and ``runs/first``."""
    run = Path(write_run(tmp_path))
    (tmp_path / "runs").mkdir()
    shutil.move(run, tmp_path / "runs" / "first")
    (tmp_path / "videos").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "videos" / f"000{number}.mp4").write_bytes(make_video(seed=number))
    rows = [{"id": f"000{number}", "caption": f"video {number}", "lang": "en"} for number in (1, 2)]
    (tmp_path / "about.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_and_python(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = commands()
    assert len(lines) >= 8
    told: dict[str, str] = {}
    python_done = False
    for words in lines:
        if "--workers" in words:  # Ray starts in `test_ray_writes_the_same_index`
            words = words[: words.index("--workers")]
        if words[:2] == ["index", "delete"]:
            names: dict[str, Any] = {}
            for block in blocks("index.md"):
                exec(compile(block, "index.md", "exec"), names)
            python_done = True
            assert names["alike"][0].id == "0002.mp4"
            assert names["media_type"] == "video/mp4"
            assert len(names["texts"]) == 2
        assert main(words) == 0, capsys.readouterr().out
        told[" ".join(words[:2])] = capsys.readouterr().out
    assert python_done
    assert "recall@10 1.0000" in told["index check"]
    assert "0002.mp4" in told["index info"]
    assert "0001.mp4" not in told["index info"]
    found = [json.loads(line) for line in told["search library.index"].splitlines()]
    assert found[0]["id"] == "0002.mp4"
    assert found[0]["entry"]["metadata"] == {"lang": "en"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["search", "library.index"], 'INDEX "a text"'),
        (["search", "library.index", "x", "--video", "y.mp4"], 'INDEX "a text"'),
        (["search", "nothing.index", "x"], "no such file"),
        (["search", "library.index", "x", "--where", "lang"], "is no condition"),
        (["index", "build", "--output", "x"], "LIBRARY"),
        (["index", "build", "videos", "--output", "new.index"], "--run"),
        (["index", "build", "nowhere", "--run", "runs/first", "--output", "new.index"], "no such folder"),
        (["index", "delete", "library.index"], "ID..."),
        (["index", "delete", "library.index", "0009.mp4"], "no video '0009.mp4'"),
        (["index", "check", "library.index"], "no captions"),
        (["index", "export", "library.index", "--to", "qdrant", "--output", "q"], "pools the frames anew"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "build", "videos", "--run", "runs/first", "--output", "library.index"]) == 0
    capsys.readouterr()
    assert main(words) == 2
    last = capsys.readouterr()
    assert says in (last.out + last.err)
    assert "Traceback" not in last.out + last.err


@pytest.mark.slow
@pytest.mark.e2e
def test_ray_writes_the_same_index(project: Path) -> None:
    """Ray Data decodes and encodes; videos that cannot be read are listed as without it, and scores are the same."""
    from glscl.index import open_index

    (project / "videos" / "0000.mp4").write_bytes(b"no video")
    for output, more in (("here.index", []), ("ray.index", ["--workers", "2", "--use-gpu", "false"])):
        words = ["index", "build", "videos", "--run", "runs/first", "--output", output, "--batch-size", "2"]
        assert main([*words, "--segment-s", "1", "--stride-s", "0.5", *more]) == 0
    here, there = (open_index(name, "cpu") for name in ("here.index", "ray.index"))
    assert here.stats.unusable == there.stats.unusable != {}
    assert len(here) == len(there) > 3
    first, second = (index.search("a red square moves up", 5) for index in (here, there))
    assert [one.id for one in first] == [one.id for one in second]
    assert [one.score for one in first] == pytest.approx([one.score for one in second], abs=1e-6)
    assert [(one.segment, one.times) for one in first] == [(one.segment, one.times) for one in second]
