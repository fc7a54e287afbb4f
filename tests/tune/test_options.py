"""Sweeps as YAML: what is packaged, and what is refused before any trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from glscl.errors import UserError
from glscl.runs.sets import locate_sets
from tests.tune.fake import sweep
from tune.objective import build_runs
from tune.options import SweepConfig
from tune.plan import describe, plan_sweep


@pytest.mark.parametrize("name", SweepConfig.names())
def test_every_packaged_sweep_is_sound(name: str, tmp_path: Path) -> None:
    found = SweepConfig.load(name, storage=str(tmp_path), root=str(tmp_path))
    default = plan_sweep(found)
    assert default.data.test == ()
    assert default.data.validation
    assert SweepConfig.text(name).startswith("#")
    assert "trials" in describe(found, default)


def test_a_sweep_says_what_its_batch_does_to_the_official_form(tmp_path: Path) -> None:
    batch = {"training": {"global_batch": 512}}
    found = sweep(storage=str(tmp_path), run={"model": {"clip": "glscl-tiny"}, **batch})
    assert "in its official form depends on the batch" in describe(found, plan_sweep(found))["note"]
    corrected = {"loss": {"inter_consistency": {"form": "corrected"}}}
    found = sweep(storage=str(tmp_path), run={"model": {"clip": "glscl-tiny"}, **batch, **corrected})
    assert "note" not in describe(found, plan_sweep(found))
    for packaged in map(SweepConfig.load, ("benchmarks", "toy")):
        assert "note" not in describe(packaged, plan_sweep(packaged)), packaged.name


def test_toy_sweep_searches_glscls_parameters_on_two_domains() -> None:
    found = SweepConfig.load("toy")
    assert len(found.searched) == 9
    assert set(found.domains) == {"toy_clips", "toy_stories"}
    assert found.trials >= 16
    assert found.confirm_seeds >= 3
    assert (found.searcher, found.scheduler) == ("optuna", "asha")
    assert found.searched["training.lr_towers"].ends == (1e-5, 3e-3), "the sweep's own wins over the ready-made one"


def test_the_base_is_a_preset_without_its_data() -> None:
    found = SweepConfig.load("benchmarks")
    assert found.run["model"]["head"] == "glscl"
    assert found.run["training"]["use_gpu"] is True
    assert not {"train", "validation", "test"} & set(found.run["data"])


def test_addresses_are_those_of_the_folder_the_command_runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials run in folders of their own."""
    (tmp_path / "clip.json").write_text("{}")
    run = {"model": {"clip": "clip.json", "pretrained": "laion2b_s34b_b79k"}}
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump(sweep().model_dump(mode="json") | {"storage": "runs", "run": run})
    )
    monkeypatch.chdir(tmp_path)
    found = SweepConfig.load("mine.yaml")
    assert (found.storage, found.root) == (str(tmp_path / "runs"), str(tmp_path))
    assert found.run["model"] == {"clip": str(tmp_path / "clip.json"), "pretrained": "laion2b_s34b_b79k"}
    assert SweepConfig.load("mine.yaml", storage="s3://bucket/runs").storage == "s3://bucket/runs"


ONE = {"toy_clips": {"toy": {"train": 8, "dev": 4}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scheduler": "pbt"}, "without ever copying one"),
        ({"scheduler": "PB2"}, "without ever copying one"),
        ({"scheduler": "hyperband"}, "'asha', 'median' or 'none'"),
        ({"searcher": "bohb"}, "'optuna' or 'random'"),
        ({"objective": "median"}, "'mean', 'worst' or 'leave_one_domain_out'"),
        ({"metric": "R@1"}, "text_to_video_R@1"),
        ({"objective": "leave_one_domain_out", "domains": ONE}, "two domains or more"),
        ({"domains": {}}, "domains: none given"),
        ({"domains": {"toy_clips": {"toy": {"train": 8}}}}, "no held-out part"),
        ({"domains": {"toy_clips": {"toy": {"test": 8}}}}, "nothing to train on"),
        ({"domains": {"a": {"train": ["x"], "validation": ["y", "z"]}}}, "one held-out part"),
        ({"domains": {"a": {"train": ["x"], "validation": ["y"], "run": {"seed": 1}}}}, "a sweep trains on domains"),
        ({"cost": "multiply_adds"}, "set scheduler to none"),
        ({"cost": "multiply_adds", "scheduler": "none", "searcher": "random"}, "two objectives"),
        ({"run": {"data": {"test": ["x"]}}}, "data.test follows from the sweep's own keys"),
        ({"trails": 3}, "unknown key 'trails', did you mean 'trials'"),
        ({"spaces": ["glsl"]}, "did you mean 'glscl'"),
        ({"space": {}}, "nothing to search"),
        ({"space": {"training.lr_heat": {"uniform": [0, 1]}}}, "did you mean 'training.lr_head'"),
    ],
)
def test_a_bad_sweep_is_refused_in_words(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    values = sweep().model_dump(mode="json", exclude_unset=True, exclude_none=True)
    values["space"] = {key: {kind: list(ends)} for key, draw in values["space"].items() for kind, ends in draw.items()}
    path.write_text(yaml.safe_dump(values | changes))
    with pytest.raises(UserError, match=words):
        plan_sweep(SweepConfig.load(str(path)))


def test_leaving_one_domain_out_is_a_training_for_each() -> None:
    config = sweep(objective="leave_one_domain_out")
    found = build_runs(config, locate_sets(config), "trials/one", {"model.heads.glscl.tau": 2.0}, 7)
    assert list(found) == ["without_toy_clips", "without_toy_stories"]
    for name, run in found.items():
        left_out = name.removeprefix("without_")
        (train,), (held_out,) = run.data.train, run.data.validation
        assert left_out not in train
        assert left_out in held_out
        assert run.data.test == ()
        assert (run.seed, run.model.heads.glscl.tau) == (7, 2.0)
