"""The engine's gradients are those of one process: every ZeRO stage × accumulation × overlap × head, at 2 and 4 ranks.

On a GPU the engine is built as it is here; overlap is on there and here.
"""

from __future__ import annotations

import gc
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from glscl.losses import LossConfig
from glscl.models.heads import scoring
from glscl.training import engine as engine_module
from glscl.training.engine import backward, build_engine
from glscl.training.global_batch import backward_global_batch
from glscl.training.options import TrainingConfig
from tests.training.ranks import (
    CASES,
    TOLERANCE,
    Result,
    build_model,
    check,
    global_batch,
    mean,
    start,
    step,
    write_clip,
)

HEADS = {name: case for name, case in CASES.items() if "double" not in case and "log_scale" not in case}
SCORING = ("tight_transformer", "xpool", "xclip", "dicosa", "glccl", "tmass", "tcmgc", "plug-in")
"""Cases whose heads have parameters that scoring alone uses."""
Point = tuple[str, int, int, bool, str]
"""Case, ZeRO stage, parts of a rank's share, overlap, precision."""


def _points(world: int, rest: int | None) -> list[Point]:
    """What `make test` runs, or what is left of a stage of the whole matrix (four parts and bf16 are in it too)."""
    parts = (1, 2, 4) if world == 2 else (1, 2)
    whole = [*product(HEADS, (0, 1, 2, 3), parts, (True, False), ("fp32",))]
    whole += product(SCORING, (0, 1, 2, 3), parts[1:], (True, False), ("bf16",))
    fast = [*product(SCORING, (1,), (2,), (True,), ("fp32",))]
    if world == 2:
        fast += product((name for name in HEADS if name not in SCORING), (1,), (2,), (True,), ("fp32",))
        fast += product(HEADS, (1,), (1,), (True,), ("fp32",))
        fast += product(SCORING, (1,), (2,), (False,), ("fp32",))
        fast += product((*SCORING, "frozen", "adapters"), (0, 2, 3), (2,), (True,), ("fp32",))
        fast += product(SCORING, (1,), (2,), (True,), ("bf16",))
    assert set(fast) <= set(whole)
    return fast if rest is None else [point for point in whole if point[1] == rest and point not in fast]


def _engine_step(point: Point, clip: str, rank: int) -> Result:
    from deepspeed.utils import safe_get_full_grad

    name, stage, parts, overlap, precision = point
    case = CASES[name]
    config = TrainingConfig.model_validate(
        {"precision": precision, "zero_stage": stage, "accumulate": parts, "clip_grad": 0}
    )
    world = distributed.get_world_size()
    engine = build_engine(build_model(case, clip), config, torch.device("cpu"), world, overlap=overlap)
    assert engine.zero_overlap_comm() == overlap
    batch = global_batch().split(world)[rank]
    loss = LossConfig.model_validate(case["loss"])
    losses = backward_global_batch(engine, partial(backward, engine), loss, batch, parts)
    grads = {
        key: safe_get_full_grad(parameter).float()
        for key, parameter in engine.module.named_parameters()
        if parameter.requires_grad and key != case.get("unused")
    }
    return mean(losses, {})[0], grads


def _worker(rank: int, clip: str, points: list[Point]) -> dict[Any, Result]:
    scoring.TILE = 400  # a few pairs, so that scoring is computed again in the backward pass
    engine_module.REDUCED_AT_ONCE = 300  # several buckets, and parameters that do not fit one
    found: dict[Any, Result] = {}
    for point in points:
        gc.freeze()  # DeepSpeed collects garbage whenever it reports memory, and there is much by now that is none
        result = _engine_step(point, clip, rank)
        name, _, parts, _, precision = point
        if precision == "bf16" and (name, parts) not in found:
            found[name, parts] = step(CASES[name], clip, rank, parts, torch.bfloat16)
        found[point] = result
    return found if rank == 0 else {}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.timeout(0)  # minutes each, and more beside other work
@pytest.mark.parametrize("rest", [None, *(pytest.param(stage, marks=pytest.mark.exhaustive) for stage in (0, 1, 2, 3))])
@pytest.mark.parametrize("world", [2, 4])
def test_gradients_are_those_of_one_process(world: int, rest: int | None, clip: str, tmp_path: Path) -> None:
    points = _points(world, rest)
    found = start(_worker, world, tmp_path, clip, points)[0]
    expected = {name: step(case, clip, 0, 1) for name, case in HEADS.items()}
    wrong = []
    for point in points:
        name, _, parts, _, precision = point
        try:
            if precision == "bf16":  # beside a plain model, which adds the pieces' gradients up in bf16
                check(found[point], found[name, parts], 0.05)
            else:
                check(found[point], expected[name], CASES[name].get("tolerance", TOLERANCE))
        except AssertionError as error:
            wrong.append(f"{point}: {error}")
    assert wrong == []
