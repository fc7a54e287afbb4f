"""The Python of the documentation runs as it is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import glscl
from glscl.retrieval.export import export_model
from tests.retrieval.test_model import write_run

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def project(tmp_path: Path, make_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``videos/0001.mp4``, ``videos/0002.mp4``, ``runs/first`` and its export."""
    run = Path(write_run(tmp_path))
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "first")
    (tmp_path / "videos").mkdir()
    for number in (1, 2):
        (tmp_path / "videos" / f"000{number}.mp4").write_bytes(make_video(seed=number))
    monkeypatch.chdir(tmp_path)
    export_model("runs/first", "models/first")
    return tmp_path


def test_python(project: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks("python.md"):
        exec(compile(block, "python.md", "exec"), names)
    assert names["scores"].shape == (2, 2)
    best = names["best"]
    assert best.score == pytest.approx(float(names["scores"][0].max()))
    assert isinstance(names["clip"], glscl.Frames)


def test_export(project: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks("export.md"):
        exec(compile(block, "export.md", "exec"), names)
    towers = glscl.load("models/first", "cpu").retriever.towers
    for name, tensor in towers.state_dict().items():
        assert torch.equal(names["model"].state_dict()[name], tensor), name
