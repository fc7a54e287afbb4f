"""Measure one training step: what it takes outside the towers, what ZeRO stages and compiling cost, and two workers.

    python benchmarks/step.py [--device cuda] [--config PRESET] [--pairs N] [--steps N] [--json FILE]

Pairs are random and in memory, so nothing is decoded or read; the model, the head, the losses and the engine are those
of `glscl train`. Prints three tables, and writes them as JSON with ``--json``:

* the towers alone (forward and backward pass, no engine), and whole steps under each ZeRO stage, as they are and with
  the towers and the head compiled; the share of a step that is outside the towers of the same kind;
* kernels of a step, how often it reads a number of the device, and the most bytes that its tensors take, beside those
  of the model without an engine and of towers that are computed again for their gradients (``grad_checkpointing``);
* the same work per worker with one and two workers: the time of one divided by the time of two.

Every figure of a table is the best of interleaved rounds in one run. On a CPU the first table is of the process's CPU
time, of one thread, which what else the machine does disturbs least. Minutes on two free cores with the tiny preset.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

from glscl.evaluation.cost import PeakMemory
from glscl.models.retriever import Retriever
from glscl.training.config import RunConfig, load_config
from glscl.training.engine import backward, build_engine, compile_parts, set_learning_rates
from glscl.training.global_batch import RankPairs, backward_global_batch

STAGES = (0, 1, 2, 3)
ROUNDS = 4


@dataclass(frozen=True)
class Setting:
    """What is measured: a configuration on a device, and how many steps a round has."""

    config: RunConfig
    device: str
    steps: int


def main() -> None:
    """Measure, print the tables, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--config", default="tiny", help="preset or file; its model, loss and global batch are measured"
    )
    parser.add_argument("--pairs", type=int, help="pairs of a worker's step")
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    config = load_config(options.config)
    training = {"global_batch": options.pairs or config.training.global_batch, "use_gpu": options.device == "cuda"}
    config = config.model_copy(update={"training": config.training.model_copy(update=training)})
    setting = Setting(config, options.device, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, Any] = run_workers(measure_stages, 1, setting, folder)
        figures["workers"] = measure_workers(setting, folder)
    model = config.model
    print(f"\n{model.clip}, head {model.head}, {config.training.precision}, {training['global_batch']} pairs, "
          f"{model.max_frames} frames, {options.device}, {torch.get_num_threads()} thread(s)")  # fmt: skip
    print(f"{'':<28}{'ms':>9}{'outside the towers':>20}")
    for name, row in figures["steps"].items():
        print(f"{name:<28}{row['ms']:>9.1f}" + (f"{row['outside']:>20.1%}" if "outside" in row else ""))
    print(f"\n{'':<28}{'kernels':>9}{'waits':>8}{'MB':>8}")
    for name, row in figures["kernels"].items():
        print(f"{name:<28}{row['kernels']:>9}{row['waits']:>8}{row['bytes'] / 1e6:>8.0f}")
    workers = figures["workers"]
    print(f"\n1 worker {workers['one_ms']:.1f} ms, 2 workers {workers['two_ms']:.1f} ms: {workers['efficiency']:.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1), encoding="utf-8")


def run_workers(work: Callable[..., Any], workers: int, setting: Setting, folder: str) -> Any:
    """What the first of so many processes returns."""
    store = f"file://{tempfile.mkdtemp(dir=folder)}/store"  # a store that was used before would let them wait for ever
    mp.start_processes(_worker, (work, workers, setting, folder, store), nprocs=workers, start_method="spawn")
    return json.loads(Path(folder, "figures.json").read_text(encoding="utf-8"))


def _worker(rank: int, work: Callable[..., Any], workers: int, setting: Setting, folder: str, store: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers), "GLOO_SOCKET_IFNAME": "lo"}
    backend = "nccl" if setting.device == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=store, rank=rank, world_size=workers)
    figures = work(setting)
    if rank == 0:
        Path(folder, "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    distributed.destroy_process_group()


def build_model(setting: Setting, *, again: bool = False) -> Retriever:
    torch.manual_seed(0)
    config = setting.config.model.model_copy(update={"grad_checkpointing": again})
    return Retriever(config, load_weights=False)


def make_pairs(setting: Setting, size: int) -> RankPairs:
    """A worker's random pairs."""
    model, pairs = setting.config.model, setting.config.training.global_batch
    generator = torch.Generator().manual_seed(distributed.get_rank())
    ids = torch.randint(1, 49_000, (pairs, model.max_words), generator=generator)
    shape = (pairs, model.max_frames, 3, size, size)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    mask = torch.ones(pairs, model.max_frames, dtype=torch.bool)
    videos = torch.arange(pairs) + pairs * distributed.get_rank()
    ids, *others = (tensor.to(setting.device) for tensor in (ids, frames, mask, videos))
    return RankPairs((ids,), *others)


def _towers(setting: Setting, *, compiled: bool) -> Callable[[], None]:
    """The towers' forward and backward pass, without an engine."""
    model = build_model(setting).to(setting.device)
    if setting.config.training.precision == "bf16":
        model.bfloat16()
    if compiled:
        compile_parts(model)
    pairs = make_pairs(setting, model.frame_size)

    def step() -> None:
        model.zero_grad()
        sentence, tokens, _ = model.towers.encode_text(*pairs.text)
        frames = model.towers.encode_frames(pairs.frames, pairs.frame_mask)
        (sentence.float().mean() + tokens.float().mean() + frames.float().mean()).backward()

    return step


def whole_step(
    setting: Setting, stage: int | None, *, compiled: bool = False, again: bool = False
) -> Callable[[], None]:
    """A whole step through the engine; without a stage the forward and backward pass of the model alone."""
    config, model = setting.config, build_model(setting, again=again).to(setting.device)
    pairs = make_pairs(setting, model.frame_size)
    if stage is None:
        if config.training.precision == "bf16":
            model.bfloat16()

        def bare() -> None:
            model.zero_grad()
            backward_global_batch(model, lambda loss, *, last: loss.backward(), config.loss, pairs)

        return bare
    return engine_step(setting, model, pairs, stage, compiled=compiled)[1]


def engine_step(
    setting: Setting, model: Retriever, pairs: RankPairs, stage: int, *, compiled: bool = False
) -> tuple[Any, Callable[[], None]]:
    """An engine around a model, and its step."""
    config = setting.config
    training = config.training.model_copy(update={"zero_stage": stage, "accumulate": 1})
    engine = build_engine(model, training, torch.device(setting.device), distributed.get_world_size())
    if compiled:
        compile_parts(model)
    set_learning_rates(engine, training, 0, 10)

    def step() -> None:
        engine.train()
        backward_global_batch(engine, partial(backward, engine), config.loss, pairs)
        engine.step()

    return engine, step


def time_steps(
    setting: Setting,
    steps: dict[str, Callable[[], None]],
    clock: Callable[[], float] = time.perf_counter,
    rounds: int = ROUNDS,
) -> dict[str, float]:
    """Milliseconds of a step of each: the best of interleaved rounds, after one that warms up and compiles."""
    best = dict.fromkeys(steps, float("inf"))
    for index in range(rounds + 1):
        for name, step in steps.items():
            distributed.barrier()
            began = clock()
            for _ in range(setting.steps):
                step()
            if setting.device == "cuda":
                torch.cuda.synchronize()
            if index:
                best[name] = min(best[name], (clock() - began) / setting.steps * 1e3)
    return best


def measure_stages(setting: Setting) -> dict[str, Any]:
    """Times and kernels of the towers and of whole steps."""
    steps = {"towers": _towers(setting, compiled=False), "towers, compiled": _towers(setting, compiled=True)}
    steps |= {f"step, ZeRO {stage}": whole_step(setting, stage) for stage in STAGES}
    steps |= {f"step, ZeRO {stage}, compiled": whole_step(setting, stage, compiled=True) for stage in STAGES[:3]}
    steps["step, ZeRO 1, towers again"] = whole_step(setting, 1, again=True)
    rows: dict[str, dict[str, float]] = {}
    clock = time.process_time if setting.device == "cpu" else time.perf_counter
    for name, ms in time_steps(setting, steps, clock).items():
        rows[name] = {"ms": ms}
        if not name.startswith("towers"):
            towers = rows["towers, compiled" if name.endswith("compiled") else "towers"]["ms"]
            rows[name]["outside"] = 1 - towers / ms
    kernels = {"model, no engine": _kernels(whole_step(setting, None))}
    kernels |= {f"step, ZeRO {stage}": _kernels(whole_step(setting, stage)) for stage in STAGES}
    kernels["step, ZeRO 1, towers again"] = _kernels(whole_step(setting, 1, again=True))
    return {"steps": rows, "kernels": kernels, "setting": asdict(setting) | {"config": setting.config.name}}


def _kernels(step: Callable[[], None]) -> dict[str, int]:
    step()
    step()
    with Kernels() as counted:
        step()
    with PeakMemory() as memory:
        step()
    return {"kernels": counted.kernels, "waits": counted.waits, "bytes": memory.peak}


class Kernels(TorchDispatchMode):
    """Counts what a block gives to the device (views and fresh memory are nothing), and how often it reads a number."""

    FREE = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "set_"})

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name == "_local_scalar_dense":
            self.waits += 1
        elif not func.is_view and name not in self.FREE:
            self.kernels += 1
        return func(*args, **(kwargs or {}))


def measure_workers(setting: Setting, folder: str) -> dict[str, float]:
    """Steps of one worker and of two, each with the pairs of one."""
    times = {workers: [run_workers(_one_stage, workers, setting, folder) for _ in range(2)] for workers in (1, 2)}
    one, two = min(times[1]), min(times[2])
    return {"one_ms": one, "two_ms": two, "efficiency": one / two}


def _one_stage(setting: Setting) -> float:
    return time_steps(setting, {"step": whole_step(setting, setting.config.training.zero_stage)})["step"]


if __name__ == "__main__":
    main()
