"""Galleries of equal size: the closed form against every gallery there is, and what a study makes of it."""

from __future__ import annotations

import csv
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from glscl.errors import UserError
from glscl.evaluation.metrics import DIRECTIONS
from glscl.evaluation.ranks import Ranks, text_to_video_ranks, video_to_text_ranks
from glscl.runs.cell import Cell
from glscl.runs.options import ZERO_SHOT
from glscl.runs.sets import locate_sets
from glscl.study.analysis import analyse
from glscl.study.galleries import gallery_rows
from glscl.study.options import StudyConfig
from glscl.study.plan import check_gallery
from glscl.study.report import render_study
from glscl.study.results import EqualGalleries, GalleryFigures, StudyResults
from glscl.study.tables import write_study_tables
from tests.study.fake import VIDEOS, finished, study
from tests.study.study_fixture import make_study

TEXT_TO_VIDEO = [0, 0, 1, 2, 3, 3, 3, 4, 5, 6]


def tied_similarity(seed: int) -> torch.Tensor:
    """Ten texts by seven videos with only four values: most queries have ties."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (10, 7))).double()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_text_to_video_is_the_mean_over_every_gallery(size: int, seed: int) -> None:
    similarity, target = tied_similarity(seed), torch.tensor(TEXT_TO_VIDEO)
    whole = text_to_video_ranks(similarity, target)
    assert int(whole.tied.max()) > 1
    for k in (1, 2, 5):
        expected = []
        for query, own in enumerate(TEXT_TO_VIDEO):
            others = [video for video in range(7) if video != own]
            galleries = [[own, *rest] for rest in combinations(others, size - 1)]
            rows = torch.stack([similarity[query, gallery] for gallery in galleries])
            found = text_to_video_ranks(rows, torch.zeros(len(rows), dtype=torch.int64))
            expected.append(float(found.within(k).mean()))
        assert whole.within_gallery(k, 7, size).tolist() == pytest.approx(expected, abs=1e-12)


def test_video_to_text_is_the_mean_over_every_gallery_of_captioned_videos() -> None:
    similarity, target = tied_similarity(2), torch.tensor(TEXT_TO_VIDEO)
    whole = video_to_text_ranks(similarity, target)
    for k in (1, 2):
        expected = []
        for own in range(7):
            chances = []
            for rest in combinations([video for video in range(7) if video != own], 3):
                texts = [text for text, owner in enumerate(TEXT_TO_VIDEO) if owner in (own, *rest)]
                videos = sorted({own, *rest})
                owners = torch.tensor([videos.index(TEXT_TO_VIDEO[text]) for text in texts])
                ranks = video_to_text_ranks(similarity[texts][:, videos], owners)
                chances.append(float(ranks.within(k)[videos.index(own)]))
            expected.append(sum(chances) / len(chances))
        assert whole.within_gallery(k, 7, 4).tolist() == pytest.approx(expected, abs=1e-12)


def test_large_sets_and_edges() -> None:
    ranks = Ranks(torch.tensor([1, 2, 4917, 900]), torch.tensor([1, 2, 4917, 1400]))
    assert ranks.within_gallery(1, 4917, 4917).tolist() == pytest.approx(ranks.within(1).tolist())
    one, second, last, _ = ranks.within_gallery(1, 4917, 200).tolist()
    assert (one, last) == (1.0, 0.0)
    assert second == pytest.approx(1 - 199 / 4916)
    expected = np.mean([math.comb(4916 - b, 199) / math.comb(4916, 199) for b in range(899, 1400)])
    assert float(ranks.within_gallery(1, 4917, 200)[3]) == pytest.approx(float(expected), rel=1e-9)
    assert Ranks(torch.tensor([1]), torch.tensor([1])).within_gallery(1, 1, 1).tolist() == [1.0]
    with pytest.raises(ValueError, match="a gallery of 8 cannot be drawn from 7"):
        ranks.within_gallery(1, 7, 8)


@pytest.fixture(autouse=True)
def _no_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol counts the videos trained on; these studies have no shards."""
    monkeypatch.setattr("glscl.study.analysis.describe_protocol", lambda study, cells: {"Towers": "made up"})


def _hits(cell: Cell, domain: str) -> float:
    if cell.training == ZERO_SHOT:
        return 0.2
    return 0.6 if domain in cell.domains else 0.3


def _analyse(**changes: Any) -> StudyResults:
    config = study(**changes)
    return analyse(config, *finished(config, _hits))


def test_a_gallery_of_the_whole_set_gives_the_figures_of_the_whole_set() -> None:
    """Intervals included: the resamples are the same."""
    results = _analyse(gallery="smallest")
    assert results.galleries is not None
    assert results.galleries.videos == VIDEOS
    cells = {(row.variant, row.training, row.test): row for row in results.galleries.cells}
    assert len(cells) == len(results.results)
    for result in results.results:
        row = cells[result.variant, result.training, result.test]
        assert row.relation == result.relation
        assert row.retention == result.retention
        for direction in DIRECTIONS:
            assert getattr(row, direction) == {k: getattr(result, direction)[k] for k in ("R@1", "R@5", "R@10")}


def test_smaller_galleries_raise_recall_as_the_ranks_say() -> None:
    results = _analyse(gallery=10)
    galleries = results.galleries
    assert galleries is not None
    # All queries have rank 1, or rank 9 of 40 videos: none of the 8 better ones may be among the 9 others.
    lucky = math.comb(39 - 8, 9) / math.comb(39, 9)
    for result, row in zip(results.results, galleries.cells, strict=True):
        found = result.text_to_video["R@1"].estimate
        figure = row.text_to_video["R@1"]
        assert figure.estimate == pytest.approx(found + lucky * (100 - found))
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.estimate < figure.high
        assert row.text_to_video["R@10"].estimate == pytest.approx(100.0)
    assert {(row.variant, row.relation) for row in galleries.means} == {
        ("zero-shot", "zero-shot"), *((v, r) for v in ("xpool", "glscl") for r in ("in-domain", "cross-domain")),
    }  # fmt: skip
    for mean in galleries.means:
        own = [r for r in galleries.cells if (r.variant, r.relation) == (mean.variant, mean.relation)]
        assert len(own) == 2
        for direction in DIRECTIONS:
            for name, figure in getattr(mean, direction).items():
                values = [getattr(row, direction)[name] for row in own]
                assert figure.estimate == pytest.approx(sum(one.estimate for one in values) / 2)
                assert figure.seeds == values[0].seeds == (0 if mean.variant == "zero-shot" else 3)
                assert figure.low <= figure.estimate <= figure.high <= 100.0
    transfer = next(row for row in galleries.cells if row.relation == "cross-domain")
    home = next(
        r
        for r in galleries.cells
        if (r.variant, r.training, r.test) == (transfer.variant, transfer.test, transfer.test)
    )
    assert transfer.retention is not None
    ratio = transfer.text_to_video["R@1"].estimate / home.text_to_video["R@1"].estimate
    assert transfer.retention.estimate == pytest.approx(100 * ratio)


def test_without_the_key_there_is_nothing() -> None:
    assert _analyse().galleries is None
    assert 'id="galleries"' not in render_study(make_study(("short",), examples=0))


def test_a_gallery_larger_than_a_test_set_is_refused() -> None:
    config = study(gallery=VIDEOS + 1)
    with pytest.raises(UserError, match="gallery: 41 videos, but the test set of toy_clips has 40; give no more"):
        check_gallery(config, locate_sets(config))
    check_gallery(study(gallery=VIDEOS), locate_sets(config))
    with pytest.raises(UserError, match="gallery: 41 videos, but only 40 of toy_clips were tested with"):
        _analyse(gallery=VIDEOS + 1)
    for wrong in (1, 0, True, "largest"):
        with pytest.raises(ValidationError, match="gallery"):
            study(gallery=wrong)


def test_packaged_studies_ask_for_the_smallest() -> None:
    assert {StudyConfig.load(n).gallery for n in ("toy", "toy_frozen", "benchmarks", "benchmarks_frozen")} == {
        "smallest"
    }


def _shown() -> StudyResults:
    """A made-up study whose galleries of 100 have 7 points more than its whole sets."""
    results = StudyResults.model_validate(make_study(("short",), examples=0))

    def figures(result: Any, **own: Any) -> GalleryFigures:
        recalls = ("R@1", "R@5", "R@10")
        values = {d: {k: _raise(getattr(result, d)[k]) for k in recalls} for d in DIRECTIONS}
        return GalleryFigures(
            condition="short", variant=result.variant, relation=result.relation, retention=result.retention, **values,
            **own,
        )  # fmt: skip

    cells = [figures(result, training=result.training, test=result.test) for result in results.results]
    means = {(row.variant, row.relation): row.model_copy(update={"training": "", "test": ""}) for row in cells}
    galleries = EqualGalleries(videos=100, cells=cells, means=list(means.values()))
    return results.model_copy(update={"galleries": galleries})


def _raise(estimate: Any) -> Any:
    return estimate.model_copy(update={"estimate": estimate.estimate + 7})


def test_page_and_table_show_them(tmp_path: Path) -> None:
    results = _shown()
    page = render_study(results)
    assert "Here every query has a gallery of 100 videos" in page
    assert page.index('id="matrix"') < page.index('id="galleries"') < page.index('id="differences"')
    first = results.results[0].text_to_video["R@1"].estimate
    section = page[page.index('id="galleries"') : page.index('id="differences"')]
    assert f"<td>{first + 7:.1f}<small>" in section
    assert f"<td>{first:.1f}<small>" in section
    write_study_tables(results, str(tmp_path))
    assert results.galleries is not None
    with (tmp_path / "galleries.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(gallery_rows(results.galleries)))
    assert {row["gallery"] for row in rows} == {"100"}
    assert {"in-domain mean", "cross-domain mean", "toy_clips -> toy_stories"} <= {row["scope"] for row in rows}
    assert {row["metric"] for row in rows} == {"R@1", "R@5", "R@10", "retention"}
