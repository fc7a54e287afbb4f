"""Steps after the first know nothing of the gradients before: accumulated or not, the ZeRO stages train alike."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever
from glscl.training.checkpoint import format as checkpoint
from glscl.training.checkpoint.format import TrainState
from glscl.training.checkpoint.snapshot import Snapshot, take_snapshot
from glscl.training.engine import backward, build_engine, set_learning_rates
from glscl.training.global_batch import RankPairs, backward_global_batch
from glscl.training.options import TrainingConfig

SIZE, PAIRS, STEPS, SAVED = 16, 4, 5, 3
CASES = [(stage, parts) for stage in (0, 1, 2, 3) for parts in (1, 2)]


def _engine(clip: str, stage: int, parts: int) -> tuple[Any, TrainingConfig]:
    torch.manual_seed(0)
    model = Retriever(ModelConfig.model_validate({"clip": clip, "head": "xpool", "max_words": 8, "max_frames": 2}))
    rates = {"lr_towers": 1e-3, "lr_head": 1e-3, "precision": "fp32"}
    config = TrainingConfig.model_validate(rates | {"zero_stage": stage, "accumulate": parts})
    return build_engine(model, config, torch.device("cpu"), 1), config


def _train(engine: Any, config: TrainingConfig, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(1, 49000, (PAIRS, 8), generator=generator)
        frames = torch.randint(0, 256, (PAIRS, 2, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        batch = RankPairs((ids,), frames, torch.ones(PAIRS, 2, dtype=torch.bool), torch.arange(PAIRS))
        set_learning_rates(engine, config, step, STEPS)
        engine.eval()  # dropout draws other masks for other parts
        terms = backward_global_batch(engine, partial(backward, engine), LossConfig(), batch, config.accumulate)
        engine.step()
        losses.append(float(terms["total"]))
    return losses


def _save(engine: Any, folder: str, name: str, stage: int) -> tuple[Path, Snapshot]:
    saved = Path(folder, name)
    saved.mkdir()
    return saved, take_snapshot(engine, str(saved), TrainState(SAVED, 1, stage, {"seed": 1}, ["f"]), 0)


def _resume(clip: str, stage: int, parts: int, saved: Path) -> list[float]:
    engine, config = _engine(clip, stage, parts)
    checkpoint.restore(engine, str(saved), checkpoint.check_complete(str(saved)), 0)
    assert {group["fused"] for group in engine.optimizer.param_groups} == {True}
    return _train(engine, config, range(SAVED, STEPS))


def _worker(rank: int, clip: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=1)
    found = {}
    for stage, parts in CASES:
        engine, config = _engine(clip, stage, parts)
        losses = _train(engine, config, range(SAVED))
        saved, snapshot = _save(engine, folder, f"{stage}-{parts}", stage)
        losses += _train(engine, config, range(SAVED, STEPS))
        snapshot.write()  # what the steps since have changed is not in it
        found[f"{stage}-{parts}"] = {"losses": losses}
        found[f"{stage}-{parts}"]["resumed"] = _resume(clip, stage, parts, saved)
    for stage in (0, 1, 2, 3):
        engine, config = _engine(clip, stage, 1)
        for group in engine.optimizer.param_groups:
            group["fused"] = False
        _train(engine, config, range(SAVED))
        saved, snapshot = _save(engine, folder, f"plain-{stage}", stage)
        snapshot.write()
        found[f"{stage}-1"]["after_plain"] = _resume(clip, stage, 1, saved)
    Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("later-steps")
    vision = {"image_size": SIZE, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    clip = folder / "later-steps.json"
    clip.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    mp.start_processes(_worker, args=(str(clip), str(folder)), nprocs=1, start_method="forkserver")
    return json.loads((folder / "found.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(("stage", "parts"), CASES)
def test_every_step_is_that_of_plain_training(stage: int, parts: int, found: dict[str, dict[str, list[float]]]) -> None:
    """Under ZeRO 3 with two parts, the towers' gradients of every step so far were added up."""
    plain = found["0-1"]["losses"]
    assert len({round(loss, 2) for loss in plain}) == STEPS, "the steps differ"
    assert found[f"{stage}-{parts}"]["losses"] == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(("stage", "parts"), CASES)
def test_a_resumed_run_takes_the_same_steps(stage: int, parts: int, found: dict[str, dict[str, list[float]]]) -> None:
    assert found[f"{stage}-{parts}"]["resumed"] == found[f"{stage}-{parts}"]["losses"][SAVED:]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_whose_optimiser_was_not_fused_goes_on_fused(
    stage: int, found: dict[str, dict[str, list[float]]]
) -> None:
    assert found[f"{stage}-1"]["after_plain"] == pytest.approx(found[f"{stage}-1"]["resumed"], rel=1e-5)
