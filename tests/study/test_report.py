"""The page of a study: complete, well formed, self-contained, safe, and honest about what is missing."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from glscl.errors import UserError
from glscl.reporting.published import PACKAGED, read_published
from glscl.study import charts, sections
from glscl.study.beside import read_beside
from glscl.study.report import render_study
from glscl.study.results import parse_study
from tests.reporting.html_page import HOSTILE, Page
from tests.study.study_fixture import TESTS, VARIANTS, make_study

SECTIONS = (
    "The domain matrix",
    "Differences",
    "Controls: the order of frames",
    "Retention and lift over zero-shot",
    "Accuracy against cost",
    "Hubness",
    "Normalised scores",
    "Examples",
    "Published figures",
    "What was fixed before the run",
    "Protocol",
    "Full tables",
    "How to cite",
)


@pytest.fixture
def study() -> dict[str, Any]:
    return make_study()


def packaged() -> list[Any]:
    return read_published(PACKAGED)


def test_every_section_is_there_in_order(study: dict[str, Any]) -> None:
    page = Page(render_study(study, packaged()))
    assert page.headings == list(SECTIONS)
    anchors = {a["href"] for tag, a in page.elements if tag == "a"}
    assert anchors == {f"#{a['id']}" for tag, a in page.elements if tag == "section"}


def test_what_was_registered_is_compared_on_the_page(study: dict[str, Any]) -> None:
    assert "Nothing was registered before the first cell was trained." in Page(render_study(study)).text
    registered = {"written": "2025-05-01T12:30:00+00:00", "sha256": "ab" * 32, "differences": []}
    study |= {"equivalence_margin": 2.5, "preregistration": registered | {"detectable": {"in-domain mean": 1.24}}}
    text = Page(render_study(study)).text
    assert "Registered 1 May 2025, 12:30 UTC, before the first cell was trained" in text
    assert "(±2.5 points)" in text
    assert (
        "What is reported agrees with it. Planned as detectable with 80 % power, in points: in-domain mean 1.2." in text
    )
    study["preregistration"] |= {"differences": ["plan.seeds: [1] -> [1, <2>]"]}
    text = Page(render_study(study)).text
    assert "What is reported does not agree with it: plan.seeds: [1] -> [1, <2>]" in text
    assert "agrees with it" not in text


def test_what_is_equal_and_what_was_detectable_stands_beside_a_difference(study: dict[str, Any]) -> None:
    old = Page(render_study(study)).text
    assert "equal within the margin" not in old
    assert "detectable: " not in old
    hidden = next(row for row in study["comparisons"] if not row["shown"])
    hidden |= {"detectable": 4.26, "equivalent": True, "equivalence_p": 0.01}
    text = Page(render_study(study | {"equivalence_margin": 3.0})).text
    assert f"{hidden['second']} equal within the margin detectable: 4.3" in text
    groups = {variant["name"]: variant["group"] for variant in study["variants"]}
    assert text.count("detectable: ") == 1 + _is_in_picture(hidden, groups), "the picture of the answer as well"
    assert "refute a difference of ±3.0 points or more" in text


def test_another_study_beside_it(study: dict[str, Any], tmp_path: Path) -> None:
    """Means over cells of both, where both have them, and what the other says."""
    assert read_beside(str(tmp_path / "study.json"), parse_study(study)) is None
    other = copy.deepcopy(study) | {"name": "trained", "label": HOSTILE, "claims": ["Trained towers say this."]}
    other["results"] = [result for result in other["results"] if result["variant"] != "xpool"]
    for result in other["results"]:
        result["text_to_video"]["R@1"]["estimate"] += 7.0
    (tmp_path / "study.json").write_text(json.dumps(other))
    beside = read_beside(str(tmp_path / "study.json"), parse_study(study))
    assert beside is not None
    assert {row.variant for row in beside.rows} == {r["variant"] for r in other["results"]}
    for row in beside.rows:
        cells = [
            result["text_to_video"]["R@1"]["estimate"]
            for result in study["results"]
            if (result["variant"], result["relation"]) == (row.variant, row.scope)
        ]
        assert row.ours == pytest.approx(sum(cells) / len(cells))
        assert row.theirs == pytest.approx(row.ours + 7.0)
    page = Page(render_study(study | {"beside": beside.model_dump()}))
    assert page.headings[2] == "Beside trained"
    assert HOSTILE in page.text
    assert "Trained towers say this." in page.text
    assert page.text.count("−7.0") >= len(beside.rows)


def test_missing_videos_are_shown(study: dict[str, Any]) -> None:
    study["tests"][0] |= {"quarantined": 3, "rejected": 1_000}
    study["incomplete"] = [
        {"part": "validation", "domain": HOSTILE, "split": "dev", "videos": 16, "of": 19, "reasons": "3 x torn"}
    ]
    page = Page(render_study(study, packaged()))
    assert "200 of 1,203" in page.text
    assert "16 of 19" in page.text
    assert "held-out" in page.text
    assert HOSTILE in page.text
    assert "Missing videos" in page.headings


def test_header_says_what_the_figures_are_of_and_the_answer_first(study: dict[str, Any]) -> None:
    page = Page(render_study(study))
    facts = ["Toy domains, not MSR-VTT", *study["claims"], "Cells finished 54 of 54", "Seeds 1, 2, 3"]
    facts += ["2 cores AMD EPYC", "0123456789ab", "glscl study --config toy", "1 June 2025, 12:30 UTC"]
    for fact in facts:
        assert fact in page.text, fact
    assert page.text.index(study["claims"][0]) < page.text.index(study["claims"][1])
    assert "Unfinished" not in page.text


def test_unfinished_study_says_so(study: dict[str, Any]) -> None:
    gone = ("xpool", "toy_stories", "toy_clips")
    study["results"] = [r for r in study["results"] if (r["variant"], r["training"], r["test"]) != gone]
    study["finished_cells"] = 53
    page = Page(render_study(study))
    assert "Unfinished: 53 of 54 cells." in page.text
    assert page.text.index("Unfinished") < page.text.index(study["claims"][0])
    assert len(page.having("missing")) == 1
    # A mean over other cells than the rest's would be no comparison.
    assert "Left out, because not every cell has finished: xpool." in page.text


@pytest.mark.parametrize("conditions", [("32_words_12_frames",), ("32_words_12_frames", "64_words_64_frames")])
def test_matrix_has_a_map_per_variant_and_condition(conditions: Sequence[str]) -> None:
    page = Page(render_study(make_study(tuple(conditions))))
    assert len(page.having("heat")) == len(VARIANTS) * len(conditions)
    framed = [a for tag, a in page.elements if tag == "td" and "in-domain" in (a.get("class") or "")]
    assert len(framed) == len(VARIANTS) * len(conditions) * len(TESTS)
    assert "chance: toy_clips/test 0.50 %" in page.text
    assert ("64_words_64_frames" in page.text) is (len(conditions) == 2)


def test_matrix_shows_mean_and_deviation(study: dict[str, Any]) -> None:
    result = next(r for r in study["results"] if r["variant"] == "glscl" and r["relation"] == "in-domain")
    result["text_to_video"]["R@1"] |= {"estimate": 61.23, "deviation": 3.21}
    assert "61.2 ± 3.2" in Page(render_study(study)).text


def test_differences_means_first_with_adjusted_p(study: dict[str, Any]) -> None:
    study["comparisons"][0] |= {"estimate": -1.25, "low": -3.5, "high": 1.0, "adjusted_p": 0.0123, "shown": False}
    groups = {variant["name"]: variant["group"] for variant in study["variants"]}
    page = Page(render_study(study))
    assert "glscl − mean_pool −1.2 −3.5 to 1.0 p = 0.012" in page.text
    assert page.text.index("Means over cells") < page.text.index("Single cells")
    shown = sum(row["shown"] for row in study["comparisons"])
    shown += sum(row["shown"] for row in study["comparisons"] if _is_in_picture(row, groups))
    assert len([a for a in page.having("row") if "shown" in (a["class"] or "").split()]) == shown > 0


def _is_in_picture(row: Mapping[str, Any], groups: Mapping[str, str]) -> bool:
    asked = groups.get(row["first"]) == "consistency" and groups.get(row["second"]) in ("attention", "ablation")
    return asked and row["scope"].endswith(" mean") and row["direction"] == "text_to_video" and row["metric"] == "R@1"


def test_the_first_screen_has_the_picture_of_the_answer(study: dict[str, Any]) -> None:
    """Three sentences, then consistency heads against attention and themselves; every other claim is folded."""
    groups = {variant["name"]: variant["group"] for variant in study["variants"]}
    study["claims"] = [f"Claim number {n}." for n in range(10)]
    page = Page(render_study(study))
    first = page.text[page.text.index("Claim number 2.") : page.text.index("7 more Claim number 3.")]
    asked = [row for row in study["comparisons"] if _is_in_picture(row, groups)]
    assert first.count(" − ") == len(asked) > 0
    assert all(f"{row['first']} − {row['second']}" in first for row in asked)
    study["comparisons"] = [row for row in study["comparisons"] if row not in asked]
    assert "4 more Claim number 6." in Page(render_study(study)).text, "nothing to draw"


def test_hostile_text_is_only_text(study: dict[str, Any]) -> None:
    for target in (study["variants"][1], study["trainings"][1], study["tests"][0]):
        target["name"] = HOSTILE
    study["label"] = study["claims"][0] = study["protocol"][HOSTILE] = study["command"] = HOSTILE
    study["comparisons"][0]["first"] = study["comparisons"][0]["sentence"] = HOSTILE
    study["costs"][0]["variant"] = study["costs"][0]["length_tied"] = HOSTILE
    study["costs"][0]["length_tied"] = [HOSTILE]
    study["examples"][0]["finder_top"][0]["video_id"] = study["paper_counts"][0]["formula"] = HOSTILE
    for result in study["results"]:
        result["columns"][0]["label"] = result["columns"][0]["saw"] = HOSTILE
    Page(render_study(study)).assert_hostile_text_is_only_text()


def test_nothing_is_loaded_from_elsewhere(study: dict[str, Any]) -> None:
    Page(render_study(study, packaged())).assert_loads_nothing_from_elsewhere()


@pytest.mark.parametrize("bad", ["http://example.com/a.jpg", "data:text/html;base64,AAAA"])
def test_only_pictures_are_thumbnails(study: dict[str, Any], bad: str) -> None:
    study["examples"][0]["finder_top"][0]["thumbnails"] = [bad]
    with pytest.raises(UserError, match="thumbnail"):
        render_study(study)


def test_no_nan_or_none_is_printed(study: dict[str, Any]) -> None:
    first = study["results"][0]
    first["text_to_video"]["R@5"] |= {"low": None, "high": None, "deviation": None}
    first["median_rank"]["text_to_video"] = first["hubness"]["estimate"] = float("nan")
    study["comparisons"][0] |= {"high": float("inf")}
    study["comparisons"][1] |= {"estimate": float("nan")}
    study["results"][5]["lift"] |= {"low": None}
    study["results"][-1]["text_to_video"]["R@1"]["estimate"] = float("nan")
    study["git_commit"] = None
    html = render_study(study, packaged())
    assert not re.search(
        r"\b(nan|none|inf|undefined)\b", re.sub(r"'none'|\"none\"|: none|=none", "", html), re.IGNORECASE
    )
    assert "<small>≤ " in html  # an interval without bound on one side


def test_parts_may_be_absent(study: dict[str, Any]) -> None:
    for key in ("costs", "controls", "examples", "paper_counts"):
        del study[key]
    study["comparisons"] = []
    study["claims"] = []
    for result in study["results"]:
        for key in ("columns", "retention", "lift", "without_leaked", "seconds"):
            del result[key]
        result["ties"] = dict.fromkeys(result["ties"], (1.0, 1.0))
    page = Page(render_study(study))
    absent = ("Differences", "Retention", "Accuracy against cost", "Normalised scores", "Examples", "Published figures")
    assert not any(word in page.text for word in absent)
    assert page.headings == [
        "The domain matrix",
        "Hubness",
        "What was fixed before the run",
        "Protocol",
        "Full tables",
        "How to cite",
    ]


def test_study_with_nothing_finished_renders(study: dict[str, Any]) -> None:
    study |= {"results": [], "comparisons": [], "costs": [], "examples": [], "finished_cells": 0, "claims": []}
    assert "Unfinished: 0 of 54 cells." in Page(render_study(study)).text


def test_paper_counts_and_their_ratios(study: dict[str, Any]) -> None:
    page = Page(render_study(study))
    assert "X-CLIP D + WD + FD + WFD 220.9 219.6 238.0 214 × 14.1 ×" in page.text
    assert "at 214 × GLSCL as the paper counts, at 14.1 × with everything counted" in page.text
    study["paper_counts"] = [row for row in study["paper_counts"] if row["method"] != "GLSCL"]
    assert "219.6 238.0 – –" in Page(render_study(study)).text


def test_normalised_columns_say_what_they_saw(study: dict[str, Any]) -> None:
    text = Page(render_study(study)).text
    assert "1. A query bank: captions of toy_clips × test videos (text_to_video)" in text  # under its own tables
    assert "As said under each table. All test queries at once, one right answer each (text_to_video)" in text
    assert "3 near-duplicates" in text
    result = next(r for r in study["results"] if r["variant"] == "mean_pool")
    raw = result["text_to_video"]["R@1"]["estimate"]
    assert f"{raw:.1f} {raw + 0.6:.1f} {raw + 2.2:.1f} {raw + 1.7:.1f}" in text
    assert f"{raw - 0.5:.1f}–{raw + 0.5:.1f}" in text


def test_right_video_is_marked(study: dict[str, Any]) -> None:
    page = Page(render_study(study))
    assert len(page.having("correct")) == len(study["examples"])
    assert "found · rank 1" in page.text
    assert "lost · rank 14.5" in page.text


def test_published_figures_of_a_toy_study_are_no_comparison(study: dict[str, Any]) -> None:
    page = Page(render_study(study, packaged()))
    assert "Nothing here is comparable" in page.text
    assert "this study, " not in page.text
    assert "GLSCL TIP 2025 · ViT-B/32 48.1 73.9 82.3 47.1 73.0 83.2" in page.text


def test_published_figures_stand_beside_the_same_benchmark(study: dict[str, Any]) -> None:
    renamed = json.loads(json.dumps(study).replace('"toy_clips"', '"msrvtt_1k_a"'))
    text = Page(render_study(renamed, packaged())).text
    assert "Nothing here is comparable" not in text
    ours = next(r for r in renamed["results"] if r["variant"] == "glscl" and r["training"] == "msrvtt_1k_a")
    assert f"glscl this study, msrvtt_1k_a {ours['text_to_video']['R@1']['estimate']:.1f}" in text
    assert "other benchmarks: MSVD, DiDeMo, LSMDC, ActivityNet" in text


def test_packaged_figures_have_sources() -> None:
    rows = packaged()
    assert {row.dataset for row in rows} == {"MSR-VTT", "MSVD", "DiDeMo", "LSMDC", "ActivityNet", "VATEX"}
    sources = {"GLSCL (arXiv 2405.12710)", "MVEB (arXiv 2606.14958)", "facebookresearch/perception_models"}
    assert {row.source.split(",")[0] for row in rows} == sources
    other_protocol = [row for row in rows if "GLSCL" not in row.source]
    assert all("8 frames" in row.note for row in other_protocol)


def test_missing_key_is_named(study: dict[str, Any]) -> None:
    broken = copy.deepcopy(study)
    del broken["tests"][1]["videos"]
    with pytest.raises(UserError, match=r"study: tests\.1\.videos: field required"):
        render_study(broken)


def test_a_page_of_results_that_were_read_back_is_the_same(study: dict[str, Any]) -> None:
    assert render_study(json.loads(json.dumps(study)), packaged()) == render_study(study, packaged())


def test_page_adapts_to_width_scheme_and_paper(study: dict[str, Any]) -> None:
    html = render_study(study)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    for query in ("screen and (prefers-color-scheme: dark)", "screen and (max-width: 40rem)", "@media print"):
        assert query in html
    style = html[html.index("<style>") : html.index("</style>")]
    # No element may ask for more than a phone's width: fixed minima are all bounded by the column.
    assert all(bounded in ("0", "min(100%", "8rem") for bounded in re.findall(r"minmax\(([^,]+),", style))


@pytest.mark.parametrize("stops", [sections.LIGHT_STOPS, sections.DARK_STOPS])
def test_text_is_readable_on_every_shade(stops: Sequence[str]) -> None:
    def luminance(colour: str) -> float:
        digits = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in digits)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    shades = sections.shades(stops)
    assert len(shades) == sections.STEPS
    levels = [luminance(shade.paper) for shade in shades]
    assert levels in (sorted(levels), sorted(levels, reverse=True))
    for shade, level in zip(shades, levels, strict=True):
        ink = 1.0 if shade.ink == "#fff" else 0.0
        assert (max(ink, level) + 0.05) / (min(ink, level) + 0.05) >= 4.5


def test_scale_holds_every_value() -> None:
    assert sections.scale_top([61.2, float("nan")]) == 65
    assert sections.scale_top([]) == 5
    assert [sections.scale_step(value, 65) for value in (0, 64.9, 65, float("nan"))] == [0, 15, 15, 0]


def test_axis_holds_zero_and_clips_what_is_without_bound() -> None:
    axis = sections.row_axis([-2.0, 6.0, None, float("inf")])
    assert axis.low < -2 < 0 < 6 < axis.high
    assert axis.at(None) == 0
    assert axis.at(float("inf"), otherwise=100) == 100
    assert "0" in [label for _, label in axis.ticks]
    assert sections.row_axis([]).high > 0


def test_scatter_names_its_variants_and_their_figures() -> None:
    marks = [charts.Mark("a <b>", "attention", 2e5, 50.0), charts.Mark("b", "pooling", 512, 48.25)]
    plot = charts.scatter("cross-domain", marks, None, filled=True)
    assert plot
    page = Page(str(plot.svg))
    assert "b: 48.2 % at 512; a <b>: 50.0 % at 200 k" in page.text  # described, the cheapest first
    assert len(page.having("name")) == 2
    assert charts.scatter("nothing", [], 1.0, filled=True) is None


def test_scatter_leaves_out_a_reference_that_would_press_the_rest_together() -> None:
    marks = [charts.Mark("a", "attention", 512, 60.0), charts.Mark("b", "pooling", 1e6, 64.0)]
    far, near = (charts.scatter("cost", marks, reference, filled=False) for reference in (2.0, 58.0))
    assert far
    assert near
    assert far.note == "zero-shot: 2.0, below the axis"
    assert near.note == ""
    assert "zero-shot" in Page(str(near.svg)).text
    assert "zero-shot" not in Page(str(far.svg)).text
    assert "1 k 10 k 100 k 1 M" in Page(str(far.svg)).text
