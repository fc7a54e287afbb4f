"""A sweep as users run it: killed half-way, started again, ended trials left alone, everything given back."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from glscl.evaluation.saved import read_card
from tune.results import parse_sweep

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def ended(folder: Path) -> list[dict[str, Any]]:
    path = folder / "trials.json"
    return [t for t in json.loads(path.read_text()) if t["state"] != "running"] if path.exists() else []


def test_killed_and_continued_without_repeating_an_ended_trial(glscl: Callable[..., Any], tmp_path: Path) -> None:
    words = ["sweep", "--config", "toy_small", "--storage", str(tmp_path)]
    folder = tmp_path / "toy-sweep-small"
    first = glscl(*words)
    first.wait_until(lambda: len(ended(folder)) >= 2)
    first.kill()
    left = {trial["name"]: trial for trial in ended(folder)}
    assert 2 <= len(left) < 5
    files = {path: path.stat().st_mtime_ns for name in left for path in folder.glob(f"trials/{name}/trial.json")}

    output = glscl(*words).wait()
    assert f"5 trials, 2 at once, 16 steps each; {len(left)} of them ended before" in output
    for name in left:
        assert f"trial {name} starts" not in output
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert re.search(r"sweep: resources are back: 2 CPUs free, no placement group left", output)

    results = parse_sweep(json.loads((folder / "results.json").read_text()))
    assert len(results.trials) == 5
    found = {name: trial for name, trial in by_name(results).items() if name in left}
    assert {name: json.loads(json.dumps(asdict(trial))) for name, trial in found.items()} == left
    states = {trial.name: trial.state for trial in results.trials}
    assert set(states.values()) == {"finished", "stopped"}
    for trial in results.trials:
        assert trial.history[0].step == 4
        assert (trial.history[-1].step == 16) == (trial.state == "finished")
        assert all(step.objective == min(step.domains.values()) for step in trial.history)
    assert not list(folder.glob("trials/*/*/step_*")), "an ended trial keeps no checkpoint"
    models = [path.parent.parent.name for path in folder.glob("trials/*/*/model")]
    assert models == [results.best]
    assert states[results.best] == "finished"
    assert results.confirmation is not None
    assert results.confirmation.seeds == [2, 3]
    assert len(list(folder.glob("confirmation/*/all/cell.json"))) == 4
    assert re.match(r"glscl: OK sweep=toy-sweep-small trials=5/5 best=[\d.]+ ", output.splitlines()[-1])
    assert "5 trials were scored at step 4: too few" in (folder / "report.html").read_text()
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert {row["trial"]: row["state"] for row in rows} == states

    _, card = read_card(str(folder))
    assert set(card.train_domains) == {"toy_clips", "toy_stories"}
    again = glscl("train", "--config", str(folder / "best.yaml"), "--dry-run").wait()
    assert again.splitlines()[-1].startswith("glscl: OK dry run")
    assert "toy_clips/dev, toy_stories/dev" in again


def by_name(results: Any) -> dict[str, Any]:
    return {trial.name: trial for trial in results.trials}
