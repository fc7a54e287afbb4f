"""The study's YAML: packaged studies are sound, mistakes are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from glscl.cli import main
from glscl.errors import UserError
from glscl.losses import applicable_terms
from glscl.models.retriever import Retriever
from glscl.runs.build import build_pretraining
from glscl.runs.options import ZERO_SHOT, merge
from glscl.runs.sets import locate_sets
from glscl.study.grid import build_cells
from glscl.study.options import StudyConfig
from glscl.study.plan import tower_names

PACKAGED = ["benchmarks", "benchmarks_frozen", "toy", "toy_factors", "toy_frozen", "toy_small"]


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_studies_give_sound_runs(name: str) -> None:
    study = StudyConfig.load(name)
    assert StudyConfig.names() == PACKAGED
    found = build_cells(study, locate_sets(study))
    trainings = sum(domain.is_trained for domain in study.domains.values()) + study.union
    expected = len(study.conditions) * (1 + len(study.variants) * trainings * len(study.seeds))
    assert len({cell.directory for cell in found}) == len(found) == expected
    for cell in found:
        training = cell.config.training
        assert training.global_batch % (cell.config.data.virtual_streams) == 0
        per_worker = training.num_workers * max(1, cell.config.data.loader_workers)
        assert cell.config.data.virtual_streams % per_worker == 0
    for clip in tower_names(study):
        build_pretraining(study, make=False, clip=clip)


def test_each_architecture_is_pretrained_by_itself() -> None:
    study = StudyConfig.load("toy_factors")
    assert tower_names(study) == ["", "glscl-tiny-siglip"]
    names = {}
    for clip in tower_names(study):
        run = build_pretraining(study, make=False, clip=clip)
        assert run is not None
        names[run.model.clip] = run.name
    assert names == {"glscl-tiny": "pretraining", "glscl-tiny-siglip": "pretraining.glscl-tiny-siglip"}
    cells = build_cells(study, locate_sets(study))
    towers = {(cell.condition, cell.config.model.clip, Path(cell.config.model.pretrained or "").name) for cell in cells}
    assert towers == {
        ("clip", "glscl-tiny", "towers.safetensors"),
        ("siglip", "glscl-tiny-siglip", "towers.glscl-tiny-siglip.safetensors"),
    }
    assert [tower_names(StudyConfig.load(name)) for name in PACKAGED if name != "toy_factors"] == [[""]] * 5


@pytest.mark.parametrize("name", ["toy", "benchmarks"])
def test_frozen_twins_differ_in_their_towers_alone(name: str) -> None:
    study, twin = StudyConfig.load(name), StudyConfig.load(f"{name}_frozen")
    same = (
        "variants",
        "domains",
        "seeds",
        "comparisons",
        "conditions",
        "pretraining",
        "union",
        "union_run",
        "zero_shot",
    )
    assert {key: getattr(study, key) for key in same} == {key: getattr(twin, key) for key in same}
    assert (twin.features, twin.beside, study.features) == (True, study.name, False)
    towers, frozen = study.run["model"] | {"grad_checkpointing": None}, twin.run["model"] | {"grad_checkpointing": None}
    assert frozen == towers | {"freeze": "towers"}
    machines = ("num_workers", "cpus_per_worker")
    trained, other = (
        {key: value for key, value in one.run["training"].items() if key not in machines} for one in (study, twin)
    )
    assert trained == other
    assert twin.run["training"]["num_workers"] == 1, "one process does a cell"


def test_the_packaged_studies_ask_the_question() -> None:
    toy, real = StudyConfig.load("toy"), StudyConfig.load("benchmarks")
    for study, least in ((toy, 9), (real, 6)):
        heads = {v.run["model"]["head"] for v in study.variants.values()}
        assert len(heads) >= least
        assert len(study.seeds) >= 3
        groups = {name: variant.group for name, variant in study.variants.items()}
        asked = [pair for pair in study.pairs if tuple(groups[n] for n in pair) == ("consistency", "attention")]
        attention = [name for name, group in groups.items() if group == "attention"]
        assert sorted(asked) == sorted((ours, theirs) for ours in ("glscl", "glccl") for theirs in attention)
        assert {"glscl_plain", "glccl_plain"} <= {second for _, second in study.pairs}
    assert tuple(real.domains) == ("msrvtt", "activitynet", "didemo", "lsmdc", "msvd", "vatex")
    assert [c["model"] for c in real.conditions.values()] == [
        {"max_words": 64, "max_frames": 64},
        {"max_words": 32, "max_frames": 12},
    ]
    assert "toy" in toy.label.lower()


def test_every_variant_of_the_toy_study_can_be_built_and_trained() -> None:
    study = StudyConfig.load("toy")
    for name, variant in study.variants.items():
        cell = next(c for c in build_cells(study, locate_sets(study)) if c.variant == name)
        config = cell.config.model.model_copy(update={"pretrained": None})
        model = Retriever(config)
        on, _ = applicable_terms(cell.config.loss, model.head)
        assert ("contrastive_score_consistency" in on) == (name == "glccl")
        assert ("inter_consistency" in on) == (name == "glscl")
        assert variant.run["model"]["head"] == model.head.name


def _changed(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> str:
    values = yaml.safe_load(StudyConfig.text("toy_small"))
    change(values)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        *sections, last = path.split("/")
        for section in sections:
            values = values[section]
        values[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("seed", [1]), "unknown key 'seed', did you mean 'seeds'"),
        (_set("seeds", [1, 1]), "seeds"),
        (_set("seeds", []), "seeds"),
        (_set("comparisons", [["glscl", "xpol"]]), "comparisons: 'xpol' is none of .*did you mean 'xpool'"),
        (_set("comparisons", [["glscl", "glscl"]]), "compared with itself"),
        (_set("variants", {}), "variants: none given"),
        (_set("variants/zero-shot", {"group": "pooling", "what": "", "run": {}}), "'zero-shot' cannot be a name"),
        (_set("variants/a b", {"group": "pooling", "what": "", "run": {}}), "'a b' cannot be a name"),
        (_set("variants/xpool/group", "attentive"), r"variants\.xpool\.group"),
        (_set("domains/toy_clips/train", ["x"]), "either train"),
        (_set("domains/toy_clips", {}), "either train"),
        (_set("domains/toy_clips/test", "x"), "leave them out"),
        (_set("run/data/train", ["x"]), "run: data.train follows from"),
        (_set("leave_out", [{"test": "toy_clip", "train": "toy_clips", "list": "x"}]), "leave_out: 'toy_clip'"),
    ],
)
def test_mistakes_are_named(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        StudyConfig.load(_changed(change, tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("run/training/global_batc", 16), "global_batch"),
        (_set("variants/xpool/run/model/head", "xpol"), "did you mean 'xpool'"),
        (_set("conditions/16_words_2_frames/model/max_words", "many"), r"model\.max_words"),
    ],
)
def test_a_mistake_in_a_run_is_named_before_anything_starts(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "--config", _changed(change, tmp_path), "--storage", str(tmp_path)]) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("glscl: FAILED study toy-study-small")
    assert __import__("re").search(message, last), last
    assert not (tmp_path / "toy-study-small").exists()


def test_no_such_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--config", "toi"]) == 2
    assert "no study 'toi', did you mean 'toy'" in capsys.readouterr().out
    assert main(["study", "--config", str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml: no such file" in capsys.readouterr().out


def test_a_dry_run_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--config", "toy", "--storage", str(tmp_path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "cells: 109, 0 finished" in out
    assert "note:" not in out  # no head but GLSCL has concepts, though others have `queries`
    assert out.splitlines()[-1] == "glscl: OK dry run: 109 cells, 0 of them finished; nothing was started"
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--config", "toy", "--storage", str(tmp_path), "--report-only"]) == 2
    assert "nothing to report" in capsys.readouterr().out


def test_merging_goes_key_by_key() -> None:
    first = {"model": {"head": "glscl", "heads": {"glscl": {"tau": 3}}}, "seed": 1}
    assert merge(first, {"model": {"heads": {"glscl": {"queries": 2}}}}, {"seed": 2}) == {
        "model": {"head": "glscl", "heads": {"glscl": {"tau": 3, "queries": 2}}},
        "seed": 2,
    }
    assert first["seed"] == 1


def test_zero_shot_towers_have_nothing_of_their_own() -> None:
    study = StudyConfig.load("toy")
    (cell,) = [c for c in build_cells(study, locate_sets(study)) if c.training == ZERO_SHOT]
    assert (cell.config.model.head, cell.config.model.frame_context, cell.config.model.position_std) == (
        "mean_pool",
        "none",
        None,
    )
    assert cell.config.data.train == ()
