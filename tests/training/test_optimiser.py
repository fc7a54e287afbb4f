"""The engine's steps are torch's own AdamW after clipping by hand, under every ZeRO stage."""

from __future__ import annotations

import gc
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from glscl.losses import LossConfig
from glscl.training.engine import backward, build_engine, set_learning_rates
from glscl.training.global_batch import backward_global_batch
from glscl.training.options import TrainingConfig
from tests.training.ranks import CASES, build_model, global_batch, start, write_clip

FACTORS = (1.0, 2e-4, 30.0, 2e-3, 3.0)
"""What each step's loss is multiplied by, so that some gradients are clipped and some are not."""
ENGINES = [(0, 1), (1, 2), (2, 1), (3, 1)]
"""ZeRO stage, and parts of a rank's share."""
CASE = CASES["xpool"]


def _config(stage: int, accumulate: int) -> TrainingConfig:
    """Numbers far from the defaults, each of which shows in the weights."""
    return TrainingConfig.model_validate(
        {"precision": "fp32", "zero_stage": stage, "accumulate": accumulate}
        | {"betas": (0.6, 0.8), "eps": 0.01, "weight_decay": 0.5, "clip_grad": 0.3}
        | {"lr_towers": 0.02, "lr_head": 0.05, "warmup": 0.4}
    )


def _worker(rank: int, clip: str) -> dict[tuple[int, int], tuple[list[float | None], dict[str, Tensor]]]:
    import deepspeed

    found = {}
    for stage, parts in ENGINES:
        gc.freeze()  # DeepSpeed collects garbage whenever it reports memory, and there is much by now that is none
        config = _config(stage, parts)
        engine = build_engine(build_model(CASE, clip), config, torch.device("cpu"), distributed.get_world_size())
        batch = global_batch().split(distributed.get_world_size())[rank]
        norms = []
        for step, factor in enumerate(FACTORS):
            engine.train()
            set_learning_rates(engine, config, step, len(FACTORS))
            loss = LossConfig.model_validate({"contrastive": {"weight": factor}})
            backward_global_batch(engine, partial(backward, engine), loss, batch, parts)
            engine.step()
            norms.append(float(engine.get_global_grad_norm() or 0.0))
        parameters = dict(engine.module.named_parameters())
        with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=stage == 3):
            found[stage, parts] = norms, {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return found


def _by_hand(clip: str) -> tuple[list[float], dict[str, Tensor]]:
    """The same steps in one process."""
    config = _config(0, 1)
    model = build_model(CASE, clip)
    optimiser = torch.optim.AdamW(model.parameter_groups(0.5), lr=0.0, betas=(0.6, 0.8), eps=0.01)
    factors = [0.5, 1.0, 1.0, 0.5 * (1 + math.cos(math.pi / 3)), 0.5 * (1 + math.cos(2 * math.pi / 3))]
    norms = []
    for rate, factor in zip(factors, FACTORS, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate * {"towers": 0.02, "head": 0.05}[group["name"]]
        optimiser.zero_grad()
        loss = LossConfig.model_validate({"contrastive": {"weight": factor}})
        backward_global_batch(model, lambda total, last: total.backward(), loss, global_batch())
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads))
        for grad in grads:
            grad *= min(1.0, config.clip_grad / norm)
        norms.append(norm)
        optimiser.step()
    return norms, {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_steps_are_those_of_adamw_after_clipping(clip: str, tmp_path: Path) -> None:
    norms, weights = _by_hand(clip)
    assert min(norms) < 0.1 * 0.3 < 10 * 0.3 < max(norms), "both sides of the limit"
    before = dict(build_model(CASE, clip).named_parameters())
    ranks = start(_worker, 2, tmp_path, clip)
    for engine in ENGINES:
        for found_norms, found in (rank[engine] for rank in ranks):
            if engine[0] > 0:  # DeepSpeed keeps none under stage 0
                assert found_norms == pytest.approx(norms, rel=1e-3), engine
            for name, expected in weights.items():
                allowed = max(1e-6, 5e-3 * float((expected - before[name]).abs().max()))  # of how far it moved
                assert float((found[name] - expected).abs().max()) <= allowed, (engine, name)
