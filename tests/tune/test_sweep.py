"""What the driver refuses, bounds, remembers and tidies, without Ray's processes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchGenerator

from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.runs.sets import Sets
from glscl.system.ownership import owned
from glscl.training.config import load_config
from tests.tune.fake import FIRST, STEPS, setup, sweep, trial
from tune.options import SweepConfig
from tune.plan import identifying_values, plan_sweep
from tune.search import EarlierTrial, build_scheduler, build_searcher, concurrent_trials, keep_trials
from tune.sweep import check_held_out, trials_csv
from tune.trial import run_trial
from tune.trials import Trial, from_ray, read_trials, write_trials
from tune.winner import write_best


@pytest.fixture
def shards(make_shards: Callable[..., ShardSet]) -> Callable[[str, str], str]:
    """Build a small shard set that says it is some split."""

    def make(name: str, split: str = "train") -> str:
        uri = make_shards(name=name, captions=(1,) * 4, per_shard=4, root=None).uri
        path = Path(uri) / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"split": split}))
        return uri

    return make


def test_trials_are_scored_on_held_out_parts_only(shards: Callable[[str, str], str]) -> None:
    train, dev, other = shards("toy_clips", "train"), shards("dev", "held-out"), shards("other", "test_1k_a")
    config = sweep(domains={"dev": {"train": [train], "validation": [dev]}})
    check_held_out(config, {"dev": Sets((train,), (dev,), "")})
    for sets, words in (
        (Sets((train,), (dev,), dev), r"domains\.dev\.validation: .* is also in domains\.dev\.test"),
        (Sets((train,), (other,), ""), "is the test split other/test_1k_a"),
        (Sets((dev,), (dev,), ""), r"is also in domains\.dev\.train"),
        (Sets((other,), (train,), ""), "name the domain so"),
    ):
        with pytest.raises(UserError, match=words):
            check_held_out(config, {"dev": sets})


def test_a_confirmation_that_can_show_nothing_is_refused(tmp_path: Path) -> None:
    one = sweep(storage=str(tmp_path), confirm_seeds=1)
    with pytest.raises(UserError, match=r"confirm_seeds: of one seed each .*2 at least"):
        plan_sweep(one)
    for seeds in (0, 2):
        plan_sweep(sweep(storage=str(tmp_path), confirm_seeds=seeds))
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "sweep.json").write_text(json.dumps(identifying_values(one)))
    plan_sweep(one)  # begun before: goes on


@pytest.mark.parametrize("name", SweepConfig.names())
def test_packaged_sweeps_can_show_their_winner(name: str, tmp_path: Path) -> None:
    plan_sweep(SweepConfig.load(name, storage=str(tmp_path)))


def nodes(*cpus: int) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": {"CPU": float(count)}} for count in cpus]


@pytest.mark.parametrize(
    ("cpus", "workers", "per_worker", "objective", "at_once"),
    [
        ((4,), 1, 1.0, "mean", 4),
        ((4,), 2, 1.0, "mean", 2),
        ((3, 3), 2, 2.0, "mean", 1),  # one worker a node: half of each is no worker
        ((4,), 1, 1.0, "leave_one_domain_out", 2),
        ((3, 3), 2, 1.0, "leave_one_domain_out", 1),
    ],
)
def test_no_more_trials_at_once_than_their_workers_fit(
    cpus: tuple[int, ...],
    workers: int,
    per_worker: float,
    objective: str,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(*cpus))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(sum(cpus))})
    run = {"training": {"num_workers": workers, "cpus_per_worker": per_worker, "max_steps": STEPS}}
    config = sweep(storage=str(tmp_path), objective=objective, run=run)
    assert concurrent_trials(config, plan_sweep(config)) == at_once
    assert (
        concurrent_trials(sweep(storage=str(tmp_path), objective=objective, run=run, concurrent=1), plan_sweep(config))
        == 1
    )


def test_more_workers_than_the_cluster_has_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes(3, 3))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0})
    for workers, per_worker, words in ((7, 1.0, "7 workers need 7 CPU"), (3, 2.0, "lower training.num_workers")):
        run = {"training": {"num_workers": workers, "cpus_per_worker": per_worker, "max_steps": STEPS}}
        config = sweep(storage=str(tmp_path), run=run)
        with pytest.raises(UserError, match=words):
            concurrent_trials(config, plan_sweep(config))


def test_another_sweep_under_the_same_name_is_refused(tmp_path: Path) -> None:
    config = sweep(storage=str(tmp_path))
    plan_sweep(config)
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(identifying_values(config)))
    plan_sweep(sweep(storage=str(tmp_path), concurrent=1, confirm_seeds=5))
    since = sweep(storage=str(tmp_path), run={"training": {"max_steps": STEPS}, "data": {"augment": None}})
    before = sweep(storage=str(tmp_path), run={"training": {"max_steps": STEPS}})
    (folder / "sweep.json").write_text(json.dumps(identifying_values(before)))
    plan_sweep(since)  # a packaged sweep has gained a key that says null
    (folder / "sweep.json").write_text(json.dumps(identifying_values(config)))
    with pytest.raises(UserError, match=r"another configuration: objective: mean -> worst; trials: 4 -> 5"):
        plan_sweep(sweep(storage=str(tmp_path), trials=5, objective="worst"))


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_restarted_scheduler_knows_how_ended_trials_went(kind: str) -> None:
    ended = [trial(f"t{n}", "stopped", {FIRST: (50.0, 50.0)}) for n in range(4)]
    new = EarlierTrial("new")
    bad = {"step": FIRST, "objective": 1.0}
    for known, decision in ((ended, TrialScheduler.STOP), ([], TrialScheduler.CONTINUE)):
        scheduler = build_scheduler(setup(scheduler=kind), known)
        controller: Any = SimpleNamespace(get_live_trials=list)
        scheduler.on_trial_add(controller, new)
        assert scheduler.on_trial_result(controller, new, bad) == decision


def test_ashas_rungs_begin_where_trials_are_first_scored() -> None:
    scheduler = build_scheduler(setup(reduction_factor=2.0), [])
    assert sorted(step for step, _ in scheduler._brackets[0]._rungs) == [FIRST, 2 * FIRST, 4 * FIRST]


def ray_trial(name: str, status: str, step: int | None) -> SimpleNamespace:
    result = {"step": step} if step is not None else {}
    return SimpleNamespace(trial_id=name, status=status, config={}, last_result=result, get_error=lambda: "a\nb: c")


def test_states_of_trials(tmp_path: Path) -> None:
    ready = setup(storage=str(tmp_path))
    reported = {name: {s.step: s for s in trial(name, "running", {FIRST: (1, 1)}).history} for name in "abcd"}
    reported["b"] |= {s.step: s for s in trial("b", "running", {STEPS: (2, 2)}).history}
    seen = [ray_trial("a", "TERMINATED", FIRST), ray_trial("b", "TERMINATED", STEPS), ray_trial("c", "RUNNING", FIRST)]
    seen += [ray_trial("d", "RUNNING", FIRST), ray_trial("e", "ERROR", None), ray_trial("k", "TERMINATED", STEPS)]
    known = {"k": trial("k", "finished", {STEPS: (7, 7)})}
    found = {item.name: item for item in from_ray(ready, seen, known, reported, {"d": "TERMINATED"})}
    assert {name: item.state for name, item in found.items()} == {
        "a": "stopped",
        "b": "finished",
        "c": "running",
        "d": "stopped",
        "e": "failed",
        "k": "finished",
    }
    assert found["e"].error == "b: c"
    assert found["k"] is known["k"]
    write_trials(ready.sweep, found.values())
    assert read_trials(ready.sweep) == list(found.values())


def left(ready: Any, name: str) -> set[str]:
    return {path.name for path in (Path(ready.sweep.directory) / "trials" / name / "all").iterdir()}


def test_losers_checkpoints_and_models_go_and_the_winners_model_stays(tmp_path: Path) -> None:
    ready = setup(storage=str(tmp_path))
    for name in ("good", "bad", "stopped"):
        for part in ("step_00000005-w1-x", "model"):
            (Path(ready.sweep.directory) / "trials" / name / "all" / part).mkdir(parents=True)
    trials = [trial("good", "finished", {STEPS: (9, 9)}), trial("bad", "finished", {STEPS: (1, 1)})]
    keep_trials(ready.sweep, trials)
    assert left(ready, "bad") == {"step_00000005-w1-x", "model"}, "its workers may still be writing"
    stopped = trial("stopped", "stopped", {FIRST: (1, 1)})
    keep_trials(ready.sweep, [*trials, stopped])
    assert (left(ready, "good"), left(ready, "bad")) == ({"model"}, set())
    assert left(ready, "stopped") == {"step_00000005-w1-x", "model"}
    reported: list[dict[str, Any]] = []
    run_trial(ready, "stopped", stopped.values, reported.append)  # as Ray Tune does if it forgot that it had ended
    assert [row["step"] for row in reported] == [FIRST]
    keep_trials(ready.sweep, [*trials, stopped], last=True)
    assert left(ready, "stopped") == set()


def test_the_winner_is_a_ready_configuration_and_a_model(tmp_path: Path) -> None:
    ready = setup(storage=str(tmp_path))
    best = trial("good", "finished", {STEPS: (9, 7)}, tau=2.5)
    model = Path(ready.sweep.directory) / "trials" / "good" / "all" / "model"
    model.mkdir(parents=True)
    (model / "card.json").write_text("{}")
    with owned(ready.sweep.directory, "choose another --name") as owner:
        write_best(ready, best, owner)
    path = Path(ready.sweep.directory) / "best.yaml"
    text = path.read_text()
    assert "# Winner of the sweep fake: trial good, mean of text_to_video_R@1 on held-out parts 8.00 at step 20" in text
    config = load_config(str(path))
    assert config.model.heads.glscl.tau == 2.5
    assert (config.name, config.storage) == ("fake-best", str(tmp_path))
    assert len(config.data.train) == len(config.data.validation) == 2
    assert set(yaml.safe_load(text)) == {
        "name",
        "storage",
        "seed",
        "data",
        "model",
        "loss",
        "training",
        "checkpoint",
        "evaluation",
        "tracking",
    }
    assert (Path(ready.sweep.directory) / "model" / "card.json").read_text() == "{}"


def test_trials_as_a_table() -> None:
    failed: Trial = trial("bad", "failed", {}, error="no")
    rows = list(csv.DictReader(io.StringIO(trials_csv(sweep(), [trial("a", "stopped", {FIRST: (1, 3)}), failed]))))
    assert [(row["trial"], row["state"], row["step"], row["objective"]) for row in rows] == [
        ("a", "stopped", "5", "2.0"),
        ("bad", "failed", "", ""),
    ]
    assert rows[0]["toy_stories"] == "3"
    assert rows[0]["model.heads.glscl.tau"] == "1.0"


def test_a_restored_searcher_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def start(at_once: int, **changes: Any) -> Any:
        searcher, _ = build_searcher(sweep(**changes), at_once)
        return SearchGenerator(searcher), searcher

    generator, searcher = start(2)
    assert start(1)[1].suggest("a") == searcher.suggest("a"), "the same seed proposes the same"
    assert start(1, seed=2)[1].suggest("a") != start(1)[1].suggest("a")
    searcher.suggest("b")
    assert searcher.suggest("c") is None, "no more at once than there is room for"
    generator.save_to_dir(str(tmp_path), "one")
    restored, smaller = start(1)
    restored.restore_from_dir(str(tmp_path))
    for name in ("a", "b"):
        assert smaller.suggest("c") is None, "the cluster has become smaller meanwhile"
        for each in (searcher, smaller):
            each.on_trial_complete(name, {"objective": 3.0, "training_iteration": 1})
    assert smaller.suggest("c") == searcher.suggest("c")
