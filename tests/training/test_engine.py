"""The learning-rate schedule, the optimiser's groups, and the model that is scored during training."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever
from glscl.training import engine as engine_module
from glscl.training.engine import (
    backward,
    build_engine,
    evaluation_model,
    schedule,
    set_learning_rates,
)
from glscl.training.global_batch import RankPairs, backward_global_batch
from glscl.training.options import TrainingConfig

SIZE, PAIRS = 16, 4


def test_schedule_rises_linearly_and_falls_along_a_cosine() -> None:
    total, rising = 100, 10
    factors = [schedule(step, total, 0.1) for step in range(total + 1)]
    assert factors[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    assert factors[rising] == max(factors) == 1.0
    assert all(before > after for before, after in pairwise(factors[rising:]))
    assert factors[55] == pytest.approx(0.5)  # half way down
    assert factors[total - 1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert factors[total] == pytest.approx(0.0)


@pytest.mark.parametrize("total", [1, 2, 7])
def test_schedule_without_warm_up_starts_at_the_peak(total: int) -> None:
    assert schedule(0, total, 0.0) == 1.0


@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_schedule_of_one_step_trains(warmup: float) -> None:
    assert schedule(0, 1, warmup) == 1.0


def test_schedule_of_warm_up_alone_never_falls() -> None:
    assert [schedule(step, 4, 1.0) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_schedule_of_one_step_after_the_warm_up_ends_at_zero() -> None:
    assert schedule(1, 1, 0.0) == pytest.approx(0.0)


def test_schedule_rounds_a_short_warm_up_up() -> None:
    assert [schedule(step, 15, 0.1) for step in range(2)] == pytest.approx([0.5, 1.0])


def _model(clip: str, seed: int = 0) -> Retriever:
    torch.manual_seed(seed)
    head = {"queries": 2, "layers": 1, "attention_heads": 2, "feedforward": 16, "dropout": 0.5}
    config = {"clip": clip, "frame_context": "transformer", "context_layers": 1, "max_words": 8, "max_frames": 2}
    return Retriever(ModelConfig.model_validate(config | {"heads": {"glscl": head}}))


def _batch(rank: int = 0) -> RankPairs:
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(1, 49000, (PAIRS, 8), generator=generator)
    frames = torch.randint(0, 256, (PAIRS, 2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return RankPairs((ids,), frames, torch.ones(PAIRS, 2, dtype=torch.bool), torch.arange(PAIRS) + PAIRS * rank)


def _group(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)


def _step(engine: Any, rank: int) -> None:
    engine.train()
    backward_global_batch(engine, partial(backward, engine), LossConfig(), _batch(rank))
    engine.step()


def _rates_worker(rank: int, clip: str, folder: str) -> None:
    """One step with one learning rate at a time, and what moved."""
    _group(rank, 1, f"{folder}/store")
    moved: dict[str, dict[str, float]] = {}
    for name, rates in {
        "towers": {"lr_towers": 1e-3, "lr_head": 0.0},
        "head": {"lr_towers": 0.0, "lr_head": 1e-3},
        "decay": {"lr_towers": 1e-3, "lr_head": 1e-3, "weight_decay": 100.0},
        "no decay": {"lr_towers": 1e-3, "lr_head": 1e-3, "weight_decay": 0.0},
    }.items():
        options = {"precision": "fp32", "zero_stage": 0, "warmup": 0.5, "weight_decay": 0.0} | rates
        config = TrainingConfig.model_validate(options)
        model = _model(clip)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        engine = build_engine(model, config, torch.device("cpu"), 1)
        assert set_learning_rates(engine, config, 0, 4) == 0.5
        torch.manual_seed(3)
        _step(engine, rank)
        moved[name] = {key: (value - before[key]).abs().max().item() for key, value in model.state_dict().items()}
        if name == "towers":
            torch.save({g["name"]: g["lr"] for g in engine.optimizer.param_groups}, f"{folder}/rates.pt")
    torch.save(moved, f"{folder}/moved.pt")
    dist.destroy_process_group()


def _is_tower(name: str) -> bool:
    return name.startswith(("towers.", "logit_scale"))


def test_two_learning_rates_and_weight_decay(clip: str, tmp_path: Path) -> None:
    mp.start_processes(_rates_worker, args=(clip, str(tmp_path)), nprocs=1, start_method="forkserver")
    assert torch.load(tmp_path / "rates.pt") == {"towers": 0.5e-3, "head": 0.0}
    moved = torch.load(tmp_path / "moved.pt")
    for group, tower in (("towers", True), ("head", False)):
        here = {name: change for name, change in moved[group].items() if _is_tower(name) == tower}
        elsewhere = {name: change for name, change in moved[group].items() if _is_tower(name) != tower}
        assert max(elsewhere.values()) == 0.0
        assert all(change <= 0.51e-3 for change in here.values()), "Adam moves at most by the learning rate"
        assert sum(change > 0 for change in here.values()) > 0.9 * len(here)
    shrunk = {name for name, change in moved["decay"].items() if change > 1.1 * moved["no decay"][name]}
    dimensions = {name: value.ndim for name, value in _model(clip).state_dict().items()}
    assert shrunk
    assert all(dimensions[name] > 1 for name in shrunk), "biases, norms and the scale are not decayed"
    matrices = {name for name, count in dimensions.items() if count > 1}
    assert len(shrunk) > 0.9 * len(matrices)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_device_changes_no_setting(device: str, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU is what these tests run on a CPU."""
    import deepspeed
    import deepspeed.ops

    given: dict[str, Any] = {}
    stub = SimpleNamespace(optimizer=SimpleNamespace())
    monkeypatch.setattr(deepspeed, "initialize", lambda **arguments: (given.update(arguments) or stub, None))
    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", {"deepspeed_shm_comm": True})
    monkeypatch.delenv("DS_ACCELERATOR")
    options = {"precision": "bf16", "zero_stage": 2, "accumulate": 3, "clip_grad": 0.7, "weight_decay": 0.3}
    rates = {"lr_towers": 0.25, "lr_head": 0.5, "betas": (0.7, 0.8), "eps": 0.1}
    model = _model(clip)
    trained = sum(parameter.numel() for parameter in model.parameters())
    build_engine(model, TrainingConfig.model_validate(options | rates), torch.device(device), 5)
    assert os.environ.get("DS_ACCELERATOR") == ("cpu" if device == "cpu" else None)
    assert not deepspeed.ops.__compatible_ops__, "nothing is compiled on the user's machine"
    assert given["config"] == {
        "train_batch_size": 20,  # four backward calls on each of five ranks
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.7,
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": True,
            "reduce_bucket_size": trained,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "steps_per_print": 2**31 - 1,
        "timers": {"throughput": {"enabled": False}},
    }
    assert given["dist_init_required"] is False
    optimiser = given["optimizer"]
    assert type(optimiser) is torch.optim.AdamW
    assert optimiser.defaults["fused"], "on every device"
    assert {key: optimiser.defaults[key] for key in ("lr", "betas", "eps")} == {
        "lr": 0.0,
        "betas": (0.7, 0.8),
        "eps": 0.1,
    }
    assert {(g["name"], g["lr"], g["peak"], g["weight_decay"]) for g in optimiser.param_groups} == {
        (name, 0.0, peak, decay) for name, peak in (("towers", 0.25), ("head", 0.5)) for decay in (0.0, 0.3)
    }


def test_weight_decay_groups(clip: str) -> None:
    model = _model(clip)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = model.parameter_groups(0.2)
    listed = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(names.values()), "every parameter once"
    assert {(group["name"], group["weight_decay"]) for group in groups} == {
        (name, decay) for name in ("towers", "head") for decay in (0.0, 0.2)
    }
    for group in groups:
        for parameter in group["params"]:
            assert (parameter.ndim > 1) == (group["weight_decay"] > 0)
            assert _is_tower(names[id(parameter)]) == (group["name"] == "towers")


def _scores(model: Retriever) -> torch.Tensor:
    batch = _batch()
    with torch.no_grad():
        text, video = model("text", *batch.text), model("video", batch.frames, batch.frame_mask)
        return model("score", text, video).float()


def _evaluation_worker(rank: int, clip: str, folder: str) -> None:
    """Under every stage: scores before sharding, after it, and after a step; where the random numbers stand."""
    _group(rank, 2, f"{folder}/store")
    found = {}
    for stage, precision in ((0, "fp32"), (2, "fp32"), (3, "fp32"), (3, "bf16")):
        config = TrainingConfig.model_validate(
            {"precision": precision, "zero_stage": stage, "lr_towers": 1e-2, "lr_head": 1e-2, "warmup": 0.0}
        )
        model = _model(clip)
        before = _scores(model.eval().bfloat16() if precision == "bf16" else model.eval())
        engine = build_engine(_model(clip), config, torch.device("cpu"), 2)
        engine.train()
        state = torch.get_rng_state()
        with patch.object(engine_module, "Retriever", wraps=Retriever) as built:
            evaluated = evaluation_model(engine)
        assert [call.kwargs for call in built.call_args_list] == [{"load_weights": False, "towers": True}] * (
            stage == 3
        )
        unmoved = torch.equal(state, torch.get_rng_state())
        assert (evaluated is engine.module) == (stage < 3), "only a partitioned model is copied"
        assert not any(module.training for module in evaluated.modules())
        # A rank may score alone: it owns more blocks than the others.
        first = _scores(evaluated) if rank == 1 else None
        dist.barrier()
        set_learning_rates(engine, config, 0, 2)
        _step(engine, rank)
        assert engine.module.training
        norm = engine.get_global_grad_norm()
        assert stage == 0 or (norm is not None and 0 < norm < float("inf"))
        again = evaluation_model(engine)
        second = _scores(again)
        whole = {name: tensor.float() for name, tensor in again.state_dict().items()}
        found[stage, precision] = {"unmoved": unmoved, "before": before, "first": first, "second": second, "w": whole}
    torch.save(found, f"{folder}/found-{rank}.pt")
    dist.destroy_process_group()


def test_the_scored_model_is_the_trained_one(clip: str, tmp_path: Path) -> None:
    mp.start_processes(_evaluation_worker, args=(clip, str(tmp_path)), nprocs=2, start_method="forkserver")
    ranks = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2)]
    for case, found in ranks[1].items():
        assert found["unmoved"], case
        assert ranks[0][case]["unmoved"], case
        assert torch.equal(found["first"], found["before"]), case
        assert torch.equal(found["second"], ranks[0][case]["second"]), case
        assert not torch.allclose(found["second"], found["before"], atol=1e-3), "the step is seen"
        assert found["w"].keys() == ranks[1][0, "fp32"]["w"].keys()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip") / "engine-test.json"
    vision = {"image_size": SIZE, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


def test_memory_of_a_step_is_used_again() -> None:
    """Buffers such as DeepSpeed's are made and let go in every step."""
    code = """
import resource, torch
from glscl.training.engine import keep_freed_memory
keep_freed_memory()
for step in range(13):
    if step == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [torch.ones(5_000_000) for _ in range(4)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert faults < 30_000, "of 195,312 pages"
