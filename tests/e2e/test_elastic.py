"""A run killed with two workers goes on with one, on another storage: the same pairs, the same losses to rounding."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glscl import storage

pytestmark = pytest.mark.e2e

Words = Callable[[str, str, str], list[str]]


def test_continued_on_s3_by_another_number_of_workers(
    glscl: Callable[..., Any], train_words: Words, clips: Path, bucket: str, tmp_path: Path
) -> None:
    """Two workers were at step 50 or later when they died; one repeats what they did after their checkpoint."""
    words = [*train_words(str(clips), str(tmp_path), "elastic"), "--data.test", f"{clips}/msrvtt/test"]
    words += ["--training.epochs", "7", "--checkpoint.every-steps", "30", "--training.log-every", "1"]
    words += ["--model.heads.glscl.dropout", "0"]  # masks are drawn anew by another number of workers
    first = glscl(*words)
    first.wait_for_step(50)
    first.kill()
    run, moved = tmp_path / "elastic", f"{bucket}/runs/elastic"
    undisturbed = losses((run / "metrics.jsonl").read_bytes())
    for path in run.rglob("*"):
        if path.is_file():
            storage.upload(str(path), storage.join(moved, str(path.relative_to(run))))
    output = glscl(*words, "--storage", f"{bucket}/runs", "--training.num-workers", "1").wait()
    said = re.search(r"of 2 workers \(ZeRO 2\) for 1: about 0\.\d GB in (\S+) and \d+ s", output)
    assert said, output
    assert not Path(said[1]).exists()
    assert "resumed step=30" in output
    repeated = losses(storage.read_bytes(f"{moved}/metrics.jsonl"))
    assert list(repeated) == list(range(1, 64))
    after = range(31, 51)
    assert [repeated[step] for step in after] == pytest.approx([undisturbed[step] for step in after], rel=1e-5)


def losses(metrics: bytes) -> dict[int, float]:
    rows = [json.loads(line) for line in metrics.splitlines() if line.endswith(b"}")]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}
