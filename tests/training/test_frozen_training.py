"""Training with frozen towers and LP-FT under every ZeRO stage: what moves, what the optimiser holds, what is saved."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from glscl.errors import UserError
from glscl.losses import LossConfig
from glscl.training.checkpoint.format import TrainState, check_resumable
from glscl.training.checkpoint.snapshot import take_snapshot
from glscl.training.config import RunConfig
from glscl.training.engine import backward, build_engine, set_learning_rates
from glscl.training.global_batch import backward_global_batch
from glscl.training.options import TrainingConfig
from tests.training.ranks import ADAPTERS, build_model, global_batch, start, write_clip

STAGES = (0, 1, 2, 3)
RATES = {"precision": "fp32", "lr_towers": 1e-3, "lr_head": 1e-2, "warmup": 0.5}
FROZEN = {"head": "xpool", "model": {"freeze": "towers"}}
ADAPTED = {"head": "xpool", "model": {"freeze": "towers", "adapters": ADAPTERS}}
PLAIN = {"head": "xpool"}


def _weights(engine: Any) -> dict[str, Tensor]:
    import deepspeed

    zero3 = engine.zero_optimization_stage() == 3
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())) if zero3 else nullcontext():
        return {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}


def _train(engine: Any, config: TrainingConfig, steps: range, total: int, rank: int) -> None:
    batch = global_batch().split(distributed.get_world_size())[rank]
    for step in steps:
        set_learning_rates(engine, config, step, total)
        engine.train()
        backward_global_batch(engine, partial(backward, engine), LossConfig(), batch, config.accumulate)
        engine.step()


def _engine(case: dict[str, Any], clip: str, stage: int, **training: Any) -> tuple[Any, TrainingConfig]:
    config = TrainingConfig.model_validate(RATES | {"zero_stage": stage} | training)
    model = build_model(case, clip)
    return build_engine(model, config, torch.device("cpu"), distributed.get_world_size()), config


def _moments(engine: Any) -> int:
    """Numbers of the optimiser's moments on this rank."""
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return sum(moments[key].numel() for moments in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _worker(rank: int, clip: str, folder: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for stage in STAGES:
        for name, case in (("frozen", FROZEN), ("adapted", ADAPTED), ("plain", PLAIN)):
            engine, config = _engine(case, clip, stage)
            before = _weights(engine)
            _train(engine, config, range(2), 2, rank)
            after = _weights(engine)
            trained = {key for key, parameter in engine.module.named_parameters() if parameter.requires_grad}
            own = Path(folder, f"{name}-{stage}-{rank}")
            own.mkdir()
            state = TrainState(2, 2, stage, {"seed": 1}, [], frozen=None if name == "plain" else "f")
            take_snapshot(engine, str(own), state, rank).write()
            found[stage, name] = {
                "moved": {key for key, tensor in after.items() if not torch.equal(tensor, before[key])},
                "all": set(before),
                "trained": trained,
                "numbers": sum(before[key].numel() for key in trained),
                "moments": _moments(engine),
                "grads": {key for key, parameter in engine.module.named_parameters() if parameter.grad is not None},
                "bytes": _bytes(own),
                "after": after,
            }
        for parts in (1, 2):
            engine, config = _engine(PLAIN, clip, stage, head_first=0.5, accumulate=parts)
            before = _weights(engine)
            _train(engine, config, range(2), 4, rank)
            first = _weights(engine)
            _train(engine, config, range(2, 4), 4, rank)
            found[stage, "head first", parts] = before, first, _weights(engine)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("frozen")
    return start(_worker, 2, folder, write_clip(folder), str(folder))


@pytest.mark.parametrize("name", ["frozen", "adapted"])
@pytest.mark.parametrize("stage", STAGES)
def test_only_what_is_trained_moves_and_has_moments(stage: int, name: str, ranks: list[dict[Any, Any]]) -> None:
    found = ranks[0][stage, name]
    assert found["moved"] <= found["trained"] < found["all"]
    assert len(found["moved"]) > 0.9 * len(found["trained"]), "some biases have no gradient"
    assert found["grads"] <= found["trained"]
    moments = found["moments"] if stage == 0 else sum(of_rank[stage, name]["moments"] for of_rank in ranks)
    assert 2 * found["numbers"] <= moments <= 2 * found["numbers"] + 500, "but for padding"
    assert moments < 0.02 * ranks[0][stage, "plain"]["numbers"] * 2


@pytest.mark.parametrize("name", ["frozen", "adapted"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_is_of_what_is_trained(stage: int, name: str, ranks: list[dict[Any, Any]]) -> None:
    """Beside the 70 kB that DeepSpeed's scripts and names take in every checkpoint."""
    small, whole = (sum(of_rank[stage, kind]["bytes"] for of_rank in ranks) for kind in (name, "plain"))
    assert small - 250_000 < 0.02 * whole
    assert whole > 8_000_000


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_the_head_is_trained_first_and_then_everything(stage: int, parts: int, ranks: list[dict[Any, Any]]) -> None:
    before, first, last = ranks[0][stage, "head first", parts]
    head = {name for name in before if name.startswith("head.")}
    for name, tensor in before.items():
        if name not in head:
            assert torch.equal(first[name], tensor), name
    moved = {name for name, tensor in last.items() if not torch.equal(tensor, first[name])}
    assert len(moved) > 0.9 * len(before)
    frozen = ranks[0][stage, "frozen"]["after"]  # the same two steps, but that the logit scale moves, too
    for name in head:
        torch.testing.assert_close(first[name], frozen[name], rtol=0.02, atol=2e-4)


@pytest.mark.parametrize(
    ("share", "total", "steps"), [(None, 100, 0), (0.3, 100, 30), (0.001, 100, 1), (0.999, 100, 99), (0.5, 1, 0)]
)
def test_how_many_steps_train_the_head_alone(share: float | None, total: int, steps: int) -> None:
    assert TrainingConfig(head_first=share).head_only_steps(total) == steps


def test_frozen_weights_of_another_origin_are_refused() -> None:
    values = RunConfig.model_validate({"model": {"freeze": "towers", "pretrained": "openai"}}).model_dump(mode="json")
    state = TrainState(4, 1, 1, values, ["m"], frozen="a1")
    check_resumable(state, values, ["m"], "a1")
    with pytest.raises(
        UserError, match=r"model\.pretrained: the frozen weights .* \(fingerprint a1, now b2\)"
    ) as raised:
        check_resumable(state, values, ["m"], "b2")
    assert "weights of openai" in str(raised.value)
    assert "\n" not in str(raised.value)
