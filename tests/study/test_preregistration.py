"""What a study registers before its first cell, what it will detect, and how the report compares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from glscl.errors import UserError
from glscl.runs.sets import locate_sets
from glscl.study.detectable import Assumed, assume_deviations, plan_differences, read_pilot
from glscl.study.options import StudyConfig
from glscl.study.plan import describe_claims, plan_detectable
from glscl.study.preregistration import FILE, check_registration, register
from glscl.study.results import parse_study
from glscl.study.statistics import Precision, detectable
from tests.study.fake import study
from tests.study.study_fixture import make_study


def _study(tmp_path: Path, **changes: Any) -> StudyConfig:
    return study(storage=str(tmp_path), equivalence_margin=2.0, assumed_sd=1.5, **changes)


def _differences(config: StudyConfig) -> list[str]:
    registration = check_registration(config)
    assert registration is not None
    return registration.differences


def test_what_is_registered_agrees_with_itself_and_is_kept(tmp_path: Path) -> None:
    config = _study(tmp_path)
    first = register(config, plan_detectable(config, locate_sets(config)))
    registration = check_registration(config)
    assert registration is not None
    assert (registration.sha256, registration.differences) == (first, [])
    assert list(registration.detectable) == [
        *("in-domain mean", "cross-domain mean", "toy_clips -> toy_clips", "toy_clips -> toy_stories"),
        *("toy_stories -> toy_clips", "toy_stories -> toy_stories"),
    ]
    changed = _study(tmp_path, seeds=[1, 2])
    assert register(changed, []) != first, "until the first cell begins it is written anew"
    (Path(config.directory) / "cells").mkdir()
    assert register(config, []) is None
    assert _differences(changed) == []
    assert _differences(config) == ["plan.seeds: [1, 2] -> [1, 2, 3]"]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"equivalence_margin": 3.0}, "equivalence_margin: 2.0 -> 3.0"),
        ({"equivalence_margin": None}, "equivalence_margin: 2.0 -> None"),
        ({"comparisons": [["xpool", "glscl"]]}, "comparisons: [['glscl', 'xpool']] -> [['xpool', 'glscl']]"),
        (
            {"run": {"model": {"clip": "glscl-tiny"}, "training": {"epochs": 3}}},
            "plan.run.training: None -> {'epochs': 3}",
        ),
        ({"union": True}, "plan.union: False -> True"),
        ({"resamples": 400}, "plan.resamples: 200 -> 400"),
    ],
)
def test_whatever_decides_the_claims_is_compared(tmp_path: Path, changes: dict[str, Any], difference: str) -> None:
    register(_study(tmp_path), [])
    assert _differences(study(storage=str(tmp_path), **({"equivalence_margin": 2.0} | changes))) == [difference]


def test_where_and_how_fast_is_free(tmp_path: Path) -> None:
    training = {"num_workers": 2, "compile": True}
    run = {"model": {"clip": "glscl-tiny", "grad_checkpointing": True}, "evaluation": {"memory_mb": 512}}
    register(_study(tmp_path), [])
    assert _differences(_study(tmp_path, run=run | {"training": training}, examples=0, label="x", concurrent=3)) == []


def test_a_file_that_was_changed_afterwards_is_named(tmp_path: Path) -> None:
    config = _study(tmp_path)
    register(config, [])
    where = Path(config.directory) / FILE
    values = json.loads(where.read_text())
    where.write_text(json.dumps(values | {"equivalence_margin": 3.0}))
    assert _differences(study(storage=str(tmp_path), equivalence_margin=3.0)) == [
        "equivalence_margin: the file was changed after it was written"
    ]


def test_a_study_that_registered_nothing_has_nothing_to_compare(tmp_path: Path) -> None:
    assert check_registration(_study(tmp_path)) is None


def test_the_plan_detects_what_its_variances_allow() -> None:
    """Two domains of 40 videos: 4 single cells, 2 means, one pair, three seeds."""
    config = study(assumed_sd=2.0, assumed_query_sd=30.0)
    assumed = assume_deviations(config)
    assert assumed == Assumed(2.0, 30.0, "assumed_sd, assumed_query_sd")
    planned = dict(plan_differences(config, assumed, {"toy_clips": 40, "toy_stories": 160}))
    single = Precision(2 * 4 / 3, 2, 3, 900 / 160, 160)
    assert planned["toy_clips -> toy_stories"] == pytest.approx(detectable(single, 0.05 / 4))
    mean = Precision(2 * 2 * 1 / 3, 4, 3, 900 / 4 / 40 + 900 / 4 / 160, 200)
    assert planned["in-domain mean"] == planned["cross-domain mean"] == pytest.approx(detectable(mean, 0.05 / 2))
    assert planned["in-domain mean"] < planned["toy_clips -> toy_stories"] < planned["toy_clips -> toy_clips"]
    text = describe_claims(config)
    assert text["equivalence"] == "not asked (no margin)"
    assert "toy_clips -> toy_clips" in text["detectable"]
    assert describe_claims(study())["detectable"].startswith("not known: state assumed_sd")
    assert describe_claims(study(equivalence_margin=1.5))["equivalence"].startswith("within ±1.5 points of R@1")


@pytest.mark.parametrize("old", [False, True])
def test_a_pilot_gives_both_deviations(old: bool) -> None:
    """From the standard errors of its comparisons or, in files that lack them, from their intervals."""
    values = make_study()
    seeds, query_sd = len(values["seeds"]), 25.0
    deviation = next(r for r in values["results"] if r["relation"] == "in-domain")["text_to_video"]["R@1"]["deviation"]
    videos = {test["name"]: test["videos"] for test in values["tests"]}
    for row in values["comparisons"]:
        test = row["scope"].partition(" -> ")[2]
        if not test:
            continue
        of_seeds = 2 * deviation**2 / seeds
        variance = of_seeds + query_sd**2 / videos[test]
        degrees = 2 * (seeds - 1) * (variance / of_seeds) ** 1.25
        half = float(stats.t.isf(0.025, degrees) * np.sqrt(variance))
        row |= {"low": row["estimate"] - half, "high": row["estimate"] + half}
        if not old:
            row["standard_error"] = float(np.sqrt(variance))
    found = read_pilot(parse_study(values))
    assert found.seed_sd == pytest.approx(deviation)
    assert found.query_sd == pytest.approx(query_sd, rel=1e-6)


def test_a_pilot_must_be_there_and_have_seeds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pilot: .*earlier/study\.json: no such file"):
        assume_deviations(study(storage=str(tmp_path), pilot="earlier"))
    values = make_study() | {"comparisons": []}
    with pytest.raises(UserError, match="has no comparisons of single cells"):
        read_pilot(parse_study(values))
