"""Plug-ins of other distributions, in real processes with a real distribution on the path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HEAD = """
from glscl.models.heads import Head, register_head
from glscl.options import Options

class DotOptions(Options):
    power: float = 1.0

@register_head("{name}")
class Dot(Head):
    Options = DotOptions
    def __init__(self, width, options):
        super().__init__(width, options)
    def encode_text(self, sentence, tokens, token_mask):
        return {{"sentence": sentence.float()}}
    def encode_video(self, frames, frame_mask):
        return {{"pooled": frames.float().mean(1)}}
    def forward(self, text, video):
        return text["sentence"] @ video["pooled"].T
"""


def _run(folder: Path, source: str, code: str) -> subprocess.CompletedProcess[str]:
    (folder / "dot_head.py").write_text(source)
    info = folder / "dot_head-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dot-head\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[glscl.heads]\ndot = dot_head\n")
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(folder), str(root)])
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def test_a_head_of_another_distribution_is_a_head(tmp_path: Path) -> None:
    code = """
from glscl.models import ModelConfig, head_names
assert head_names() == tuple(sorted(head_names())) and "dot" in head_names()
print(ModelConfig.model_validate({"head": "dot", "heads": {"dot": {"power": 2}}}).heads.dot)
"""
    done = _run(tmp_path, HEAD.format(name="dot"), code)
    assert done.stdout == "power=2.0\n", done.stderr


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    done = _run(tmp_path, HEAD.format(name="mean_pool"), "import glscl.models")
    assert done.returncode
    assert "two plug-ins register the head 'mean_pool'" in done.stderr


def test_a_broken_plug_in_is_named(tmp_path: Path) -> None:
    done = _run(tmp_path, "import nothing_of_that_name", "import glscl.models")
    assert done.returncode
    assert "the head plug-in 'dot' (dot_head) does not import" in done.stderr
