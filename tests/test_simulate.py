"""The arithmetic of `benchmarks/simulate.py` against what real steps compute, keep and send."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks import simulate
from benchmarks.cost_model import Flops, Setup, count, memory_of, saved_bytes, step_of, times_of
from glscl.data.plan import StreamPlan
from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever
from glscl.training.engine import backward, build_engine
from glscl.training.global_batch import RankPairs, backward_global_batch
from glscl.training.options import TrainingConfig

CONFIG = ModelConfig(clip="glscl-tiny", max_frames=4, max_words=16)
PAIRS = 4


def _model() -> Retriever:
    torch.manual_seed(0)
    return Retriever(CONFIG)


def _batch(rank: int = 0) -> RankPairs:
    return RankPairs(
        (torch.randint(1, 1000, (PAIRS, 16)),),
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
        text, video = model("text", *batch.text), model("video", batch.frames, batch.frame_mask)
    one = count(CONFIG, torch.float32)
    assert sum(kept) / PAIRS == pytest.approx(one.kept, rel=0.05)
    caches = [*text.values(), *video.values()]
    floats = sum(tensor[0].numel() * tensor.element_size() for tensor in caches if tensor.is_floating_point())
    assert one.cached == floats
    assert memory_of(one, Setup(1, PAIRS)).caches == 2 * PAIRS * floats


@contextmanager
def received() -> Iterator[Counter[str]]:
    """Bytes that this rank would receive inside, by whether they belong to caches or to parameters."""
    counted: Counter[str] = Counter()
    once = 1 - 1 / dist.get_world_size()
    shares = dict.fromkeys(("all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast"), once)
    shares["all_reduce"] = 2 * once  # of the bytes of the whole tensor

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
        yield counted


def print_received(ranks: int, stage: int) -> None:
    """Run a step as rank 1 of so many, whose collectives return at once and bring nothing."""
    os.environ |= {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": str(ranks)}  # DeepSpeed asks for them
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=ranks)
    training = TrainingConfig(precision="fp32", zero_stage=stage, global_batch=ranks * PAIRS)
    with received() as counted:
        engine = build_engine(_model(), training, torch.device("cpu"), ranks)
        counted.clear()
        backward_global_batch(engine, partial(backward, engine), LossConfig(), _batch(1))
        engine.step()
    print(json.dumps(counted))


@pytest.mark.parametrize(("ranks", "stage"), [(2, 0), (2, 1), (8, 1)])
def test_bytes_are_those_that_a_rank_receives(ranks: int, stage: int) -> None:
    """In a process of its own: DeepSpeed remembers its first process group."""
    script = f"from tests.test_simulate import print_received; print_received({ranks}, {stage})"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    counted = json.loads(done.stdout.splitlines()[-1])
    expected = step_of(count(CONFIG, torch.float32), Setup(ranks, PAIRS, zero_stage=stage, nccl=False))
    assert counted["parameters"] == pytest.approx(expected.gradient_bytes + expected.weight_bytes, rel=0.01)
    # ZeRO's last pieces are small enough to be counted here
    assert counted["caches"] == pytest.approx(expected.gather_bytes, rel=0.01 if stage == 0 else 0.25)


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
