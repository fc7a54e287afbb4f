"""Speed of a step: arithmetic of the towers, peak of the device, and where the time goes."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from glscl.models.retriever import Retriever
from glscl.training.collectives import print_once, world_size
from glscl.training.config import RunConfig

PEAKS = {
    "A10": 125e12, "A30": 165e12, "A40": 150e12, "A100": 312e12, "RTX A6000": 155e12, "L4": 121e12, "L40S": 362e12,
    "RTX 4090": 165e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12,
    "B200": 2250e12, "GB200": 2500e12,
}  # fmt: skip
"""Operations per second of dense bf16 products, by a part of the GPU's name (NVIDIA's data sheets)."""
SIZES = {"cpu": 512, "cuda": 8192}
"""Rows and columns of the product that is timed where no data sheet is known."""


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second that a device reaches at most: of the data sheet, else of the best of three products."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = [part for part in PEAKS if part in name]
        if known:
            return PEAKS[max(known, key=len)]
    size = SIZES[device.type]
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    seconds = []
    for _ in range(4):  # the first warms up
        began = _now(device)
        matrix @ matrix
        seconds.append(_now(device) - began)
    return 2 * size**3 / min(seconds[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def tower_operations(model: Retriever, words: int, frames: int) -> int:
    """Multiplications and additions of the towers' forward and backward pass for one pair, counted without data.

    A tower that is trained in part is counted as if its backward pass went from the first trained block to the end.
    """
    towers = model.towers
    if towers.dropped:
        return 0
    size = towers.frame_size
    pixels = torch.empty(1, 3, size, size, device="meta")
    tokens = torch.empty(1, words, dtype=torch.int64, device="meta")
    return _operations(towers.visual, pixels) * frames + _operations(towers.text, tokens)


def _operations(tower: nn.Module, batch: Tensor) -> int:
    """Of one tower and one input: the backward pass is two products for each of the forward pass, or is counted."""
    trained = {parameter.requires_grad for parameter in tower.parameters()}
    in_part = len(trained) > 1
    state = {  # the counter looks for the gradients of what enters a module, and a query of its own may
        name: tensor.detach().to("meta").requires_grad_(in_part and tensor.requires_grad)
        for name, tensor in (*tower.named_parameters(), *tower.named_buffers())
    }
    with torch.set_grad_enabled(in_part), FlopCounterMode(display=False) as counter:
        given = functional_call(tower, state, (batch,))
        if in_part:
            outputs = given if isinstance(given, tuple) else (given,)
            sum(output.sum() for output in outputs if output.requires_grad).backward()
    return int(counter.get_total_flops()) * (3 if trained == {True} else 1)


def prepare_arithmetic(config: RunConfig, model: Retriever, device: torch.device) -> float:
    """Set and tell how numbers are multiplied; returns what share of the workers' peak a pair per second takes."""
    training = config.training
    products = ""
    if training.on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = training.tf32
        products = ", fp32 products in TF32" if training.tf32 else ", no TF32"
    fastest = peak(device, torch.bfloat16 if training.precision == "bf16" else torch.float32)
    compiled = "compiled in the first step" if training.compiles else "not compiled"
    print_once(
        f"arithmetic: {training.precision}{products}, ZeRO {training.zero_stage}, towers and head {compiled}; "
        f"peak of a worker {fastest / 1e12:.3g} TFLOP/s"
    )
    return tower_operations(model, config.model.max_words, config.model.max_frames) / (world_size() * fastest)


class StepClock:
    """Where the time of one step goes. It waits for no device: marks in its stream are compared when they are read.

    Until `start`, and after `stop`, it does nothing. In between, `enter` says what begins. ``encoding`` names what
    encodes texts and videos.
    """

    def __init__(self, device: torch.device, encoding: str = "towers") -> None:
        self._encoding = encoding
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] | None = None
        self._last: list[tuple[str, Any]] = []

    def start(self) -> None:
        """The next step is looked at."""
        self._marks = []

    def enter(self, what: str) -> None:
        """From here on the step does that."""
        if self._marks is None:
            return
        mark: Any = time.perf_counter()
        if self._cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        self._marks.append((what, mark))

    def stop(self) -> None:
        """The step is over."""
        if self._marks is not None:
            self.enter("")
            self._last, self._marks = self._marks, None

    def seconds(self) -> dict[str, float]:
        """Seconds of each thing that the last step did which was looked at, told once; waits for the device."""
        marks, self._last = self._last, []
        if marks and self._cuda:
            marks[-1][1].synchronize()
        seconds: dict[str, float] = {}
        for (what, began), (_, ended) in pairwise(marks):
            took = began.elapsed_time(ended) / 1e3 if self._cuda else ended - began
            seconds[what] = seconds.get(what, 0.0) + took
        return seconds

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same calls of a `Retriever`, with the towers, the head and the gathers between them told apart."""
        if self._marks is None:
            return call

        def timed_call(mode: str, *args: Any) -> Any:
            encodes = mode in ("text", "video")
            self.enter(self._encoding if encodes else "head and loss")
            result = call(mode, *args)
            if mode == "scale":
                self.enter("communication")  # the caches are gathered before they are scored
                return result
            if encodes:
                caches = [tensor for tensor in result.values() if tensor.requires_grad]
                if caches:
                    register_multi_grad_hook(caches, lambda _: self.enter(self._encoding))
            self.enter("head and loss")
            return result

        return timed_call
