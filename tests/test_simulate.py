"""The arithmetic of `benchmarks/simulate.py` against what real steps compute, keep and send."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from benchmarks import simulate
from benchmarks.cost_model import Flops, Setup, count, memory_of, saved_bytes, step_of, times_of
from glscl.data.plan import StreamPlan
from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever
from glscl.training.engine import backward, build_engine
from glscl.training.global_batch import RankPairs, backward_global_batch
from glscl.training.options import TrainingConfig
from tests.training.ranks import start

CONFIG = ModelConfig(clip="glscl-tiny", max_frames=4, max_words=16)
PAIRS = 4


def _model() -> Retriever:
    torch.manual_seed(0)
    return Retriever(CONFIG)


def _batch(rank: int = 0) -> RankPairs:
    return RankPairs(
        torch.randint(1, 1000, (PAIRS, 16)),
        torch.randint(0, 256, (PAIRS, 4, 3, 64, 64), dtype=torch.uint8),
        torch.ones(PAIRS, 4, dtype=torch.bool),
        torch.arange(PAIRS) + rank * PAIRS,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_flops_are_those_of_a_real_step(accumulate: int) -> None:
    one, model = count(CONFIG, torch.float32), _model()
    with Flops() as counted:
        backward_global_batch(model, lambda loss, *, last: loss.backward(), LossConfig(), _batch(), accumulate)
    expected = step_of(one, Setup(1, PAIRS, accumulate)).flops
    assert counted.total == pytest.approx(expected, rel=0.01)  # the losses' own are left out
    assert one.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_activations_are_those_that_a_real_step_keeps() -> None:
    model, batch = _model(), _batch()
    with saved_bytes() as kept:
        text, video = model("text", batch.token_ids), model("video", batch.frames, batch.frame_mask)
    one = count(CONFIG, torch.float32)
    assert sum(kept) / PAIRS == pytest.approx(one.kept, rel=0.05)
    caches = [*text.values(), *video.values()]
    floats = sum(tensor[0].numel() * tensor.element_size() for tensor in caches if tensor.is_floating_point())
    assert one.cached == floats
    assert memory_of(one, Setup(1, PAIRS)).caches == 2 * PAIRS * floats


def _received(rank: int, stage: int) -> dict[str, float]:
    """Bytes that this rank receives in one step, by whether they belong to caches or to parameters."""
    counted: Counter[str] = Counter()
    world = dist.get_world_size()
    shares = dict.fromkeys(
        ("all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast"), 1 - 1 / world
    )
    shares["all_reduce"] = 2 * (1 - 1 / world)  # of the bytes of the whole tensor

    def counting(name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            given = [*arguments, *options.values()]
            tensors = next((value for value in given if isinstance(value, list)), None)
            tensors = tensors or [max((v for v in given if isinstance(v, torch.Tensor)), key=torch.Tensor.numel)]
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            counted["parameters" if size > 1 << 20 else "caches"] += shares[name] * size  # type: ignore[assignment]
            return real(*arguments, **options)

        return call

    with ExitStack() as patches:
        for name in shares:
            patches.enter_context(patch.object(dist, name, counting(name, getattr(dist, name))))
        training = TrainingConfig(precision="fp32", zero_stage=stage, global_batch=2 * PAIRS)
        engine = build_engine(_model(), training, torch.device("cpu"), world)
        counted.clear()
        backward_global_batch(engine, partial(backward, engine), LossConfig(), _batch(rank))
        engine.step()
    return dict(counted)


@pytest.mark.e2e
@pytest.mark.parametrize("stage", [0, 1])
def test_bytes_are_those_that_two_processes_send(stage: int, tmp_path: Path) -> None:
    one = count(CONFIG, torch.float32)
    expected = step_of(one, Setup(2, PAIRS, zero_stage=stage, nccl=False))
    for counted in start(_received, 2, tmp_path, stage):
        assert counted["parameters"] == pytest.approx(expected.gradient_bytes + expected.weight_bytes, rel=0.01)
        assert counted["caches"] == pytest.approx(expected.gather_bytes, rel=0.05)  # the logit scale, a norm


def test_more_workers_share_the_towers_and_not_the_gathered_caches() -> None:
    one = count(CONFIG)
    few, many = (step_of(one, Setup(workers, 64 // workers)) for workers in (2, 8))
    assert many.encode_flops == few.encode_flops / 4
    assert many.score_flops == few.score_flops / 4
    assert many.gather_bytes == pytest.approx(few.gather_bytes * (7 / 8) / (1 / 2))
    state = [memory_of(one, Setup(8, 8, zero_stage=stage)).states for stage in range(4)]
    assert state == sorted(state, reverse=True)
    assert state[3] == state[0] / 8
    assert times_of(one, Setup(8, 8), simulate.NODE).gather < times_of(one, Setup(16, 8), simulate.NODE).gather


def test_calibration_finds_the_numbers_that_made_the_seconds() -> None:
    one = count(CONFIG)

    def seconds(setup: Setup) -> float:
        step = step_of(one, setup)
        return setup.workers * (3e-10 * step.flops + 0.25 + 2e-9 * step.bytes)

    setups = [Setup(workers, pairs, nccl=False) for workers, pairs in simulate.CHECKED]
    cost = simulate.calibrate(one, setups[:3], [seconds(setup) for setup in setups[:3]])
    for setup in setups:
        assert cost(setup) == pytest.approx(seconds(setup))


def test_limits_are_named_where_they_are_met() -> None:
    one = count(CONFIG)
    met = {
        limit.name
        for limit in simulate.limits(one, Setup(64, 4), simulate.NODE, loaders=8, streams=256)
        if limit.needed > limit.there
    }
    assert "readers for the virtual streams" in met
    assert "virtual streams for the batch" not in met


def test_a_lookup_in_the_plan_walks_no_shards() -> None:
    """Of a million shards that would be a thousand times what it is."""
    entries = [SimpleNamespace(pairs=10, samples=10) for _ in range(20)]
    plan = StreamPlan([SimpleNamespace(domain="d", shards=entries)], [], 8, 4, "all", 0)  # type: ignore[list-item]
    first = plan.slots(0, 0)
    plan._sizes = []
    assert plan.slots(0, 0) == first
    assert plan.slots(5, 3)
    with pytest.raises(IndexError):
        plan.slots(plan.domain_steps[0], 0)  # the next epoch's order is made
