"""Loss and every parameter's gradient are those of one process, at any number of ranks and chunks."""

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

from glscl.errors import UserError
from glscl.losses import LossConfig, term_names
from glscl.models import ModelConfig, Retriever, head_names
from glscl.models.heads import scoring
from glscl.training.collectives import world_size
from glscl.training.engine import backward as engine_backward
from glscl.training.engine import build_engine
from glscl.training.global_batch import Batch, backward_calls, backward_global_batch, step_loss
from glscl.training.options import TrainingConfig

PAIRS, WORDS, FRAMES, SIZE = 8, 8, 3, 16
TOLERANCE = 1e-5

Result = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def _cases() -> dict[str, dict[str, Any]]:
    strong = {
        form: {
            "inter_consistency": {"form": form, "margin_weight": 0.3},
            "intra_diversity": {"form": form, "weight": 0.5, "margin": 0.4},
        }
        for form in ("official", "corrected")
    }
    consistency = {form: {"contrastive_score_consistency": {"form": form}} for form in ("official", "corrected")}
    # Softmaxes of temperature 0.01 make up to a hundred times more of float32's rounding in the towers, which depends
    # on the size of the batch that a tower is given. In float64 what is left would be a difference in the algebra.
    sharp = {"tolerance": 10 * TOLERANCE}
    return {
        "glscl-official": {"head": "glscl", "loss": strong["official"]},
        "glscl-corrected": {"head": "glscl", "loss": strong["corrected"], "frame_context": "transformer"},
        "mean_pool": {"head": "mean_pool", "loss": {}},
        "seq_transformer": {"head": "seq_transformer", "loss": {}},
        "tight_transformer": {"head": "tight_transformer", "loss": {}},
        "xpool": {"head": "xpool", "loss": {}},
        "dicosa": {"head": "dicosa", "loss": {}},
        "xclip": {"head": "xclip", "loss": {}} | sharp,
        "xclip-double": {"head": "xclip", "loss": {}, "double": True},
        "wti": {"head": "wti", "loss": {"channel_decorrelation": {"weight": 0.1, "off_diagonal": 0.05}}},
        "glccl": {"head": "glccl", "loss": consistency["official"]} | sharp,
        "glccl-official-double": {"head": "glccl", "loss": consistency["official"], "double": True},
        "glccl-corrected-double": {"head": "glccl", "loss": consistency["corrected"], "double": True},
        "mean_pool-scale-above-limit": {"head": "mean_pool", "loss": {}, "log_scale": 5.0},
    }


def _clip(folder: Path) -> str:
    path = folder / "world-size-test.json"
    vision = {"image_size": SIZE, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


def _model(case: dict[str, Any], clip: str, dropout: float = 0.0) -> Retriever:
    torch.manual_seed(0)
    heads = {
        "glscl": {"queries": 3, "layers": 1, "attention_heads": 2, "feedforward": 32, "dropout": dropout},
        "seq_transformer": {"layers": 1, "positions": FRAMES},
        "tight_transformer": {"layers": 1, "positions": 1 + FRAMES, "dropout": dropout},
        "xpool": {"attention_heads": 2, "dropout": dropout},
    }
    model = Retriever(
        ModelConfig.model_validate(
            {
                "clip": clip,
                "head": case["head"],
                "heads": heads,
                "frame_context": case.get("frame_context", "none"),
                "context_layers": 1,
                "max_words": WORDS,
                "max_frames": FRAMES,
            }
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():  # no gradient may vanish for want of signal
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(case.get("log_scale", 2.0))
    return model.double() if case.get("double") else model


def _global_batch() -> Batch:
    """Eight pairs of which two pairs of videos are the same, on the same rank and on different ones."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 49000, (PAIRS, WORDS), generator=generator)
    for row in range(PAIRS):
        ids[row, 3 + row % 5 :] = 0
        ids[row, 3 + row % 5 - 1] = 49407
    frames = torch.randint(0, 256, (PAIRS, FRAMES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    mask = torch.ones(PAIRS, FRAMES)
    mask[2, 1:] = 0
    mask[5, 2:] = 0
    videos = torch.tensor([0, 0, 2, 3, 4, 3, 6, 7])
    frames[1], frames[5], mask[5] = frames[0], frames[3], mask[3]
    return Batch(ids, frames, mask, videos)


def _step(case: dict[str, Any], clip: str, rank: int, accumulate: int) -> Result:
    """One step on this rank; losses and gradients averaged over the ranks, as an engine averages them."""
    model = _model(case, clip)
    batch = _global_batch().split(world_size())[rank]
    lasts = []

    def backward(loss: torch.Tensor, *, last: bool) -> None:
        lasts.append(last)
        loss.backward()

    losses = backward_global_batch(model, backward, LossConfig.model_validate(case["loss"]), batch, accumulate)
    assert lasts == [False] * (backward_calls(accumulate) - 1) + [True]
    grads = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        grads[name] = parameter.grad
    for tensor in (*losses.values(), *grads.values()):
        if world_size() > 1:
            dist.all_reduce(tensor)
            tensor /= world_size()
    return losses, grads


def _worker(rank: int, world: int, clip: str, store: str, output: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        chunks = [n for n in (1, 2) if PAIRS // world % n == 0]
        results = {
            (name, accumulate): _step(case, clip, rank, accumulate)
            for name, case in _cases().items()
            for accumulate in chunks
        }
        if rank == 0:
            torch.save(results, output)
    finally:
        dist.destroy_process_group()


def _check(found: Result, expected: Result, tolerance: float) -> None:
    """Every loss, and every gradient relative to its largest entry, within the tolerance.

    A bias that a softmax cancels has only rounding for a gradient, which is measured by the largest of all gradients.
    """
    for these, those in zip(found, expected, strict=True):
        assert these.keys() == those.keys()
        rounding = 1e-6 * max(tensor.abs().max().item() for tensor in those.values())
        for name, tensor in those.items():
            largest = tensor.abs().max().item()
            difference = (these[name] - tensor).abs().max().item()
            allowed = rounding if largest < rounding and name.endswith("bias") else tolerance * largest
            assert difference <= allowed, f"{name}: {difference:.2e} of {largest:.2e}"


def test_every_head_and_loss_has_a_case() -> None:
    cases = _cases().values()
    assert {case["head"] for case in cases} == set(head_names())
    assert {name for case in cases for name in case["loss"]} | {"contrastive"} == set(term_names())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def one_process(clip: str) -> dict[str, Result]:
    return {name: _step(case, clip, 0, 1) for name, case in _cases().items()}


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_and_chunks(world: int, clip: str, one_process: dict[str, Result], tmp_path: Path) -> None:
    output = tmp_path / "results.pt"
    mp.start_processes(
        _worker, args=(world, clip, str(tmp_path / "store"), str(output)), nprocs=world, start_method="forkserver"
    )
    results = torch.load(output)
    assert len(results) == 2 * len(one_process)
    for (name, _), result in results.items():
        _check(result, one_process[name], _cases()[name].get("tolerance", TOLERANCE))


@pytest.mark.parametrize("accumulate", [2, 4, 8])
@pytest.mark.parametrize("name", sorted(_cases()))
def test_chunks_in_one_process(name: str, accumulate: int, clip: str, one_process: dict[str, Result]) -> None:
    case = _cases()[name]
    _check(_step(case, clip, 0, accumulate), one_process[name], case.get("tolerance", TOLERANCE))


def _opposed(clip: str, rank: int, world: int) -> float:
    """Gradient of a logit scale above its limit, where the first half of the pairs wants more and the rest far less."""
    model = _model(_cases()["mean_pool-scale-above-limit"], clip)
    text = torch.eye(4, 16)
    video = text[[0, 1, 3, 2]]  # the last two are each other's
    share = slice(rank * 4 // world, (rank + 1) * 4 // world)
    caches = {"sentence": text[share]}, {"pooled": video[share] * 0.99 + 0.01}
    step_loss(model, LossConfig(), *caches, torch.arange(4)[share])["total"].backward()
    assert model.logit_scale.grad is not None
    return model.logit_scale.grad.item()


def _opposed_worker(rank: int, world: int, clip: str, store: str, expected: float) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        assert _opposed(clip, rank, world) == pytest.approx(expected, rel=TOLERANCE)
    finally:
        dist.destroy_process_group()


def test_a_scale_above_its_limit_goes_by_the_mean_gradient(clip: str, tmp_path: Path) -> None:
    expected = _opposed(clip, 0, 1)
    assert expected > 0
    arguments = (2, clip, str(tmp_path / "store"), expected)
    mp.start_processes(_opposed_worker, args=arguments, nprocs=2, start_method="forkserver")


_ENGINES = [("glscl-corrected", stage) for stage in (0, 1, 2, 3)] + [
    (name, 3)
    for name in ("tight_transformer", "dicosa", "glccl")  # parameters used in ways that hooks could miss
]


def _engine_worker(rank: int, world: int, clip: str, store: str, output: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    from deepspeed.utils import safe_get_full_grad

    results = {}
    try:
        for name, stage in _ENGINES:
            case = _cases()[name]
            scoring.TILE = 400  # a few pairs, so that scoring is computed again in the backward pass
            training = TrainingConfig(precision="fp32", zero_stage=stage, accumulate=2, clip_grad=0)
            engine = build_engine(_model(case, clip), training, torch.device("cpu"), world)
            batch = _global_batch().split(world)[rank]
            config = LossConfig.model_validate(case["loss"])
            losses = backward_global_batch(engine, partial(engine_backward, engine), config, batch, 2)
            for loss in losses.values():
                dist.all_reduce(loss)
                loss /= world
            grads = {
                name: safe_get_full_grad(parameter).clone() for name, parameter in engine.module.named_parameters()
            }
            results[name, stage] = losses, grads
        if rank == 0:
            torch.save(results, output)
    finally:
        dist.destroy_process_group()


def test_engine_of_every_zero_stage(clip: str, one_process: dict[str, Result], tmp_path: Path) -> None:
    output = tmp_path / "results.pt"
    arguments = (2, clip, str(tmp_path / "store"), str(output))
    mp.start_processes(_engine_worker, args=arguments, nprocs=2, start_method="forkserver")
    results = torch.load(output)
    assert set(results) == set(_ENGINES)
    for (name, _), result in results.items():
        _check(result, one_process[name], _cases()[name].get("tolerance", TOLERANCE))


def test_accumulation_replays_dropout(clip: str) -> None:
    """A step in chunks back-propagates the losses that it reports: the same masks in both passes."""
    case = _cases()["glscl-official"]
    config = LossConfig.model_validate(case["loss"])

    def step(shift: float) -> tuple[Retriever, float]:
        model = _model(case, clip, dropout=0.5)
        with torch.no_grad():
            model.head.queries.add_(shift * direction)
        torch.manual_seed(3)
        losses = backward_global_batch(model, lambda loss, last: loss.backward(), config, _global_batch(), 2)
        return model, losses["total"].item()

    direction = torch.randn(3, 16, generator=torch.Generator().manual_seed(4))
    slope = (step(1e-2)[1] - step(-1e-2)[1]) / 2e-2
    model, _ = step(0.0)
    assert (model.head.queries.grad * direction).sum().item() == pytest.approx(slope, rel=2e-2)


def test_chunks_must_divide_the_pairs(clip: str) -> None:
    with pytest.raises(UserError, match=r"training\.accumulate"):
        _step(_cases()["mean_pool"], clip, 0, 3)
