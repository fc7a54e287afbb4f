"""What a cell leaves, and when it is read instead of done."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.evaluation.saved import ModelCard, save_model
from glscl.models.freezing import frozen_fingerprint, trained_state
from glscl.models.retriever import ModelConfig, Retriever
from glscl.runs import pool
from glscl.runs.cell import RESULT, Cell, read_result
from glscl.runs.execution import export_towers, remove_checkpoints, run_cell
from glscl.runs.sets import Sets
from glscl.study.grid import build_cells
from glscl.system import storage
from glscl.training.options import TrainingConfig
from tests.study.fake import VIDEOS, entry, study


@pytest.fixture
def cell(make_shards: Callable[..., ShardSet], tmp_path: Path) -> Cell:
    sets = {name: make_shards(name, captions=(1,) * 5) for name in ("one", "two")}
    domains = {name: {"train": ["s"], "test": "t"} for name in sets}
    config = study(domains=domains, storage=str(tmp_path / "runs"))
    return build_cells(config, {name: Sets((own.uri,), (), own.uri) for name, own in sets.items()})[1]


def _leave(cell: Cell, **changes: Any) -> None:
    values = cell.config.model_dump(mode="json")
    tests = [_tested(_fingerprint(uri)) for uri in cell.config.data.test]
    result = {"config": values, "tests": tests, "step": 4, "validation": {}, "seconds": 1.0}
    storage.write_json(storage.join(cell.directory, RESULT), result | changes)


def _tested(fingerprint: str) -> dict[str, Any]:
    return entry("x", [1] * 2 * VIDEOS, [1] * VIDEOS) | {"fingerprint": fingerprint}


def _fingerprint(uri: str) -> str:
    from glscl.data.shards import open_shard_set

    return open_shard_set(uri).manifest.fingerprint()


def test_a_finished_cell_is_read_and_not_done_again(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_result(cell) is None
    _leave(cell)
    monkeypatch.setattr("glscl.runs.execution.train", lambda *_, **__: pytest.fail("trained again"))
    assert run_cell(cell, keep_model=True).seconds == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"epochs": 99}}, "training.epochs: 99 -> 5"),
        ({"evaluation": {"bank_videos": 7}}, "testing.bank_videos: 7 -> 0"),
    ],
)
def test_a_finished_cell_of_another_configuration_is_refused(
    cell: Cell, change: dict[str, dict[str, Any]], message: str
) -> None:
    values = cell.config.model_dump(mode="json")
    for section, keys in change.items():
        values[section] |= keys
    _leave(cell, config=values)
    with pytest.raises(UserError, match=f"finished cell of another configuration: {message}.*Choose another --name"):
        read_result(cell)


def test_a_cell_tested_on_other_sets_is_refused(cell: Cell) -> None:
    _leave(cell, tests=[_tested("another")])
    with pytest.raises(UserError, match=r"data\.test: other test sets"):
        read_result(cell)


def test_machines_and_logging_may_differ(cell: Cell) -> None:
    values = cell.config.model_dump(mode="json")
    values["training"] |= {"use_gpu": True, "log_every": 7}
    values["data"]["loader_workers"] = 5
    for name in ("memory_mb", "frames"):  # as versions before these options wrote it
        del values["evaluation"][name]
    _leave(cell, config=values)
    assert read_result(cell) is not None


def test_only_checkpoints_are_removed(tmp_path: Path) -> None:
    for name in ("step_00000004-w1-a/state.json", "checkpoint_manager_snapshot.json", "cell.json", "model/x", "steps"):
        storage.write_bytes(str(tmp_path / name), b"x")
    remove_checkpoints(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["cell.json", "model", "steps"]


@pytest.mark.parametrize("remote", [False, True])
def test_exported_towers_are_pretrained_weights(remote: bool, tmp_path: Path, bucket: str) -> None:
    torch.manual_seed(3)
    config = ModelConfig(clip="glscl-tiny", head="xpool")
    model = Retriever(config)
    with torch.no_grad():
        model.logit_scale.fill_(1.25)
    card = ModelCard(
        model=config, sample_fps=1.0, decoder="pyav", train_domains=(), step=1, seed=0, run="r", validation={}
    )
    save_model(str(tmp_path / "model"), card, model.state_dict())
    output = storage.join(bucket if remote else str(tmp_path), "towers.safetensors")
    export_towers(str(tmp_path / "model"), output)
    other = Retriever(ModelConfig(clip="glscl-tiny", head="mean_pool", pretrained=output))
    for name, tensor in model.towers.state_dict().items():
        assert torch.equal(other.towers.state_dict()[name], tensor), name
    assert other.logit_scale.item() == 1.25
    if remote:
        with pytest.raises(UserError, match=r"model\.pretrained: no file at s3://data/none\.safetensors"):
            Retriever(ModelConfig(clip="glscl-tiny", pretrained=f"{bucket}/none.safetensors"))


def test_exported_towers_have_lora_added_and_no_bottlenecks(tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = Retriever(ModelConfig(clip="glscl-tiny", head="mean_pool"))
    for adapters in ({"lora_rank": 2}, {"bottleneck": 2}):
        torch.manual_seed(3)
        values = {"clip": "glscl-tiny", "head": "mean_pool", "freeze": "towers", "adapters": adapters}
        model = Retriever(ModelConfig.model_validate(values))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(0.1 if name.endswith("lora.b") else 0.0)
        card = ModelCard(
            model=model.config, sample_fps=1.0, decoder="pyav", train_domains=(), step=1, seed=3, run="r",
            validation={}, frozen=frozen_fingerprint(model, model.config),
        )  # fmt: skip
        save_model(str(tmp_path / "model"), card, trained_state(model))
        output = str(tmp_path / "towers.safetensors")
        if "bottleneck" in adapters:
            with pytest.raises(UserError, match="bottleneck is part of its towers"):
                export_towers(str(tmp_path / "model"), output)
            continue
        export_towers(str(tmp_path / "model"), output)
        other = Retriever(ModelConfig(clip="glscl-tiny", head="mean_pool", pretrained=output)).eval()
        ids = torch.tensor([[49406, 320, 49407, 0]])
        torch.testing.assert_close(other.towers.encode_text(ids), model.eval().towers.encode_text(ids))
        assert not torch.allclose(other.towers.encode_text(ids)[0], plain.towers.encode_text(ids)[0], atol=1e-3)


@pytest.mark.parametrize(
    ("nodes", "training", "runs"),
    [
        ([{"CPU": 2.0}], {"num_workers": 1}, 2),
        ([{"CPU": 7.0}, {"CPU": 7.0}], {"num_workers": 1, "cpus_per_worker": 4}, 2),  # 14 CPUs, but not 3 x 4 of a node
        ([{"CPU": 40.0, "GPU": 8.0}] * 4, {"num_workers": 8, "use_gpu": True, "cpus_per_worker": 5}, 4),
        ([{"CPU": 8.0}] * 3, {"num_workers": 8, "use_gpu": True}, 0),
    ],
)
def test_no_more_cells_run_than_all_their_workers_fit(
    nodes: list[dict[str, float]], training: dict[str, Any], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr("ray.nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}])
    assert pool.concurrent_runs(TrainingConfig(**training)) == runs
