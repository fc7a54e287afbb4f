"""Intervals and differences where all relevant videos of a caption count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glscl.errors import UserError
from glscl.evaluation.metrics import RELEVANT_SUMMARY
from glscl.runs.cell import Cell
from glscl.study.analysis import analyse
from glscl.study.report import render_study
from glscl.study.results import StudyResults
from glscl.study.tables import write_study_tables
from stress.rederive import check
from tests.study.fake import Change, finished, study


@pytest.fixture(autouse=True)
def _no_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol counts the videos trained on; these studies have no shards."""
    monkeypatch.setattr("glscl.study.analysis.describe_protocol", lambda study, cells: {"Towers": "made up"})


def _share(cell: Cell, domain: str) -> float:
    return 0.6 if domain in cell.domains else 0.5 if cell.variant == "glscl" else 0.2


def _with_list(every: int) -> Change:
    """Cells of which each ``every``-th caption of toy_clips has one relevant video, its own."""

    def change(cell: Cell, values: dict[str, Any]) -> None:
        found = [100.0 * (rank == 1) for rank in values["tests"][0]["per_query"]["text_to_video"]["optimistic"]][
            ::every
        ]
        figures = dict.fromkeys(RELEVANT_SUMMARY, sum(found) / len(found))
        captions = list(range(0, every * len(found), every))
        queries = {"captions": captions, "values": dict.fromkeys(RELEVANT_SUMMARY, found)}
        values["tests"][0]["several_relevant"] = {
            "list": "q",
            "note": "all",
            "captions": 0,
            "relevant": 1.0,
            "text_to_video": figures,
            "per_query": queries,
        }

    return change


def _study(every: int) -> StudyResults:
    config = study()
    return analyse(config, *finished(config, _share, _with_list(every)))


def test_where_one_video_is_relevant_intervals_and_differences_are_those_of_the_ranks() -> None:
    results = _study(1)
    asked = [result for result in results.results if result.test == "toy_clips"]
    assert len(asked) == 5  # two variants after two trainings, and zero-shot
    for result in asked:
        assert result.several_relevant is not None
        assert result.several_relevant.intervals["R@1"] == result.text_to_video["R@1"]
    plain = {row.scope: row for row in results.comparisons if row.direction == "text_to_video"}
    assert [row.scope for row in results.relevant_comparisons] == ["toy_clips -> toy_clips", "toy_stories -> toy_clips"]
    for row in results.relevant_comparisons:
        own = plain[row.scope]
        assert (row.estimate, row.low, row.high, row.p_value) == (own.estimate, own.low, own.high, own.p_value)
        assert "all relevant videos" in row.sentence
        assert "all relevant videos" not in own.sentence
    assert results.relevant_comparisons[1].shown


def test_captions_without_a_relevant_video_are_no_queries() -> None:
    half = _study(2)
    for result in half.results:
        if result.test == "toy_clips":
            assert result.several_relevant is not None
            interval = result.several_relevant.intervals["R@1"]
            assert interval.estimate == pytest.approx(result.several_relevant.text_to_video["R@1"])
            assert "Over 40 queries" in interval.note
    shown = {row.scope: row for row in half.relevant_comparisons}["toy_stories -> toy_clips"]
    assert shown.low <= shown.estimate <= shown.high


def test_lists_that_changed_between_cells_are_refused() -> None:
    config = study()

    def change(cell: Cell, values: dict[str, Any]) -> None:
        _with_list(2 if cell.variant == "glscl" else 1)(cell, values)

    with pytest.raises(UserError, match="toy_clips: cells were tested with different lists of relevant videos"):
        analyse(config, *finished(config, _share, change))


def test_page_tables_and_rederivation_have_them(tmp_path: Path) -> None:
    results = _study(1)
    values = results.model_dump(mode="json")
    assert list(check(values)) == []
    values["relevant_comparisons"][1]["estimate"] += 1.0
    assert any("the cells give" in problem for problem in check(values))
    assert "Differences in R@1 when all relevant videos count" in render_study(results)
    write_study_tables(results, str(tmp_path))
    lines = (tmp_path / "results.csv").read_text(encoding="utf-8").splitlines()
    header = lines[0].split(",")
    row = dict(zip(header, next(line for line in lines if "all relevant videos" in line).split(","), strict=False))
    assert float(row["low"]) <= float(row["estimate"]) <= float(row["high"])
