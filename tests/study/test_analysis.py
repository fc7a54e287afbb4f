"""Figures, comparisons and sentences from results whose truth is known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from glscl.errors import UserError
from glscl.evaluation.metrics import DIRECTIONS
from glscl.runs.cell import Cell
from glscl.runs.options import UNION, ZERO_SHOT
from glscl.runs.sets import locate_sets
from glscl.runs.summary import summarise
from glscl.study import analysis
from glscl.study.analysis import describe_protocol
from glscl.study.comparisons import tally
from glscl.study.examples import build_example, find_candidates
from glscl.study.grid import build_cells
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished, build_panels, relation_of, share_texts
from glscl.study.results import parse_study
from tests.study.fake import CAPTIONS, VIDEOS, Hits, cell_test, finished, study


def _hits(better: float = 0.0) -> Hits:
    """In-domain 0.6, across 0.3, before training 0.2; the consistency head ``better`` across domains."""

    def share(cell: Cell, domain: str) -> float:
        if cell.training == ZERO_SHOT:
            return 0.2
        if domain in cell.domains:
            return 0.6
        return 0.3 + (better if cell.variant == "glscl" else 0.0)

    return share


@pytest.fixture(autouse=True)
def _no_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol counts the videos trained on; these studies have no shards."""
    monkeypatch.setattr("glscl.study.analysis.describe_protocol", lambda study, cells: {"Towers": "made up"})


def analyse(config: StudyConfig, cells: list[Cell], done: Finished) -> dict[str, Any]:
    """Results as ``study.json`` holds them."""
    return analysis.analyse(config, cells, done).model_dump()


def _analyse(better: float = 0.0, hits: Hits | None = None, **changes: Any) -> dict[str, Any]:
    config = study(**changes)
    return analyse(config, *finished(config, hits or _hits(better)))


def _result(results: dict[str, Any], variant: str, training: str, test: str) -> dict[str, Any]:
    return next(r for r in results["results"] if (r["variant"], r["training"], r["test"]) == (variant, training, test))


def test_figures_are_those_of_the_ranks() -> None:
    config = study()
    found, done = finished(config, _hits())
    results = analyse(config, found, done)
    for cell, of_cell in done:
        own = [r for c, r in done if (c.variant, c.training) == (cell.variant, cell.training)]
        for number, test in enumerate(of_cell.tests):
            result = _result(results, cell.variant, cell.training, test.domain)
            for direction in ("text_to_video", "video_to_text"):
                seeds = [getattr(r.tests[number], direction) for r in own]
                for metric in ("R@1", "R@5", "R@10", "MnR"):
                    figure = result[direction][metric]
                    assert figure["estimate"] == pytest.approx(np.mean([s[metric] for s in seeds]))
                    assert figure["seeds"] == (0 if cell.training == ZERO_SHOT else 3)
                    assert figure["low"] <= figure["estimate"] <= figure["high"]
                    if len(seeds) > 1:
                        assert figure["deviation"] == pytest.approx(np.std([s[metric] for s in seeds], ddof=1))
                assert result["median_rank"][direction] == pytest.approx(np.mean([s["MdR"] for s in seeds]))


def test_results_that_share_their_texts_say_the_same_in_less_memory() -> None:
    config = study()
    found, done = finished(config, _hits())
    known: dict[str, Any] = {}
    small = [(cell, share_texts(result, known)) for cell, result in done]
    whole, cut = (analyse(config, found, results) for results in (done, small))
    for key in ("results", "comparisons", "claims", "tests"):
        assert whole[key] == cut[key]
    captions = [test.per_query.captions for _, result in small for test in result.tests]
    assert len({id(texts) for texts in captions}) == len(config.domains)


def test_relation_retention_and_lift() -> None:
    results = _analyse()
    home, away = (
        _result(results, "xpool", "toy_clips", "toy_clips"),
        _result(results, "xpool", "toy_stories", "toy_clips"),
    )
    before = _result(results, ZERO_SHOT, ZERO_SHOT, "toy_clips")
    assert [r["relation"] for r in (home, away, before)] == ["in-domain", "cross-domain", "zero-shot"]
    r1 = {
        name: r["text_to_video"]["R@1"]["estimate"] for name, r in (("home", home), ("away", away), ("before", before))
    }
    assert away["retention"]["estimate"] == pytest.approx(100 * r1["away"] / r1["home"])
    assert away["retention"]["high"] < 100
    assert home["retention"] is None
    assert away["lift"]["estimate"] == pytest.approx(r1["away"] - r1["before"])
    assert home["lift"]["low"] > 0
    assert before["lift"] is None
    assert results["trainings"][0]["name"] == ZERO_SHOT


def test_the_union_is_neither_in_nor_across_domains() -> None:
    results = _analyse(union=True)
    assert _result(results, "glscl", UNION, "toy_clips")["relation"] == UNION
    assert results["trainings"][-1] == {"name": UNION, "domains": ["toy_clips", "toy_stories"]}
    means = [c for c in results["comparisons"] if c["scope"].endswith("mean") and c["direction"] == "text_to_video"]
    assert [c["scope"] for c in means] == ["in-domain mean", "cross-domain mean"]


def test_equal_heads_show_no_difference() -> None:
    results = _analyse(better=0.0)
    assert "no difference shown in 1 comparison (mean" in results["claims"][0]
    assert results["claims"][0].startswith("Across domains, global-local consistency against attention")
    assert not any(c["shown"] for c in results["comparisons"])
    assert all("No difference shown" in c["sentence"] for c in results["comparisons"])


def test_what_the_losses_do_to_their_own_head_is_counted() -> None:
    """A head against itself without its losses; the ablation of another head is no such comparison."""
    names = {"glscl": ("consistency", "glscl"), "plain": ("ablation", "glscl"), "other": ("ablation", "glccl")}
    variants = {
        name: {"group": group, "what": name, "run": {"model": {"head": head}}} for name, (group, head) in names.items()
    }
    results = _analyse(better=0.25, variants=variants, comparisons=[["glscl", "plain"], ["glscl", "other"]])
    assert results["claims"][0] == (
        "With and without its consistency losses, the same head: of 2 comparisons, 1 shown better, 0 shown worse, "
        "1 with no difference shown (means in and across domains, text-to-video R@1)."
    )


def test_a_difference_that_is_there_is_shown_where_it_is() -> None:
    results = _analyse(better=0.25)
    shown = {c["scope"] for c in results["comparisons"] if c["shown"] and c["direction"] == "text_to_video"}
    assert shown == {"cross-domain mean", "toy_clips -> toy_stories", "toy_stories -> toy_clips"}
    assert "of 1 comparison, 1 shown better, 0 shown worse" in results["claims"][0]
    assert "no difference shown" in results["claims"][1]
    (mean,) = [
        c for c in results["comparisons"] if c["scope"] == "cross-domain mean" and c["direction"] == "text_to_video"
    ]
    cells = [c for c in results["comparisons"] if "->" in c["scope"] and c["relation"] == "cross-domain"]
    cells = [c for c in cells if c["direction"] == "text_to_video"]
    assert mean["estimate"] == pytest.approx(np.mean([c["estimate"] for c in cells]))
    assert max(c["high"] - c["low"] for c in cells) > mean["high"] - mean["low"]
    assert "worse" in _analyse(better=-0.25)["comparisons"][1]["sentence"]


def test_families_are_corrected_each_for_itself() -> None:
    results = _analyse(better=0.1)
    for direction in ("text_to_video", "video_to_text"):
        for family in (True, False):
            own = [c for c in results["comparisons"] if c["direction"] == direction and ("->" in c["scope"]) == family]
            smallest = min(own, key=lambda c: c["p_value"])
            assert smallest["adjusted_p"] == pytest.approx(min(1.0, len(own) * smallest["p_value"]))


def test_an_unfinished_study_reports_the_seeds_that_are_whole() -> None:
    config = study()
    found, done = finished(config, _hits())
    last = [item for item in done if not (item[0].variant == "glscl" and item[0].seed == 3)]
    results = analyse(config, found, last)
    assert (results["finished_cells"], results["cells"]) == (len(last), len(found))
    assert {r["text_to_video"]["R@1"]["seeds"] for r in results["results"] if r["variant"] != ZERO_SHOT} == {2}
    first = [item for item in done if item[0].seed == 1 and item[0].variant != "glscl"]
    results = analyse(config, found, first)
    assert {r["variant"] for r in results["results"]} == {ZERO_SHOT, "xpool"}
    assert {r["text_to_video"]["R@1"]["seeds"] for r in results["results"] if r["variant"] != ZERO_SHOT} == {1}
    assert results["comparisons"] == []
    with pytest.raises(UserError, match="nothing to report"):
        analyse(config, found, [])


def test_cells_tested_on_other_queries_are_not_compared() -> None:
    config = study()

    def change(cell: Cell, result: dict[str, Any]) -> None:
        if (cell.variant, cell.training, cell.seed) == ("glscl", "toy_clips", 1):
            result["tests"][0]["per_query"]["owners"] = [0] * (VIDEOS * CAPTIONS)

    found, done = finished(config, _hits(), change)
    with pytest.raises(UserError, match="tested on other videos of toy_clips"):
        analyse(config, found, done)


def test_one_seed_says_so() -> None:
    results = _analyse(seeds=[4])
    assert "of one training" in _result(results, "xpool", "toy_clips", "toy_clips")["text_to_video"]["R@1"]["note"]
    assert _result(results, "xpool", "toy_clips", "toy_clips")["text_to_video"]["R@1"]["deviation"] is None


def test_columns_leaks_and_hubness_are_means_over_seeds() -> None:
    config = study()

    def change(cell: Cell, result: dict[str, Any]) -> None:
        for test in result["tests"]:
            value = float(cell.seed)
            test["hubness_skewness"] = value
            metrics = {"R@1": value, "R@5": 2 * value, "R@10": 3 * value}
            column = {"label": "QB", "saw": "a bank", "direction": "text_to_video", "metrics": metrics}
            test["normalised"] = [column | {"source": "a paper"}]
            leakless = {"list": "l.txt", "note": "n", "videos": 5, "texts": 9}
            test["without_leaked"] = leakless | {direction: {"R@1": 10 * value} for direction in DIRECTIONS}

    found, done = finished(config, _hits(), change)
    result = _result(analyse(config, found, done), "xpool", "toy_clips", "toy_stories")
    assert result["columns"] == [
        {"label": "QB", "saw": "a bank", "direction": "text_to_video"}
        | {"recall_at_1": 2.0, "recall_at_5": 4.0, "recall_at_10": 6.0}
    ]
    assert (result["without_leaked"]["text_to_video"], result["without_leaked"]["videos"]) == (20.0, 5)
    assert (result["hubness"]["estimate"], result["hubness"]["low"], result["hubness"]["high"]) == (2.0, 1.0, 3.0)


def test_conditions_are_told_apart() -> None:
    conditions = {"short": {"model": {"max_words": 16}}, "long": {"model": {"max_words": 32}}}
    hits = _hits()
    results = _analyse(conditions=conditions, hits=lambda c, d: hits(c, d) + 0.3 * (c.condition == "long"))
    found = {
        r["condition"]: r["text_to_video"]["R@1"]["estimate"]
        for r in results["results"]
        if (r["variant"], r["training"], r["test"]) == ("xpool", "toy_clips", "toy_clips")
    }
    assert found["long"] > found["short"] + 20
    assert any("(long)" in claim for claim in results["claims"])
    assert all(math.isfinite(c["low"]) for c in results["comparisons"])
    for comparison in results["comparisons"]:
        assert f", {comparison['condition']})" in comparison["sentence"]
    assert not any(", short)" in c["sentence"] for c in _analyse()["comparisons"])


def test_zero_shot_towers_are_a_variant_where_a_study_has_them() -> None:
    names = [[one["name"] for one in _analyse(zero_shot=there)["variants"]] for there in (True, False)]
    assert names[0] == [ZERO_SHOT, *names[1]]


def test_a_domain_may_have_any_name() -> None:
    domains = {name: [name] for name in ("a", "zz")}
    assert [relation_of("zz", domains, test) for test in domains] == ["cross-domain", "in-domain"]


def test_examples_are_found_by_one_and_lost_by_the_other() -> None:
    cell = finished(study(), _hits())[0][1]
    ranks = np.full(VIDEOS * CAPTIONS, 1)
    others = ranks.copy()
    others[[3, 8]] = 6, 30
    others[5] = 5  # not far enough down to be lost
    ours, theirs = (cell_test("toy_stories", list(r), [1] * VIDEOS) for r in (ranks, others))
    candidates = sorted(find_candidates(cell, "glscl", "xpool", ours, theirs), key=lambda one: one.order)
    assert [one.key for one in candidates] == [("toy_stories", f"toy_stories caption {n}") for n in (8, 3)]
    best = build_example(candidates[0], lambda domain, position: [f"{domain} {position}"])
    assert (best.finder_rank, best.loser_rank) == (1.0, 30.0)
    assert [shot.correct for shot in best.finder_top] == [True, False, False]
    assert best.finder_top[0].thumbnails == ["toy_stories 4"]


def test_sets_of_which_videos_are_missing_are_told_at_their_fewest() -> None:
    config = study()
    found, done = finished(config, _hits())
    assert "incomplete" not in analyse(config, found, done)["verdict"]  # cells from before this was written down
    short = {
        "part": "test", "domain": "toy_clips", "split": "test", "shards": "/s", "videos": 39, "of": 40,
        "reasons": "1 x torn",
    }  # fmt: skip
    held_out = short | {"part": "validation", "split": "dev", "shards": "/d"}

    def change(cell: Cell, result: dict[str, Any]) -> None:
        result["incomplete"] = [held_out, short | {"videos": 39 - cell.seed % 2}]
        result["tests"][0] |= {"quarantined": 1, "rejected": 2}

    found, done = finished(config, _hits(), change)
    results = analyse(config, found, done)
    assert results["incomplete"] == [short | {"videos": 38}, held_out]
    assert results["verdict"].endswith(
        "; incomplete: test set toy_clips/test 38 of 40 videos, held-out set toy_clips/dev 39 of 40 videos"
    )
    assert [test.share for test in parse_study(results).tests] == [f"{VIDEOS} of {VIDEOS + 3}", str(VIDEOS)]


def test_ties_count_by_their_expectation_in_cells_of_any_age() -> None:
    """``cell.json`` has held both bounds of every rank from the first version on: recall follows from them."""
    config = study()

    def change(cell: Cell, result: dict[str, Any]) -> None:
        for test in result["tests"]:
            for direction, queries in (("text_to_video", VIDEOS * CAPTIONS), ("video_to_text", VIDEOS)):
                ranks = test["per_query"][direction]
                ranks["optimistic"], ranks["pessimistic"] = [1] * queries, [4] * (queries // 2) + [1] * (queries // 2)

    results = analyse(config, *finished(config, _hits(), change))
    for result in results["results"]:
        for direction in ("text_to_video", "video_to_text"):
            figures = {name: value["estimate"] for name, value in result[direction].items()}
            expected = {"R@1": 62.5, "R@5": 100.0, "R@10": 100.0, "MnR": 1.75, "MRR": 50 + 50 * (25 / 12) / 4}
            places = [1, 1 / math.log2(3), 1 / math.log2(4), 1 / math.log2(5)]
            assert figures == pytest.approx(expected | {"nDCG@10": 50 + 50 * sum(places) / 4})


def test_a_certain_difference_is_shown_in_every_cell_and_mean() -> None:
    results = _analyse(hits=lambda cell, _: {"glscl": 0.9, "xpool": 0.2}.get(cell.variant, 0.1), union=True)
    assert len(results["comparisons"]) == 2 * (2 + 6)
    assert all(c["shown"] and c["estimate"] > 50 and c["adjusted_p"] < 0.01 for c in results["comparisons"])


def test_means_stay_within_what_a_metric_can_be() -> None:
    results = _analyse(hits=lambda cell, domain: 0.99 if domain == "toy_clips" else 0.01)["results"]
    figures = [(r["test"], r["text_to_video"]) for r in results]
    for _, own in figures:
        assert 0 <= own["R@1"]["low"] <= own["R@1"]["high"] <= 100
        assert own["MnR"]["low"] >= 1
        assert own["MRR"]["high"] <= 100
    cut = [own for _, own in figures if own["R@1"]["estimate"] < 100 == own["R@1"]["high"]]
    assert any((own["MnR"]["low"], own["MRR"]["high"]) == (1, 100) for own in cut)
    assert any(own["R@1"]["low"] == 0 < own["R@1"]["estimate"] for _, own in figures)


def test_shown_needs_both_the_interval_and_the_correction() -> None:
    found = [c for better in (0.04, 0.06, 0.08, 0.1, 0.15) for c in _analyse(better=better)["comparisons"]]
    for c in found:
        assert c["shown"] == ((c["low"] > 0 or c["high"] < 0) and c["adjusted_p"] <= 0.05)
        assert c["shown"] == ("is better" in c["sentence"] or "is worse" in c["sentence"])
    assert any(c["p_value"] < 0.05 < c["adjusted_p"] for c in found)
    assert {c["shown"] for c in found} == {True, False}


def test_every_test_set_and_direction_is_resampled_for_itself() -> None:
    config = study()
    _, done = finished(config, _hits())
    panels = build_panels(config, [(cell, result) for cell, result in done if cell.condition == "short"])
    owners = [panel.bootstraps[direction] for panel in panels.values() for direction in DIRECTIONS]
    assert sorted(owner.seed for owner in owners) == [0, 1, 2, 3]
    assert {owner.resamples for owner in owners} == {200}
    assert [(owner.queries, owner.groups) for owner in owners] == [
        (80, 40),
        (40, 40),
    ] * 2  # captions of a video together


def test_tally_counts_what_is_shown_which_way() -> None:
    (template, *_) = analysis.analyse(study(), *finished(study(), _hits())).comparisons

    def count(*rows: tuple[bool, float]) -> str:
        return tally([template.model_copy(update={"shown": shown, "estimate": value}) for shown, value in rows])

    assert count((True, 0.5), (True, -0.5), (True, 0.7), (False, 3.0)) == (
        "of 4 comparisons, 2 shown better, 1 shown worse, 1 with no difference shown"
    )
    assert count((True, -0.5)) == "of 1 comparison, 0 shown better, 1 shown worse, 0 with no difference shown"
    assert count((False, 9.0)) == "no difference shown in 1 comparison"
    assert count((False, 9.0), (False, -9.0)) == "no difference shown in any of 2 comparisons"


def test_chance_and_counts_of_a_test_set() -> None:
    first, second = _analyse()["tests"]
    assert (first["name"], second["name"]) == ("toy_clips", "toy_stories")
    expected = {
        "name": "toy_clips", "split": "test", "videos": VIDEOS, "texts": VIDEOS * CAPTIONS, "chance": 2.5,
        "truncated": {"short": 3}, "quarantined": 0,
    }  # fmt: skip
    assert first == first | expected


def test_protocol_says_what_was_equal_and_what_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = SimpleNamespace(manifest=SimpleNamespace(videos=1234))
    monkeypatch.setattr("glscl.study.analysis.open_shard_set", lambda uri: manifest)
    same = study()
    protocol = describe_protocol(same, build_cells(same, locate_sets(same)))
    assert protocol["Frame context"].endswith(", the same for all heads")
    assert protocol["Training"].startswith("5 epochs, global batch ")
    assert protocol["Training"].endswith(", 3 seeds per cell")
    assert protocol["Videos trained on"] == "toy_clips 1,234, toy_stories 1,234"
    assert protocol["Checkpoint"].startswith("last step; ")
    assert protocol["Lengths"] == "short: 16 words, 2 frames, in training and in testing"
    domains: dict[str, Any] = {
        name: {"toy": {"train": 8, "dev": 4, "test": 40}} for name in ("toy_clips", "toy_stories")
    }
    domains["toy_clips"]["run"] = {"training": {"max_steps": 7}}
    variants = dict(same.model_dump()["variants"])
    variants["xpool"]["run"]["model"]["frame_context"] = "none"
    other = study(
        domains=domains, variants=variants, run={"model": {"clip": "glscl-tiny", "frame_context": "transformer"}}
    )
    protocol = describe_protocol(other, build_cells(other, locate_sets(other)))
    assert protocol["Frame context"] == "as each variant's settings say"
    assert protocol["Training"].startswith("steps as each domain's settings say, ")
    assert protocol["Checkpoint"].startswith("best held-out R@1 of the training domain; ")
    steps = study(run={"model": {"clip": "glscl-tiny"}, "training": {"max_steps": 9}})
    assert describe_protocol(steps, build_cells(steps, locate_sets(steps)))["Training"].startswith("9 steps, ")


def test_the_command_of_a_result_names_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["glscl", "study", "--storage", "https://user:hunter2secret@host/bucket"])
    assert "hunter2secret" not in summarise(study(), "", [], [], use_gpu=False).command


def test_all_relevant_videos_are_means_over_seeds_and_absent_where_a_cell_lacks_them() -> None:
    def change(cell: Cell, values: dict[str, Any]) -> None:
        if cell.variant != "glscl" or (cell.training, cell.seed) == ("toy_stories", 2):
            return
        figures = {"R@1": 10.0 * cell.seed, "hit@1": 50.0, "MRR": 60.0, "queries": 80}
        column = {"list": "q", "note": "all", "captions": 3, "relevant": 1.5, "text_to_video": figures}
        values["tests"][0]["several_relevant"] = column

    config = study()
    results = analyse(config, *finished(config, _hits(), change))
    whole = _result(results, "glscl", "toy_clips", "toy_clips")["several_relevant"]
    means = {"R@1": 20.0, "hit@1": 50.0, "MRR": 60.0}
    assert whole == {"note": "all", "relevant": 1.5, "text_to_video": means, "intervals": {}}
    assert results["relevant_comparisons"] == []
    assert _result(results, "glscl", "toy_stories", "toy_clips")["several_relevant"] is None
    assert _result(results, "glscl", "toy_clips", "toy_stories")["several_relevant"] is None


def test_lists_of_relevant_videos_are_of_tested_domains_and_reach_every_cell() -> None:
    config = study(qrels={"toy_clips": "lists/q"}, root="/data")
    for cell in build_cells(config, locate_sets(config)):
        assert cell.config.evaluation.qrels == ("toy_clips=/data/lists/q",)
    with pytest.raises(ValueError, match="qrels: 'toy_clip' is none of toy_clips, toy_stories"):
        study(qrels={"toy_clip": "q"})
