"""Matched amounts of training data: conditions that differ in nothing else, and what a study says of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from glscl.data.apart import NamedSet
from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.runs.cell import Cell, CellResult
from glscl.runs.sets import locate_sets
from glscl.study.grid import _check_amounts, build_cells
from glscl.study.matched import describe_matched, find_matched
from glscl.study.options import StudyConfig
from glscl.study.report import render_study
from glscl.study.results import StudyResults
from glscl.study.tables import write_study_tables
from tests.study.fake import finished, study
from tests.study.study_fixture import make_study

MODEL = {"max_words": 16, "max_frames": 2}
CONDITIONS = {"whole": {"model": MODEL}, "few": {"model": MODEL, "data": {"max_videos": 4}}}
Done = tuple[StudyConfig, list[Cell], list[tuple[Cell, CellResult]]]


@pytest.fixture(scope="module")
def done() -> Done:
    """Fewer videos cost the attention head 25 points at home, the other nothing; nobody loses across domains."""

    def hits(cell: Cell, domain: str) -> float:
        home = domain in cell.domains
        return (0.8 if home else 0.4) - (0.25 if home and cell.condition == "few" and cell.variant == "xpool" else 0.0)

    config = study(conditions=CONDITIONS, matched={"few": "whole"})
    return config, *finished(config, hits)


def test_a_condition_takes_a_part_of_every_training_set() -> None:
    config = study(conditions=CONDITIONS, matched={"few": "whole"})
    limits = {(cell.condition, cell.config.data.max_videos) for cell in build_cells(config, locate_sets(config))}
    assert limits == {("whole", None), ("few", 4)}


def test_differences_are_those_of_the_ranks(done: Done) -> None:
    rows = find_matched(*done)
    assert len(rows) == 2 * 2 + 2 * 2 * 2, "means of two relations, then cells"

    def recalls(condition: str, row: Any) -> float:
        found = [
            100.0 * np.mean(test.per_query.text_to_video.optimistic == 1)
            for cell, result in done[2]
            if (cell.condition, cell.variant, cell.training) == (condition, row.variant, row.training)
            for test in result.tests
            if test.domain == row.test
        ]
        assert len(found) == 3
        return float(np.mean(found))

    for row in rows[4:]:
        change = row.change["text_to_video"]
        assert row.recall["text_to_video"] == pytest.approx(recalls("few", row))
        assert row.recall_of["text_to_video"] == pytest.approx(recalls("whole", row))
        assert change.estimate == pytest.approx(recalls("few", row) - recalls("whole", row))
        assert change.seeds == 3
        lost = row.variant == "xpool" and row.relation == "in-domain"
        assert (change.high is not None and change.high < 0) == lost
    for mean in rows[:4]:
        own = [row for row in rows[4:] if (row.variant, row.relation) == (mean.variant, mean.relation)]
        assert len(own) == 2
        for direction in ("text_to_video", "video_to_text"):
            assert mean.change[direction].estimate == pytest.approx(
                np.mean([r.change[direction].estimate for r in own])
            )
            assert mean.recall[direction] == pytest.approx(np.mean([r.recall[direction] for r in own]))


def test_only_what_both_conditions_have_is_compared(done: Done) -> None:
    config, cells, found = done
    left = [(cell, result) for cell, result in found if cell.condition == "whole" or cell.variant == "glscl"]
    assert {row.variant for row in find_matched(config, cells, left)} == {"glscl"}
    assert find_matched(config, cells, [one for one in found if one[0].condition == "whole"]) == []
    assert find_matched(config.model_copy(update={"matched": {}}), cells, found) == []


def test_other_queries_are_refused(done: Done) -> None:
    config, cells, found = done
    cell, result = found[-1]
    test = result.tests[0]
    queries = test.per_query.model_copy(update={"owners": [0, *test.per_query.owners[:-1]]})
    changed = result.model_copy(update={"tests": [test.model_copy(update={"per_query": queries}), *result.tests[1:]]})
    with pytest.raises(UserError, match="matched: conditions 'few' and 'whole' were tested on different videos of toy"):
        find_matched(config, cells, [*found[:-1], (cell, changed)])


def test_page_and_table_show_them(done: Done, tmp_path: Path) -> None:
    rows = find_matched(*done)
    results = StudyResults.model_validate(make_study(("whole", "few"), examples=0)).model_copy(update={"matched": rows})
    sentences = list(describe_matched(results))
    assert len(sentences) == 2
    assert any(
        "few against whole (in-domain mean): text-to-video R@1 is shown lower for 1 of 2" in s for s in sentences
    )
    page = render_study(results)
    assert all(sentence in page for sentence in sentences)
    assert 'id="matched"' not in render_study(make_study(("short",), examples=0))
    write_study_tables(results, str(tmp_path))
    with (tmp_path / "matched.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * len(rows)
    for row in table:
        assert float(row["change"]) == pytest.approx(float(row["recall"]) - float(row["recall_of"]))


def test_what_cannot_be_matched(make_shards: Callable[..., ShardSet]) -> None:
    other = {"model": MODEL | {"max_words": 32}, "data": {"max_videos": 4}}
    with pytest.raises(
        ValidationError, match=r"'few' and 'whole' may differ in data\.max_videos.* in model\.max_words"
    ):
        study(conditions=CONDITIONS | {"few": other}, matched={"few": "whole"})
    with pytest.raises(ValidationError, match="and differ in nothing"):
        study(conditions=CONDITIONS, matched={"few": "few"})
    with pytest.raises(ValidationError, match="matched: 'fwe' is none of whole, few"):
        study(conditions=CONDITIONS, matched={"fwe": "whole"})
    for amount in ({"training": {"max_steps": 10}}, {"data": {"max_pairs": 9}}, {"training": {"epochs": 2}}):
        study(conditions=CONDITIONS | {"few": {"model": MODEL, **amount}}, matched={"few": "whole"})
    config: Any = SimpleNamespace(conditions=CONDITIONS, matched={"few": "whole"})
    small, enough = (
        NamedSet(f"domains.{name}.train", make_shards(name, captions=captions))
        for name, captions in (("small", (1, 1, 2)), ("more", (1, 1, 2, 1)))
    )
    with pytest.raises(
        UserError, match=r"conditions\.few\.data\.max_videos: 4, but domains\.small\.train: .* has 3: training sets are"
    ):
        _check_amounts(config, [small])
    _check_amounts(config, [enough])
