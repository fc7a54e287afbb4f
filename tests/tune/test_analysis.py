"""From trials to figures and sentences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from glscl.system import storage
from tests.reporting.html_page import HOSTILE, Page
from tests.tune.fake import FIRST, STEPS, many, setup, sweep, trial
from tune.analysis import analyse, compare_with_default, find_pareto_front, find_trade_offs, measure_importance
from tune.objective import run_directories
from tune.report import render_sweep
from tune.results import parse_sweep
from tune.trials import Trial, best_of
from tune.winner import SeedScore


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.analysis.RESAMPLES", 4)


def scores(*objectives: float) -> list[SeedScore]:
    return [
        SeedScore(STEPS, value, {"toy_clips": value + 1, "toy_stories": value - 1}, seed)
        for seed, value in enumerate(objectives, start=2)
    ]


def results(trials: list[Trial], confirmation: Any = None, best_file: str = "", **changes: Any) -> dict[str, Any]:
    return analyse(setup(**changes), trials, confirmation, best_file).model_dump()


def test_the_winner_is_better_only_where_the_interval_says_so() -> None:
    found = compare_with_default({"winner": scores(12.0, 14.0, 16.0), "default": scores(10.0, 11.0, 12.0)}).model_dump()
    whole = found["differences"][0]
    # Differences 2, 3, 4: mean 3, deviation 1, t(2) = 4.303: 3 ± 4.303 / √3.
    assert (whole["estimate"], whole["low"], whole["high"]) == pytest.approx((3.0, 0.516, 5.484), abs=1e-3)
    assert [row["name"] for row in found["differences"]] == ["objective", "toy_clips", "toy_stories"]

    def claim(winner: list[SeedScore], default: list[SeedScore]) -> str:
        return str(results(many(), {"winner": winner, "default": default})["claims"][0])

    assert claim(scores(12, 14, 16), scores(10, 11, 12)).startswith("The winner is better than the default")
    assert claim(scores(10, 11, 12), scores(12, 14, 16)).startswith("The winner is worse than the default")
    assert claim(scores(12, 10, 16), scores(10, 11, 12)).startswith("No difference shown")
    assert "no difference shown" in claim(scores(12), scores(10))
    assert results(many())["claims"][0] == "The winner was not compared with the default configuration."


def test_what_was_stopped_early_is_counted() -> None:
    budget = results(many(12))["budget"]
    assert budget == {"ended": 12, "stopped": 8, "failed": 0, "trained": 4 * STEPS + 8 * FIRST, "full": 12 * STEPS}
    two = results(many(12), objective="leave_one_domain_out")["budget"]
    assert (two["trained"], two["full"]) == (2 * budget["trained"], 2 * budget["full"])


def test_only_a_finished_trial_wins() -> None:
    trials = [trial("early", "stopped", {FIRST: (99, 99)}), trial("late", "finished", {FIRST: (1, 1), STEPS: (2, 2)})]
    best = best_of(trials)
    assert best is not None
    assert best.name == "late"
    assert best_of(trials[:1]) is None


def test_importance_finds_the_key_that_matters_with_its_spread() -> None:
    found = measure_importance(sweep().searched, many(12), FIRST, seed=1).model_dump()
    assert (found["trials"], found["step"], found["resamples"]) == (12, FIRST, 4)
    first, second = found["parameters"]
    assert (first["key"], second["key"]) == ("model.heads.glscl.tau", "training.lr_head")
    assert first["estimate"] > 0.95
    assert first["low"] <= first["estimate"] <= first["high"] + 1e-9
    assert measure_importance(sweep().searched, many(7), FIRST, seed=1).parameters == []
    same = [trial(f"t{n}", "stopped", {FIRST: (1, 1)}, tau=1 + n) for n in range(9)]
    assert measure_importance(sweep().searched, same, FIRST, seed=1).parameters == []


def test_what_the_best_for_one_domain_costs_the_others() -> None:
    trials = [trial("clips", "finished", {STEPS: (30, 5)}), trial("stories", "finished", {STEPS: (20, 8)})]
    found = {entry.domain: entry.model_dump() for entry in find_trade_offs(sweep(), trials)}
    assert found["toy_clips"]["trial"] == "clips"
    assert found["toy_clips"]["losses"] == {"toy_clips": 0, "toy_stories": -3}
    assert found["toy_stories"]["losses"] == {"toy_clips": -10, "toy_stories": 0}
    claims = results(trials)["claims"]
    assert "The finished trial that is best on toy_stories (stories) is 10.0 below the best on toy_clips." in claims


def test_the_pareto_front_is_what_no_other_beats() -> None:
    costs = {"a": (10, 5), "b": (10, 7), "c": (12, 9), "d": (9, 4), "e": (8, 6)}
    trials = [trial(name, "finished", {STEPS: (score, score)}, cost=cost) for name, (score, cost) in costs.items()]
    assert find_pareto_front(trials) == ["a", "c", "d"]


def test_the_page_shows_everything_and_loads_nothing() -> None:
    confirmation = {"winner": scores(12, 14, 16), "default": scores(10, 11, 12)}
    failed = trial("broken", "failed", {}, error=HOSTILE)
    found = results([*many(12), failed], confirmation, "# the winner\nname: fake-best\n", label=HOSTILE)
    page = Page(render_sweep(found))
    page.assert_hostile_text_is_only_text()
    assert page.headings == [
        "Winner and default",
        "All trials",
        "What matters",
        "Domain by domain",
        "Trials",
        "The winning file",
    ]
    lines = [attributes.get("class") for tag, attributes in page.elements if tag == "g"]
    assert (lines.count("finished"), lines.count("stopped"), lines.count("best")) == (6, 16, 3)
    assert "12 trials are few for 2 keys" in page.text
    assert "name: fake-best" in page.text
    for picture in (attributes for tag, attributes in page.elements if tag == "svg"):
        assert picture.get("aria-label") or picture.get("aria-hidden")
    assert not re.search(r"url\(|@import|<script|<link|src=", page.html)
    assert "Unfinished" not in Page(render_sweep(analyse(setup(trials=4), many(4), None, ""))).text
    assert "Unfinished: 4 of 9" in Page(render_sweep(analyse(setup(trials=9), many(4), None, ""))).text


def test_a_page_of_two_objectives_and_of_a_choice() -> None:
    space = {"model.heads.glscl.queries": {"choice": [2, 4, 8]}, "training.lr_head": {"uniform": [0.0, 0.01]}}
    trials = [
        Trial(name, {"model.heads.glscl.queries": q, "training.lr_head": 0.001}, "finished", first.history, cost)
        for (name, q, cost), first in zip(
            (("a", 2, 100), ("b", 8, 1700)),
            (trial("a", "finished", {STEPS: (1, 1)}), trial("b", "finished", {STEPS: (2, 2)})),
            strict=True,
        )
    ]
    found = results(trials, space=space, cost="multiply_adds", scheduler="none")
    assert parse_sweep(found).pareto == ["a", "b"]
    page = Page(render_sweep(found))
    assert "Accuracy and cost" in page.headings
    assert "1.70 k" in page.text


def test_held_out_sets_of_which_videos_are_missing_are_told(tmp_path: Path) -> None:
    made = setup(storage=str(tmp_path))
    trials = many()
    assert "incomplete" not in analyse(made, trials, None, "").verdict
    short = {
        "part": "validation", "domain": "toy_clips", "split": "dev", "shards": "/d", "videos": 16, "of": 19,
        "reasons": "3 x torn",
    }  # fmt: skip
    winner = next(trial for trial in trials if trial.state == "finished")
    for run in run_directories(made.sweep, winner.name):
        cell = {"config": {}, "tests": [], "step": STEPS, "validation": {}, "seconds": 1.0}
        storage.write_json(f"{run}/cell.json", cell | {"incomplete": [short]})
    found = analyse(made, trials, None, "").model_dump()
    assert found["incomplete"] == [short]
    assert found["verdict"].endswith("; incomplete: held-out set toy_clips/dev 16 of 19 videos")
    page = Page(render_sweep(found))
    assert "16 of 19" in page.text
    assert "Missing videos" in page.headings
