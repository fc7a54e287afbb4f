"""The HTML report: complete, well formed, self-contained, and safe against hostile captions."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from glscl.errors import UserError
from glscl.evaluation.charts import training_charts
from glscl.evaluation.report import render_report, write_report
from tests.reporting.html_page import HOSTILE, Page


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (200, 60, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def metrics(recall: float, queries: int) -> dict[str, float]:
    return {
        "R@1": recall,
        "R@5": 91.3,
        "R@10": 96.4,
        "R@50": 99.9,
        "MRR": 76.2,
        "nDCG@10": 81.3,
        "MdR": 1.5,
        "MnR": 7.25,
        "queries": queries,
        "R@1_optimistic": recall + 0.5,
        "R@1_pessimistic": recall - 0.5,
    }


def make_test(domain: str, relation: str, recall: float) -> dict[str, Any]:
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()
    found = [
        {
            "video_id": f"{domain}-{i}",
            "score": 0.5 - i / 10,
            "correct": i == 2,
            "thumbnail": [jpeg(), uri] if i else uri,
        }
        for i in range(5)
    ]
    return {
        "domain": domain,
        "split": "test",
        "relation": relation,
        "videos": 250,
        "texts": 500,
        "captions_per_video": 2.0,
        "max_frames": 8,
        "max_words": 32,
        "truncated_texts": 17,
        "quarantined": 4,
        "text_to_video": metrics(recall, 500),
        "video_to_text": metrics(recall + 1, 250),
        "hubness_skewness": 1.234,
        "normalised": [
            {
                "name": "qb_norm",
                "label": f"QB-Norm {HOSTILE}",
                "source": f"a paper {HOSTILE}",
                "saw": f"A query bank: 1,600 training captions of <i>{domain}</i> × test videos.",
                "direction": "text_to_video",
                "metrics": metrics(recall + 7, 500),
            },
            {
                "name": "dual_softmax",
                "label": "Dual softmax",
                "source": "another",
                "saw": "All test queries at once: test videos × test captions.",
                "direction": "video_to_text",
                "metrics": metrics(recall + 9, 250),
            },
        ],
        "without_leaked": {
            "list": "lists/<b>.txt",
            "note": "3 of 4 listed videos left out, and their captions (6). 1 are no videos (<u>).",
            "videos": 100,
            "texts": 494,
            "text_to_video": metrics(recall - 2, 494),
            "video_to_text": metrics(recall - 1, 100) | {"R@1_optimistic": recall - 1, "R@1_pessimistic": recall - 1},
        },
        "oracles": {"single": {"colour": 4.1, "motion": 6.7}, "pair": {"colour+motion": 22.9}},
        "attribute_accuracy": {"colour": {"accuracy": 88.8, "chance": 12.5, "ignoring": 61.7}},
        "examples": [
            {"query": HOSTILE, "rank": 3.0, "results": found},
            {"query": "never found", "rank": 41.5, "results": found[:2]},
        ],
    }


def make_results() -> dict[str, Any]:
    """An evaluation in two test domains."""
    return {
        "run": "a <b>run</b>",
        "verdict": "OK: text-to-video R@1 63.7 %",
        "created": "2025-06-01T12:30:00+00:00",
        "head": "glscl",
        "clip": "glscl-tiny",
        "checkpoint_step": 1234,
        "seed": 42,
        "git_commit": "0123456789abcdef",
        "command": "glscl eval --run <x>",
        "train_domains": ["toy_clips"],
        "tests": [make_test("toy_clips", "in-domain", 63.7), make_test("msrvtt_1k_a", "cross-domain", 11.2)],
        "history": [
            {"step": 0, "loss": 5.0, "contrastive": float("nan")},
            {"step": 10, "loss": 3.0, "contrastive": 2.0, "validation": {"text_to_video R@1": 30.0}},
            {"step": 20, "loss": 1.875, "contrastive": 1.0, "validation": {"text_to_video R@1": 61.5}},
        ],
    }


@pytest.fixture
def results() -> dict[str, Any]:
    return make_results()


def test_page_parses_and_has_every_number(results: dict[str, Any]) -> None:
    text = Page(render_report(results)).text
    protocol = ["a <b>run</b>", "63.7 %", "glscl-tiny", "1,234", "42", "0123456789ab", "glscl eval --run <x>"]
    protocol += ["1 June 2025, 12:30 UTC", "Post-processing none", "Captions / video 2.0", "≤ 8", "≤ 32"]
    protocol += ["Truncated texts 17", "Quarantined 4", "Split test", "Videos 250", "Texts 500"]
    measured = [
        "63.7 63.2–64.2 91.3 96.4 99.9 76.2 81.3 1.5 7.2 500 0.40",
        "12.2 11.7–12.7 91.3 96.4",
        "toy_clips/test 1.23",
    ]
    oracles = [
        "two attributes: colour + motion 22.9",
        "one attribute: motion 6.7",
        "chance 0.4",
        "colour 88.8 61.7 12.5 4.1",
    ]
    training = ["held-out R@1 (%)", "61.5", "loss 1.875", "contrastive"]
    examples = ["miss · rank 3", "miss · rank 41.5", "The right video comes later, at rank 41.5."]
    for expected in [*protocol, *measured, *oracles, *training, *examples, "in-domain", "cross-domain"]:
        assert expected in text, expected


def test_a_file_from_before_a_metric_was_measured_shows_that_it_is_absent(results: dict[str, Any]) -> None:
    for direction in ("text_to_video", "video_to_text"):
        del results["tests"][0][direction]["MRR"], results["tests"][0][direction]["nDCG@10"]
    assert "63.7 63.2–64.2 91.3 96.4 99.9 – – 1.5 7.2 500 0.40" in Page(render_report(results)).text


def test_all_relevant_videos_have_a_table(results: dict[str, Any]) -> None:
    assert "All relevant videos" not in Page(render_report(results)).text
    figures = {"R@1": 41.1, "R@5": 52.2, "R@10": 63.3, "hit@1": 71.4, "hit@5": 82.5, "hit@10": 93.6}
    results["tests"][0]["several_relevant"] = {
        "list": "lists/<q>.txt",
        "note": "12 of 13 listed captions are in this set.",
        "captions": 12,
        "relevant": 1.25,
        "text_to_video": figures | {"MRR": 55.5, "queries": 500},
    }
    text = Page(render_report(results)).text
    assert "toy_clips/test 41.1 52.2 63.3 71.4 82.5 93.6 55.5 – 500" in text
    assert "12 captions have several relevant videos; 1.25 per caption. 12 of 13 listed captions" in text
    assert "List: lists/<q>.txt" in text


def test_bounds_are_given_where_they_differ(results: dict[str, Any]) -> None:
    assert "63.2–64.2" in Page(render_report(results)).text
    results["tests"][0]["text_to_video"] |= {"R@1_optimistic": 63.7, "R@1_pessimistic": 63.7}
    text = Page(render_report(results)).text
    assert "Text to video T→V 63.7 91.3" in text
    assert "63.7–63.7" not in text


def test_raw_and_normalised_scores_side_by_side(results: dict[str, Any]) -> None:
    page = Page(render_report(results))
    section = page.text[page.text.index("Normalised scores") : page.text.index("Beyond shortcuts")]
    query_bank = "A query bank: 1,600 training captions of <i>toy_clips</i> × test videos."
    test_queries = "All test queries at once: test videos × test captions."
    assert f"Text to video, raw 63.7 91.3 96.4 QB-Norm {HOSTILE} 70.7 91.3 96.4 {query_bank}" in section
    assert f"Video to text, raw 64.7 91.3 96.4 Dual softmax 72.7 91.3 96.4 {test_queries}" in section
    for test in results["tests"]:
        test["normalised"] = []
    assert "Normalised scores" not in Page(render_report(results)).text


def test_with_and_without_leaked_videos(results: dict[str, Any]) -> None:
    text = Page(render_report(results)).text
    raw, without = (
        "63.7 63.2–64.2 91.3 96.4 99.9 76.2 81.3 1.5 7.2 500 0.40",
        "61.7 61.2–62.2 91.3 96.4 99.9 76.2 81.3 1.5 7.2 494 1.00",
    )
    assert f"Text to video T→V {raw} Text to video T→V , without leaked {without}" in text
    assert "without leaked 62.7 91.3 96.4 99.9 76.2 81.3 1.5 7.2 100 1.00" in text
    note = (
        "3 of 4 listed videos left out, and their captions (6). 1 are no videos (<u>). 100 videos and 494 texts remain."
    )
    assert f"toy_clips/test without leaked videos: {note} List: lists/<b>.txt" in text
    for test in results["tests"]:
        test["without_leaked"] = None
    assert "leaked" not in Page(render_report(results)).text


def test_recall_bars_have_the_right_widths(results: dict[str, Any]) -> None:
    elements = Page(render_report(results)).elements
    widths = [a["width"] for tag, a in elements if tag == "rect" and "text_to_video" in (a["class"] or "")]
    assert widths[:3] == ["63.7%", "91.3%", "96.4%"]
    # Chance: 1, 5 and 10 of 250 videos for a text, and of 250 captioned videos for a video.
    chance = [a["x1"] for tag, a in elements if tag == "line" and a.get("class") == "chance"]
    assert chance[:6] == ["0.4%", "2.0%", "4.0%"] * 2


def test_nothing_is_loaded_from_elsewhere(results: dict[str, Any]) -> None:
    Page(render_report(results)).assert_loads_nothing_from_elsewhere()


def test_hostile_captions_are_only_text(results: dict[str, Any]) -> None:
    Page(render_report(results)).assert_hostile_text_is_only_text()


def test_right_video_is_marked(results: dict[str, Any]) -> None:
    elements = Page(render_report(results)).elements
    assert sum(tag == "li" and a.get("class") == "correct" for tag, a in elements) == 2  # once per domain
    names = [a["alt"] for tag, a in elements if tag == "img" and "(the right video)" in (a["alt"] or "")]
    assert set(names) == {"toy_clips-2 (the right video)", "msrvtt_1k_a-2 (the right video)"}


@pytest.mark.parametrize("bad", ["http://example.com/a.jpg", "data:text/html;base64,AAAA", "javascript:alert(1)"])
def test_only_pictures_are_thumbnails(results: dict[str, Any], bad: str) -> None:
    results["tests"][0]["examples"][0]["results"][0]["thumbnail"] = bad
    with pytest.raises(UserError, match="thumbnail"):
        render_report(results)


def test_optional_parts_may_be_absent(results: dict[str, Any]) -> None:
    for test in results["tests"]:
        del test["examples"], test["attribute_accuracy"], test["normalised"], test["without_leaked"]
        test["oracles"] = None
    del results["history"]
    results["git_commit"] = None
    text = Page(render_report(results)).text
    for heading in ("Examples", "Beyond shortcuts", "Training", "Published figures", "Normalised scores", "leaked"):
        assert heading not in text


def test_missing_key_is_named(results: dict[str, Any]) -> None:
    broken = copy.deepcopy(results)
    del broken["tests"][1]["videos"]
    with pytest.raises(UserError, match=r"results: tests\.1\.videos: field required"):
        render_report(broken)


def test_results_read_back_from_json_give_the_same_page(results: dict[str, Any], tmp_path: Path) -> None:
    for test in results["tests"]:
        for example in test["examples"]:
            for match in example["results"]:
                match.pop("thumbnail", None)  # the two examples share their matches
    write_report(json.loads(json.dumps(results)), str(tmp_path / "deep" / "report.html"))
    assert (tmp_path / "deep" / "report.html").read_text(encoding="utf-8") == render_report(results)


def test_page_adapts_to_width_scheme_and_paper(results: dict[str, Any]) -> None:
    html = render_report(results)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    for query in ("(prefers-color-scheme: dark)", "(max-width: 40rem)", "@media print"):
        assert query in html
    style = html[html.index("<style>") : html.index("</style>")]
    # No element may ask for more than a phone's width: fixed minima are all bounded by the column.
    assert all(bounded in ("0", "min(100%") for bounded in re.findall(r"minmax\(([^,]+),", style))
    assert not re.search(r"[^-]width: *\d{3,}px", style)


def test_published_figures(results: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "published.csv"
    table.write_text(
        "method,venue,backbone,dataset,direction,recall_at_1,recall_at_5,recall_at_10,note,source\n"
        "Old <i>,X 2020,ViT-B/32,MSR-VTT,text_to_video,44.5,71.4,81.6,,Table 1\n"
        "Old <i>,X 2020,ViT-B/32,MSR-VTT,video_to_text,42.7,70.9,,,Table 1\n"
        "Other,X 2020,ViT-B/32,DiDeMo,text_to_video,1,2,3,,Table 1\n"
    )
    write_report(results, str(tmp_path / "report.html"), published=str(table))
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Old <i> X 2020 · ViT-B/32 44.5 71.4 81.6 42.7 70.9 –" in text
    assert "This run, msrvtt_1k_a/test 11.2" in text
    assert "Other" not in text
    table.write_text("method,dataset\n")
    with pytest.raises(UserError, match="no column backbone, direction"):
        write_report(results, str(tmp_path / "report.html"), published=str(table))
    with pytest.raises(UserError, match="no such file"):
        write_report(results, str(tmp_path / "report.html"), published=str(tmp_path / "absent.csv"))


def test_real_published_figures(results: dict[str, Any], shared: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "report.html")
    write_report(results, output, published=str(shared / "published" / "retrieval_results.csv"))
    text = Page(Path(output).read_text(encoding="utf-8")).text
    assert "GLSCL TIP 2025 · ViT-B/32 48.1 73.9 82.3 47.1 73.0 83.2" in text


def test_charts() -> None:
    history = [{"step": s, "epoch": 0, "loss": 1.0 / (s + 1), "rate": 1e-4} for s in range(2000)]
    loss, rate = training_charts(history)
    assert [(chart.title, chart.note, len(chart.legend)) for chart in (loss, rate)] == [
        ("loss", "0.0005", 0),
        ("rate", "0.0001", 0),
    ]
    assert training_charts([]) == []
    several = [{"step": s, "validation": {f"{name} R@1": s for name in "ab"}} for s in (0, 10)]
    (held_out,) = training_charts(several)
    assert [(entry.text, entry.stroke) for entry in held_out.legend] == [("a 10", "var(--t2v)"), ("b 10", "var(--v2t)")]
