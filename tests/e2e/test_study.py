"""A study as users run it: killed half-way, started again, finished cells left alone."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glscl.study.results import parse_study

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_killed_and_continued_without_repeating_a_finished_cell(glscl: Callable[..., Any], tmp_path: Path) -> None:
    words = ["study", "--config", "toy_small", "--storage", str(tmp_path)]
    folder = tmp_path / "toy-study-small"
    first = glscl(*words)
    first.wait_until(lambda: len(list(folder.glob("cells/*/*/cell.json"))) >= 2)
    done = sorted(folder.glob("cells/*/*/cell.json"))
    first.kill()
    left = {path: path.stat().st_mtime_ns for path in sorted(folder.glob("cells/*/*/cell.json"))}
    assert set(done) <= set(left)
    assert 2 <= len(left) < 5

    output = glscl(*words).wait()
    assert f"study: {len(left)} of 5 cells are finished, {5 - len(left)} to do" in output
    assert "pretraining the towers" not in output
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert len(list(folder.glob("cells/*/*/cell.json"))) == 5
    assert not list(folder.glob("cells/*/*/step_*")), "a finished cell keeps no checkpoint"
    assert re.match(r"glscl: OK study=toy-study-small cells=5/5 Across domains, ", output.splitlines()[-1])

    results = parse_study(json.loads((folder / "study.json").read_text()))
    assert (results.finished_cells, results.cells) == (5, 5)
    assert results.preregistration is not None, "registered before the first cell, and kept when the study goes on"
    assert results.preregistration.differences == []
    assert f"sha256 {results.preregistration.sha256}" not in output
    assert {(r.variant, r.training, r.test) for r in results.results} == {
        ("zero-shot", "zero-shot", test) for test in ("toy_clips", "toy_stories")
    } | {
        (variant, training, test)
        for variant in ("xpool", "glscl")
        for training in ("toy_clips", "toy_stories")
        for test in ("toy_clips", "toy_stories")
    }
    for result in results.results:
        labels = [column.label.split()[0] for column in result.columns if column.direction == "text_to_video"]
        assert (
            labels == ["Dual", "Inverted"]
            if result.variant == "zero-shot"
            else ["QB-Norm", "QB-Norm", "Dual", "Inverted"]
        )
        assert result.without_leaked is None
    for cost in results.costs:
        assert cost.counted == cost.implemented > 0
        assert cost.seconds > 0
    assert {cost.variant for cost in results.costs} == {"xpool", "glscl"}
    for claim in results.claims:
        assert "no difference shown" in claim.lower(), "eight steps show nothing, and the report must say so"
    assert all(shot.thumbnails for e in results.examples for shot in e.finder_top)
    assert "controls" not in json.loads((folder / "study.json").read_text())
    assert not list(folder.glob("**/controls.*"))
    page = (folder / "report.html").read_text()
    assert "A few steps on toy domains" in page
    rows = list(csv.DictReader((folder / "tables" / "results.csv").open()))
    assert {row["variant"] for row in rows} == {"zero-shot", "xpool", "glscl"}
