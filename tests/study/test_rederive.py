"""A study's claims follow from its file alone, and a number that was changed in it is found."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from glscl.study import analysis
from stress.rederive import check, main
from tests.study.fake import finished, study


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """A study in which one difference is shown, one is not, and one is shown to be none."""
    names = {
        "glscl": ("consistency", "glscl"),
        "xpool": ("attention", "xpool"),
        "wti": ("attention", "wti"),
        "plain": ("ablation", "glscl"),
    }
    variants = {
        name: {"group": group, "what": name, "run": {"model": {"head": h}}} for name, (group, h) in names.items()
    }
    config = study(
        variants=variants, comparisons=[["glscl", n] for n in names if n != "glscl"], equivalence_margin=40.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glscl.study.analysis.describe_protocol", lambda study, cells: {})
        made = analysis.analyse(config, *finished(config, lambda cell, _: 0.6 if cell.variant == "xpool" else 0.3))
    return made.model_dump(mode="json")


def test_claims_are_derived_from_the_file_alone(results: dict[str, Any], tmp_path: Path) -> None:
    assert {row["shown"] for row in results["comparisons"]} == {row["equivalent"] for row in results["comparisons"]}
    assert len(results["claims"]) == 3 + 6
    assert list(check(results)) == []
    (tmp_path / "study.json").write_text(json.dumps(results))
    assert main([str(tmp_path / "study.json")]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"estimate": 1.0}, "the cells give"),
        ({"adjusted_p": 0.9}, "Holm's correction gives"),
        ({"low": -99.0, "high": 99.0}, "disagree"),
        ({"shown": False}, "'shown' is False"),
        ({"equivalent": True, "equivalence_p": 0.9}, "'equivalent' is True"),
        ({"sentence": "glscl is better than xpool in R@1 of them all: +9.9 points (95 % interval +9 to +10)"}, "begin"),
    ],
)
def test_what_does_not_follow_is_found(
    results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    broken = copy.deepcopy(results)
    row = next(row for row in broken["comparisons"] if row["shown"])
    row |= change
    (tmp_path / "study.json").write_text(json.dumps(broken))
    assert main([str(tmp_path / "study.json")]) == 1
    assert said in capsys.readouterr().out


def test_a_count_that_is_none_of_the_comparisons_is_found(results: dict[str, Any]) -> None:
    broken = copy.deepcopy(results)
    broken["claims"][0] = broken["claims"][0].replace(" shown worse", "0 shown worse")
    assert broken["claims"] != results["claims"]
    assert any("counts" in problem for problem in check(broken))
