"""WiSE-FT in a study: what it says of ranks by other towers, and what cannot be asked for."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from glscl.errors import UserError
from glscl.runs.cell import Cell, CellResult, WiseFtTest, read_wise_ft, write_wise_ft
from glscl.runs.options import ZERO_SHOT
from glscl.runs.sets import Sets
from glscl.study.grid import build_cells
from glscl.study.options import StudyConfig
from glscl.study.report import render_study
from glscl.study.results import StudyResults, WiseFt
from glscl.study.tables import write_study_tables
from glscl.study.wise_ft import describe_wise_ft, find_wise_ft
from glscl.system import storage
from tests.study.fake import finished, study
from tests.study.study_fixture import make_study

ALPHAS = (0.25, 0.5)
Done = tuple[StudyConfig, list[Cell], list[tuple[Cell, CellResult]]]


@pytest.fixture
def done(tmp_path: Path) -> Done:
    """Across domains, half of what is lost is found by towers between; at home, some of what is found is lost."""
    config = study(wise_ft=list(ALPHAS), storage=str(tmp_path))
    cells, found = finished(config, lambda cell, domain: 0.8 if domain in cell.domains else 0.4)
    for number, (cell, result) in enumerate(found):
        tests = []
        for test in result.tests:
            for alpha in cell.wise_ft:
                ranks = {}
                for direction in ("text_to_video", "video_to_text"):
                    before = getattr(test.per_query, direction).optimistic
                    noise = 0.02 * np.random.default_rng(number).standard_normal(len(before))
                    draw = np.random.default_rng(0).random(len(before)) + noise
                    if test.domain in cell.domains:
                        after = np.where(draw < 1 - alpha, 9, before)
                    else:
                        after = np.where(draw < alpha, 1, before)
                    ranks[direction] = {"optimistic": after, "pessimistic": after}
                own = {"domain": test.domain, "fingerprint": test.fingerprint, "towers_alpha": alpha}
                tests.append(WiseFtTest.model_validate(own | {"hubness_skewness": 1.0} | ranks))
        write_wise_ft(cell.directory, tests)
    return config, cells, found


def _row(rows: list[WiseFt], *key: object) -> WiseFt:
    return next(r for r in rows if (r.variant, r.relation, r.training, r.test, r.towers_alpha) == key)


def test_changes_are_those_of_the_ranks(done: Done) -> None:
    config, cells, found = done
    assert all(bool(cell.wise_ft) == (cell.training != ZERO_SHOT) for cell in cells)
    rows = find_wise_ft(config, cells, found)
    assert len(rows) == 2 * (2 * 2 * 2) + 2 * 2 * 2, "cells, then means of two relations"
    for row in (row for row in rows if row.test):
        before, after = [], []
        for cell, result in found:
            if (cell.variant, cell.training) == (row.variant, row.training):
                (plain,) = (test for test in result.tests if test.domain == row.test)
                (changed,) = (
                    test
                    for test in read_wise_ft(cell.directory)
                    if (test.domain, test.towers_alpha) == (row.test, row.towers_alpha)
                )
                before += [100.0 * (rank == 1) for rank in plain.per_query.text_to_video.optimistic.tolist()]
                after += [100.0 * (rank == 1) for rank in changed.text_to_video.optimistic.tolist()]
        recall, change = row.recall["text_to_video"], row.change["text_to_video"]
        assert recall.estimate == pytest.approx(np.mean(after))
        assert change.estimate == pytest.approx(np.mean(after) - np.mean(before))
        assert change.seeds == 3
        assert (change.low is not None and change.low > 0) == (row.relation == "cross-domain")
        assert (change.high is not None and change.high < 0) == (row.relation == "in-domain")
    for relation, places in (
        ("in-domain", [("toy_clips", "toy_clips"), ("toy_stories", "toy_stories")]),
        ("cross-domain", [("toy_clips", "toy_stories"), ("toy_stories", "toy_clips")]),
    ):
        mean = _row(rows, "glscl", relation, "", "", 0.5)
        own = [_row(rows, "glscl", relation, *place, 0.5) for place in places]
        for direction in ("text_to_video", "video_to_text"):
            for figure in ("recall", "change"):
                estimate, parts = getattr(mean, figure)[direction], [getattr(one, figure)[direction] for one in own]
                assert estimate.estimate == pytest.approx(sum(part.estimate for part in parts) / 2)
                assert estimate.seeds == 3
                assert estimate.high - estimate.low < max(part.high - part.low for part in parts)


def test_only_what_all_seeds_have_is_reported(done: Done) -> None:
    config, cells, found = done
    cell = found[-1][0]
    storage.remove(storage.join(cell.directory, "wise_ft.json"))
    rows = [row for row in find_wise_ft(config, cells, found) if row.test]
    assert len(rows) == 2 * 2 * (2 * 2 - 1)
    assert (cell.variant, cell.training) not in {(row.variant, row.training) for row in rows}
    assert find_wise_ft(config.model_copy(update={"wise_ft": ()}), cells, found) == []


def test_page_and_table_show_them(done: Done, tmp_path: Path) -> None:
    rows = find_wise_ft(*done)
    results = StudyResults.model_validate(make_study(("short",), examples=0)).model_copy(update={"wise_ft": rows})
    sentences = list(describe_wise_ft(results, "short"))
    assert len(sentences) == 4
    assert sentences[0].startswith(
        "Towers at α = 0.25 (cross-domain mean): text-to-video R@1 is shown higher for 2 of 2 heads, lower for 0; "
    )
    assert "(in-domain mean): text-to-video R@1 is shown higher for 0 of 2 heads, lower for 2" in sentences[1]
    page = render_study(results)
    assert page.index('id="controls"') < page.index('id="wise-ft"') < page.index('id="transfer"')
    assert sentences[0] in page
    mean = _row(rows, "glscl", "cross-domain", "", "", 0.5).change["text_to_video"].estimate
    assert f"<b>+{mean:.1f}</b>" in page
    assert 'id="wise-ft"' not in render_study(make_study(("short",), examples=0))
    write_study_tables(results, str(tmp_path))
    with (tmp_path / "wise_ft.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * len(rows)
    assert {row["scope"] for row in table} >= {"in-domain mean", "cross-domain mean", "toy_clips -> toy_stories"}
    first = next(row for row in table if row["direction"] == "text_to_video")
    assert float(first["change_low"]) <= float(first["change"]) <= float(first["change_high"])


FROZEN: dict[str, Any] = {"model": {"clip": "glscl-tiny", "freeze": "towers"}}


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(ValidationError, match="a number is given twice"):
        study(wise_ft=[0.5, 0.5])
    with pytest.raises(ValidationError, match=r"wise_ft\.0\n.*less than 1"):
        study(wise_ft=[1.0])
    config = study(wise_ft=[0.5], run=FROZEN)
    sets = {name: Sets(("s",), (), "t") for name in config.domains}
    with pytest.raises(UserError, match=r"wise_ft: there is nothing between: no variant's towers are trained"):
        build_cells(config, sets)
    adapted = study(wise_ft=[0.5], run={"model": {**FROZEN["model"], "adapters": {"lora_rank": 2}}})
    assert all(cell.wise_ft for cell in build_cells(adapted, sets) if cell.domains)
    mixed = study(wise_ft=[0.5], run={"model": {"clip": "glscl-tiny"}, "evaluation": {"towers_alpha": 0.5}})
    with pytest.raises(UserError, match=r"wise_ft: there is nothing between: .*evaluation\.towers_alpha"):
        build_cells(mixed, sets)
