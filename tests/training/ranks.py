"""Small models of every head, a global batch and what one process makes of it, for the tests of several ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever
from glscl.models.heads.base import Features
from glscl.models.heads.mean_pool import MeanPool
from glscl.training.collectives import world_size
from glscl.training.global_batch import RankPairs, backward_calls, backward_global_batch

PAIRS, WORDS, FRAMES, SIZE = 8, 8, 3, 16
TOLERANCE = 1e-5

ADAPTERS = {"lora_rank": 2, "lora_alpha": 3, "lora_targets": "query,value,output,mlp", "bottleneck": 3}

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
    increments = {f"increment_{part}": {"weight": 0.05} for part in ("bottleneck", "direction", "radius")}
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
        "gare": {"head": "gare", "loss": increments | {"increment_bottleneck": {"weight": 0.0}}},
        "gare-double": {"head": "gare", "loss": increments, "double": True},
        "tmass": {"head": "tmass", "loss": {"support_text": {"weight": 0.8}}},
        "uatvr": {"head": "uatvr", "loss": {"mil_nce": {"weight": 0.5}, "sample_divergence": {"weight": 0.01}}},
        "agc": {"head": "agc", "loss": {}},
        "tcmgc": {"head": "tcmgc", "loss": {}} | sharp,
        "tcmgc-double": {"head": "tcmgc", "loss": {"similarity_decorrelation": {"weight": 0.1}}, "double": True},
        "video_colbert": {"head": "video_colbert", "loss": {"level_sigmoid": {"frames": 0.7}}, "unused": "logit_scale"},
        "mean_pool-scale-above-limit": {"head": "mean_pool", "loss": {}, "log_scale": 5.0},
        "plug-in": {"head": "mean_pool", "loss": {}, "plug_in": True},
        "frozen": {"head": "mean_pool", "loss": {}, "model": {"freeze": "towers"}},
        "adapters": {"head": "mean_pool", "loss": {}, "model": {"freeze": "towers", "adapters": ADAPTERS}},
        "half-frozen": {"head": "xpool", "loss": {}, "model": {"freeze": "image"}},
        "mean_pool-sigmoid": {
            "head": "mean_pool",
            "loss": {"contrastive": {"weight": 0}, "sigmoid": {"weight": 1}},
            "logit_bias": -3.0,
        },
    }


CASES = _cases()
"""By name: the head, sections of the loss, and what else `build_model` knows."""


class PlugIn(MeanPool):
    """A head as somebody else may write it: its parameters are used in ``forward`` alone, one of them by no module."""

    def __init__(self, width: int, options: MeanPool.Options) -> None:
        super().__init__(width, options)
        self.gate = torch.nn.Parameter(torch.ones(width))
        self.mix = torch.nn.Linear(width, width)

    def forward(self, text: Features, video: Features) -> torch.Tensor:
        mixed = self.mix(text["sentence"].to(self.gate.dtype)) * self.gate
        return mixed.float() @ video["pooled"].T


def start(worker: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call ``worker(rank, ...)`` in a process group of that many processes; what each of them returned."""
    mp.start_processes(_call, args=(world, str(folder), worker, arguments), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"returned-{rank}.pt") for rank in range(world)]


def _call(rank: int, world: int, folder: str, worker: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        torch.save(worker(rank, *arguments), f"{folder}/returned-{rank}.pt")
    finally:
        dist.destroy_process_group()


def write_clip(folder: Path) -> str:
    path = folder / "world-size-test.json"
    vision = {"image_size": SIZE, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


def build_model(case: dict[str, Any], clip: str, dropout: float = 0.0) -> Retriever:
    torch.manual_seed(0)
    heads = {
        "glscl": {"queries": 3, "layers": 1, "attention_heads": 2, "feedforward": 32, "dropout": dropout},
        "seq_transformer": {"layers": 1, "positions": FRAMES},
        "tight_transformer": {"layers": 1, "positions": 1 + FRAMES, "dropout": dropout},
        "xpool": {"attention_heads": 2, "dropout": dropout},
        "gare": {"dropout": dropout},
        "tmass": {"dropout": dropout, "trials": 3},
        "uatvr": {"layers": 1, "positions": WORDS + 2, "text_samples": 2, "video_samples": 3},
        "agc": {"layers": 1, "positions": FRAMES, "vectors": 2},
        "tcmgc": {"dropout": dropout, "keep_rate": 0.5, "softmax_lambda": 5.0},
        "video_colbert": {"layers": 1, "positions": FRAMES},
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
                "logit_bias": case.get("logit_bias"),
            }
            | case.get("model", {})
        )
    )
    if case.get("plug_in"):
        model.head = PlugIn(16, MeanPool.Options())
    with torch.no_grad():
        for parameter in model.parameters():  # no gradient may vanish for want of signal
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(case.get("log_scale", 2.0))
    return model.double() if case.get("double") else model


def global_batch() -> RankPairs:
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
    return RankPairs((ids,), frames, mask, videos)


def mean(losses: dict[str, torch.Tensor], grads: dict[str, torch.Tensor]) -> Result:
    """Average over the ranks, in float32 at least."""
    for tensors in (losses, grads):
        for name, tensor in tensors.items():
            tensors[name] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            if world_size() > 1:
                dist.all_reduce(tensors[name])
                tensors[name] /= world_size()
    return losses, grads


def step(case: dict[str, Any], clip: str, rank: int, accumulate: int, dtype: torch.dtype | None = None) -> Result:
    """One step on this rank, without an engine; losses and gradients averaged over the ranks."""
    model = build_model(case, clip).to(dtype)
    batch = global_batch().split(world_size())[rank]
    lasts = []

    def backward(loss: torch.Tensor, *, last: bool) -> None:
        lasts.append(last)
        loss.backward()

    losses = backward_global_batch(model, backward, LossConfig.model_validate(case["loss"]), batch, accumulate)
    assert lasts == [False] * (backward_calls(accumulate) - 1) + [True]
    grads = {}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (parameter.requires_grad and name != case.get("unused")), name
        if parameter.grad is not None:
            grads[name] = parameter.grad
    return mean(losses, grads)


def check(found: Result, expected: Result, tolerance: float) -> None:
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
