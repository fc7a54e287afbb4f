"""What a step of training costs each worker: FLOPs, bytes and memory, counted on the real model, and their time.

The counts per pair are torch's own, on the model without memory (device "meta"). What follows from them for any number
of workers is arithmetic; `tests/test_simulate.py` compares it with what real processes compute and send.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import log2
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from glscl.models import ModelConfig, Retriever
from glscl.models.heads.base import Features
from glscl.training.global_batch import backward_calls

OPTIMISER_BYTES = 12
"""Per parameter: float32 weight and two moments."""
_BLOCK = 64


@dataclass(frozen=True)
class Counts:
    """What one pair costs a model.

    Attributes:
        parameters: of the whole model.
        encode: FLOPs of one text and one video up to what the head caches, forward and backward.
        score: FLOPs of one text with one video, forward and backward.
        cached: bytes gathered with gradients.
        marks: bytes gathered without: masks and the video's number.
        tensors: how many tensors are gathered.
        kept: bytes that encoding keeps for the backward pass.
        kept_by_score: bytes that scoring one text with one video keeps.
        frames: bytes of a video's frames, uint8.
        number_bytes: of a weight, of its gradient.
    """

    parameters: int
    encode: tuple[float, float]
    score: tuple[float, float]
    cached: int
    marks: int
    tensors: int
    kept: int
    kept_by_score: float
    frames: int
    number_bytes: int


def count(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> Counts:
    """Count a model's cost per pair; nothing is computed."""
    with torch.device("meta"), patch.object(torch, "autocast", lambda *_, **__: nullcontext()):  # none for "meta"
        model = Retriever(config, load_weights=False).to(dtype)
        size, frames = model.frame_size, config.max_frames
        with Flops() as encoding, saved_bytes() as kept:
            text = model("text", torch.zeros(1, config.max_words, dtype=torch.int64))
            video = model("video", torch.zeros(1, frames, 3, size, size, dtype=torch.uint8), torch.ones(1, frames))
        texts, videos = (_repeated(cache) for cache in (text, video))
        with Flops() as scoring, saved_bytes() as kept_by_score:
            similarities = model("score", texts, videos)
        with Flops() as encoding_back:
            sum(one.sum() for one in [*text.values(), *video.values()] if one.requires_grad).backward()
        with Flops() as scoring_back:
            similarities.sum().backward()
    gathered = [*text.values(), *video.values()]
    return Counts(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        encode=(encoding.total, encoding_back.total),
        score=(scoring.total / _BLOCK**2, scoring_back.total / _BLOCK**2),
        cached=_size(one for one in gathered if one.is_floating_point()),
        marks=_size(one for one in gathered if not one.is_floating_point()) + 8,
        tensors=len(gathered) + 1,
        kept=sum(kept),
        kept_by_score=sum(kept_by_score) / _BLOCK**2,
        frames=frames * 3 * size**2,
        number_bytes=dtype.itemsize,
    )


def _repeated(cache: Features) -> Features:
    """The cache of one item for many, waiting for gradients as gathered caches do."""
    many = {name: tensor.detach().expand(_BLOCK, *tensor.shape[1:]).contiguous() for name, tensor in cache.items()}
    return {name: tensor.requires_grad_(tensor.is_floating_point()) for name, tensor in many.items()}


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Flops(TorchDispatchMode):
    """Counts the FLOPs inside, by torch's formulas (its own counter does not bear blocks without gradients)."""

    total = 0.0

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Sizes of the storages that autograd keeps in this block, weights left out."""
    sizes: list[int] = []
    seen: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen and not isinstance(tensor, torch.nn.Parameter) and tensor._base is None:
            seen[storage._cdata] = storage
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


@dataclass(frozen=True)
class Setup:
    """How a global batch is spread.

    Attributes:
        workers: number of workers, W.
        pairs: of each worker.
        accumulate: chunks that a worker encodes one after another.
        zero_stage: what DeepSpeed shards.
        nccl: with its collectives; gloo has no reduce-scatter and all-reduces instead.
    """

    workers: int
    pairs: int
    accumulate: int = 1
    zero_stage: int = 1
    nccl: bool = True

    @property
    def batch(self) -> int:
        """Pairs of the global batch."""
        return self.workers * self.pairs

    @property
    def others(self) -> float:
        """Share of a sharded whole that comes from the other workers."""
        return (self.workers - 1) / self.workers


@dataclass(frozen=True)
class Step:
    """One worker's part of a step: FLOPs, and bytes that it receives."""

    encode_flops: float
    score_flops: float
    gather_bytes: float
    gradient_bytes: float
    weight_bytes: float
    collectives: int

    @property
    def flops(self) -> float:
        """All of them."""
        return self.encode_flops + self.score_flops

    @property
    def bytes(self) -> float:
        """All of them."""
        return self.gather_bytes + self.gradient_bytes + self.weight_bytes


def step_of(one: Counts, setup: Setup) -> Step:
    """One worker's part of a step.

    A step in chunks encodes each twice. With several workers, each scores its own texts with all videos and all texts
    with its own videos.
    """
    twice = setup.accumulate > 1
    sides = 1 if setup.workers == 1 else 2
    weights = one.parameters * one.number_bytes * setup.others
    cached = (setup.workers - 1) * setup.pairs * one.cached
    reductions = backward_calls(setup.accumulate) if setup.zero_stage >= 2 else 1
    whole = 2 if setup.zero_stage < 3 else 1  # DeepSpeed all-reduces below stage 3: a reduce-scatter and an all-gather
    gathers = (0, 1, 1, setup.accumulate * (3 if twice else 2))[setup.zero_stage]
    return Step(
        encode_flops=setup.pairs * (sum(one.encode) + (one.encode[0] if twice else 0)),
        score_flops=sides * setup.pairs * setup.batch * sum(one.score),
        gather_bytes=cached * (2 if setup.nccl else 3) + (setup.workers - 1) * setup.pairs * one.marks,
        gradient_bytes=weights * reductions * whole,
        weight_bytes=weights * gathers,
        collectives=0 if setup.workers == 1 else 2 * one.tensors,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of a worker's device, by what they hold."""

    states: float
    activations: float
    caches: float
    scores: float
    frames: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.states + self.activations + self.caches + self.scores + self.frames


def memory_of(one: Counts, setup: Setup) -> Memory:
    """What a worker's device holds at once, if nothing is lost between the pieces."""
    share = [1.0] * 3  # weights, gradients, optimiser
    for sharded in range(setup.zero_stage):
        share[2 - sharded] = 1 / setup.workers
    weights, gradients, optimiser = share
    sides = 1 if setup.workers == 1 else 2
    return Memory(
        states=one.parameters * ((weights + gradients) * one.number_bytes + optimiser * OPTIMISER_BYTES),
        activations=setup.pairs / setup.accumulate * one.kept,
        caches=2 * setup.batch * one.cached,  # with their gradients
        scores=sides * setup.pairs * setup.batch * (one.kept_by_score + 3 * 4),  # the loss keeps three matrices
        frames=2 * setup.pairs * one.frames,  # the next batch is there before the step ends
    )


@dataclass(frozen=True)
class Machine:
    """A kind of node; figures are what was reached, not what is printed on it.

    Attributes:
        towers: FLOP/s of a GPU in the towers.
        scores: FLOP/s of a GPU in scores and losses.
        memory: bytes of a GPU.
        gpus: of a node.
        cpus: of a node.
        link: bytes/s between the GPUs of a node, for each.
        network: bytes/s to other nodes, for each GPU.
        hop: seconds of a message.
        fixed: seconds of a step that nothing above explains: launches, optimiser, log.
        storage: bytes/s of a node from and to storage.
        videos: decoded per CPU second.
        video_bytes: of a stored video.
    """

    towers: float
    scores: float
    memory: float
    gpus: int
    cpus: int
    link: float
    network: float
    hop: float
    fixed: float
    storage: float
    videos: float
    video_bytes: float


@dataclass(frozen=True)
class Times:
    """Seconds of a step; gradients travel while the backward pass goes on, the rest is waited for."""

    towers: float
    scores: float
    gather: float
    gradients: float
    fixed: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.towers + self.scores + self.gather + self.gradients + self.fixed


def times_of(one: Counts, setup: Setup, machine: Machine) -> Times:
    """The time of a step on such nodes, data not waited for."""
    step = step_of(one, setup)
    rate = machine.link if setup.workers <= machine.gpus else machine.network
    towers, scores = step.encode_flops / machine.towers, step.score_flops / machine.scores
    travels = (step.gradient_bytes + step.weight_bytes) / rate + 2 * log2(setup.workers) * machine.hop
    return Times(
        towers=towers,
        scores=scores,
        gather=step.gather_bytes / rate + step.collectives * (setup.workers - 1) * machine.hop,  # rings
        gradients=max(0.0, travels - towers * 2 / 3),
        fixed=machine.fixed,
    )
