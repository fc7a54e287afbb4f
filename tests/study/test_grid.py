"""Cells and their runs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.runs.cell import Cell
from glscl.runs.options import UNION, ZERO_SHOT
from glscl.runs.sets import Sets, locate_sets
from glscl.study.grid import build_cells, check_sets
from glscl.study.plan import describe, notes_on_losses
from tests.study.fake import study


def _find(found: list[Cell], variant: str, training: str, seed: int = 1) -> Cell:
    return next(c for c in found if (c.variant, c.training, c.seed) == (variant, training, seed))


def test_a_run_is_its_parts_over_one_another() -> None:
    config = study(
        union=True,
        run={"model": {"clip": "glscl-tiny"}, "training": {"epochs": 3, "global_batch": 16}},
        union_run={"training": {"epochs": 2}},
    )
    found = build_cells(config, locate_sets(config))
    alone, both = _find(found, "xpool", "toy_stories", 2), _find(found, "xpool", UNION)
    assert alone.config.model.head == "xpool"
    assert (alone.config.seed, alone.config.training.epochs, both.config.training.epochs) == (2, 3, 2)
    assert (alone.config.model.max_words, alone.config.training.global_batch) == (16, 16)
    assert [uri.rsplit("/", 2)[-2:] for uri in alone.config.data.train] == [["toy_stories", "train_8"]]
    assert [uri.rsplit("/", 2)[-2] for uri in both.config.data.train] == ["toy_clips", "toy_stories"]
    assert both.domains == ("toy_clips", "toy_stories")
    assert all(cell.config.data.test == found[0].config.data.test for cell in found)
    assert len(found[0].config.data.test) == 2


def test_variants_choose_what_is_trained_of_the_towers() -> None:
    """Frozen towers, adapters, LP-FT and WiSE-FT are keys of a run like any other."""
    lora = {"model": {"head": "xpool", "freeze": "towers", "adapters": {"lora_rank": 4}}}
    robust = {"model": {"head": "xpool"}, "training": {"head_first": 0.2}, "evaluation": {"towers_alpha": 0.5}}
    variants = {
        name: {"group": "attention", "what": name, "run": run} for name, run in (("lora", lora), ("robust", robust))
    }
    config = study(variants=variants, comparisons=[["lora", "robust"]])
    found = build_cells(config, locate_sets(config))
    first, second = (_find(found, name, "toy_clips").config for name in variants)
    assert (first.model.freeze, first.model.adapters.lora_rank, first.training.head_first) == ("towers", 4, None)
    assert (second.model.freeze, second.training.head_first, second.evaluation.towers_alpha) == ("none", 0.2, 0.5)
    assert found[0].config.model.freeze == "none", "zero-shot"


def test_frozen_rows_stand_beside_trained_ones() -> None:
    """Only what is trained of the towers tells them apart, and only trained ones have towers between."""
    variants = {
        f"{head}{suffix}": {"group": "pooling", "what": head, "run": {"model": {"head": head, **freeze}}}
        for head in ("mean_pool", "xpool")
        for suffix, freeze in (("", {}), ("_frozen", {"freeze": "towers"}))
    }
    pairs = [["xpool", "mean_pool"], ["xpool_frozen", "mean_pool_frozen"]]
    config = study(variants=variants, comparisons=pairs, wise_ft=[0.5])
    found = build_cells(config, locate_sets(config))
    for head in ("mean_pool", "xpool"):
        trained, frozen = (_find(found, name, "toy_clips") for name in (head, f"{head}_frozen"))
        assert (trained.wise_ft, frozen.wise_ft) == ((0.5,), ())
        changed = frozen.config.model_copy(
            update={"name": trained.config.name, "model": frozen.config.model.model_copy(update={"freeze": "none"})}
        )
        assert changed == trained.config


def test_on_features_every_condition_has_sets_of_its_own() -> None:
    """Lengths are part of features; what is compared, counted and checked are the videos."""
    conditions = {"short": {"model": {"max_frames": 2}}, "long": {"model": {"max_frames": 6}}}
    config = study(features=True, conditions=conditions, storage="/runs")
    sets = locate_sets(config)
    for cell in build_cells(config, sets):
        addresses = [*cell.config.data.train, *cell.config.data.test]
        assert all(uri.startswith(f"/runs/fake/features/{cell.condition}/toy_") for uri in addresses)
        trained = [] if cell.training == ZERO_SHOT else [f"{cell.training}/train-0"]
        assert [uri.split("/", 5)[5] for uri in cell.config.data.train] == trained
        assert [uri.split("/", 5)[5] for uri in cell.config.data.test] == ["toy_clips/test", "toy_stories/test"]
    assert build_cells(study(conditions=conditions), sets)[0].config.data.test[0] == sets["toy_clips"].test


def test_a_plan_says_where_the_official_form_is_away_from_its_batch() -> None:
    glscl = {"group": "consistency", "what": "official", "run": {"model": {"head": "glscl"}}}
    loss = {"inter_consistency": {"form": "corrected"}}
    mended = glscl | {"run": {"model": {"head": "glscl"}, "loss": loss}}
    pool = {"group": "pooling", "what": "mean", "run": {"model": {"head": "mean_pool"}}}
    run = {
        "model": {"clip": "glscl-tiny", "heads": {"glscl": {"attention_heads": 4}}},
        "training": {"global_batch": 256},
    }
    config = study(variants={"glscl": glscl, "mended": mended, "pool": pool}, run=run, union=True)
    found = build_cells(config, locate_sets(config))
    (note,) = notes_on_losses(found)
    assert note.startswith(f"glscl on toy_clips, glscl on toy_stories, glscl on {UNION}: loss.inter_consistency in its")
    assert describe(config, found, 0)["note"] == note
    quiet = study(variants={"mended": mended, "pool": pool}, run=run, comparisons=[["mended", "pool"]])
    found = build_cells(quiet, locate_sets(quiet))
    assert "note" not in describe(quiet, found, 0)


def test_seeds_go_round_so_that_an_early_report_compares_everything() -> None:
    found = build_cells(study(), locate_sets(study()))
    assert [cell.seed for cell in found[1:]] == sorted(cell.seed for cell in found[1:])


def test_a_cell_survives_the_way_to_another_process() -> None:
    cell = build_cells(study(), locate_sets(study()))[-1]
    assert pickle.loads(pickle.dumps(cell)) == cell


def test_lists_of_leaked_videos_go_to_the_trainings_that_they_concern() -> None:
    lists = [
        {"test": "toy_clips", "train": "toy_clips", "list": "a.txt"},
        {"test": "toy_stories", "train": "toy_clips", "list": "b.txt"},
    ]
    config = study(leave_out=lists, union=True)
    found = build_cells(config, locate_sets(config))
    both = ("toy_clips=a.txt", "toy_stories=b.txt")
    assert _find(found, "glscl", "toy_clips").config.evaluation.leave_out == both
    assert _find(found, "glscl", "toy_stories").config.evaluation.leave_out == ()
    assert _find(found, "glscl", UNION).config.evaluation.leave_out == both
    config = study(leave_out=[*lists, {"test": "toy_clips", "train": "toy_stories", "list": "c.txt"}], union=True)
    with pytest.raises(UserError, match=r"two lists of toy_clips .*a\.txt, c\.txt"):
        build_cells(config, locate_sets(config))


def test_relative_shard_sets_are_under_the_root() -> None:
    domains = {"one": {"train": ["shards/one", "s3://other/one"], "validation": ["/abs/dev"], "test": "shards/test"}}
    leaks = [{"test": "one", "train": "one", "list": "leaks.txt"}]
    config = study(domains=domains, root="s3://bucket/data", leave_out=leaks)
    (own,) = locate_sets(config).values()
    assert own == Sets(("s3://bucket/data/shards/one", "s3://other/one"), ("/abs/dev",), "s3://bucket/data/shards/test")
    found = build_cells(config, {"one": own})
    assert found[-1].config.evaluation.leave_out == ("one=s3://bucket/data/leaks.txt",)


def test_test_sets_that_are_trained_on_are_refused(make_shards: Callable[..., ShardSet], tmp_path: Path) -> None:
    one, two = make_shards("one", captions=(1,) * 5), make_shards("two", captions=(2,) * 5)
    domains: dict[str, Any] = {"one": {"train": [one.uri], "test": two.uri}}
    with pytest.raises(UserError, match=r"domains\.one\.test: .* says that its domain is two; .*--domain one"):
        check_sets(study(domains=domains), {"one": Sets((one.uri,), (), two.uri)})
    with pytest.raises(UserError, match=r"domains\.one\.validation: .*two is also in domains\.two\.test: "):
        check_sets(study(domains=domains), {"one": Sets((one.uri,), (two.uri,), ""), "two": Sets((), (), two.uri)})
    leaks = [{"test": "one", "train": "one", "list": str(tmp_path / "missing.txt")}]
    with pytest.raises(UserError, match=r"missing\.txt: no such file"):
        check_sets(study(domains=domains, leave_out=leaks), {"one": Sets((one.uri,), (), "")})


def test_cells_share_the_nodes_so_a_range_of_workers_is_refused() -> None:
    config = study(run={"model": {"clip": "glscl-tiny"}, "training": {"num_workers": [1, 2]}})
    with pytest.raises(UserError, match=r"training\.num_workers is a range, .*give one number"):
        build_cells(config, locate_sets(config))
