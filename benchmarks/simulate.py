"""Predict steps, epochs and limits of training from 8 to 4,096 GPUs and from 1 million to 1 billion pairs.

    python -m benchmarks.simulate [--clip ViT-B-32] [--head glscl] [--pairs-per-gpu 128] [--json FILE]
    python -m benchmarks.simulate --measure [--json FILE]

The first prints what a step costs and which limits it meets. The second checks the model on this machine: it runs real
steps (DeepSpeed, gloo) on 1, 2 and 4 processes, calibrates three numbers on 1 and 2 of them, and prints the prediction
for 4 beside the measurement, in CPU seconds, which other work on the machine hardly changes. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.cost_model import Counts, Machine, Setup, count, memory_of, step_of, times_of
from glscl.data.plan import StreamPlan
from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever, head_names
from glscl.training.engine import backward, build_engine
from glscl.training.global_batch import RankPairs, backward_global_batch
from glscl.training.options import TrainingConfig

GPUS = (8, 64, 512, 4096)
PAIRS = (10**6, 10**7, 10**8, 10**9)
NODE = Machine(
    towers=300e12,  # H200, ViT-B, image tower compiled, bf16
    scores=4.4e12,  # H200, GLSCL, 1000 x 1000, as it was without kernels of its own
    memory=141e9,
    gpus=8,
    cpus=128,
    link=300e9,
    network=50e9,
    hop=5e-6,
    fixed=0.02,
    storage=5e9,
    videos=222.0,  # frame shards; a video copy: 28
    video_bytes=250e3,
)
SHARD_PAIRS = 1000
ENTRY_BYTES, ID_BYTES = 190, 19
"""Of a shard and of a video in a manifest."""
MAX_MANIFEST = 1 << 30
STEPS = 6


@dataclass(frozen=True)
class Limit:
    """Something that a setup needs, what there is of it, and what to turn where it is not enough."""

    name: str
    needed: float
    there: float
    turn: str


def limits(one: Counts, setup: Setup, machine: Machine, loaders: int, streams: int) -> list[Limit]:
    """What a setup meets, whether it breaks or not."""
    times, memory = times_of(one, setup, machine), memory_of(one, setup)
    here = min(machine.gpus, setup.workers)
    rate = setup.pairs * here / times.total
    readers = setup.workers * loaders
    return [
        Limit("device memory, GB", memory.total / 1e9, machine.memory / 1e9, "training.accumulate, grad_checkpointing"),
        Limit("decoding, CPU cores of a node", rate / machine.videos, machine.cpus, "frame shards; more CPUs per GPU"),
        Limit("storage of a node, GB/s", rate * machine.video_bytes / 1e9, machine.storage / 1e9, "data.cache_dir"),
        Limit("waiting for caches, share of a step", times.gather / times.total, 0.1, "a head that caches less"),
        Limit("waiting for gradients, share of a step", times.gradients / times.total, 0.1, "more pairs per GPU"),
        Limit("scores, share of a step", times.scores / times.total, 0.2, "a cheaper head; kernels; fewer pairs"),
        Limit("readers for the virtual streams", readers, streams, "data.virtual_streams; data.loader_workers"),
        Limit("virtual streams for the batch", streams, setup.batch, "training.global_batch"),
    ]


def plan_cost(shards: int, calls: int = 20) -> tuple[float, float]:
    """CPU seconds to make the plan of so many shards, and to look one stream's pairs of a step up, on this machine."""
    entries = [SimpleNamespace(pairs=SHARD_PAIRS, samples=SHARD_PAIRS)] * shards
    began = time.process_time()
    plan = StreamPlan([SimpleNamespace(domain="d", shards=entries)], [], 64, 64, "all", 0)  # type: ignore[list-item]
    plan.slots(0, 0)
    made = time.process_time()
    for step in range(calls):
        plan.slots(step, step % 64)
    return made - began, (time.process_time() - made) / calls


def predict(clip: str, head: str, pairs: int, batch: int, loaders: int) -> dict[str, Any]:
    """Print the tables of a model; returns them. A batch of 0 grows with the GPUs."""
    one = count(ModelConfig(clip=clip, head=head))
    spread = f"global batch {batch:,}" if batch else f"{pairs} pairs per GPU"
    print(f"\n{clip}, {head}, {spread}, ZeRO 1, bf16: {one.parameters / 1e6:.0f} M parameters")
    rows = []
    print(f"{'GPUs':>6}{'ms/step':>9}{'pairs/s':>11}{'towers':>8}{'scores':>8}{'gather':>8}{'grads':>7}{'GB/GPU':>8}")
    for gpus in GPUS:
        setup = Setup(gpus, batch // gpus or pairs)
        times, memory = times_of(one, setup, NODE), memory_of(one, setup)
        shares = [part / times.total for part in (times.towers, times.scores, times.gather, times.gradients)]
        cells = "".join(f"{share:>{width}.0%}" for share, width in zip(shares, (8, 8, 8, 7), strict=True))
        rate = setup.batch / times.total
        print(f"{gpus:>6}{times.total * 1e3:>9.0f}{rate:>11,.0f}{cells}{memory.total / 1e9:>8.0f}")
        found = limits(one, setup, NODE, loaders, setup.workers * loaders)
        for limit in found:
            if limit.needed > limit.there:
                print(f"       {limit.name}: {limit.needed:.3g} of {limit.there:.3g}; turn {limit.turn}")
        row = {"step": asdict(step_of(one, setup)), "times": asdict(times), "memory": asdict(memory)}
        rows.append({"gpus": gpus, "pairs_per_s": rate, "limits": [asdict(limit) for limit in found], **row})
    print("\nZeRO stage: GB of states per GPU, GB received per step, at 8 and 512 GPUs")
    for stage in range(4):
        cells = ""
        for gpus in (8, 512):
            setup = Setup(gpus, pairs, zero_stage=stage)
            step = step_of(one, setup)
            received = (step.gradient_bytes + step.weight_bytes) / 1e9
            cells += f"{memory_of(one, setup).states / 1e9:>10.2f}{received:>10.2f}"
        print(f"{stage:>6}{cells}")
    saved = one.parameters * (12 + one.number_bytes)
    print(f"checkpoint: {saved / 1e9:.1f} GB, {saved / NODE.storage:.1f} s from one node, the nodes share it")
    return {"clip": clip, "head": head, "counts": asdict(one), "rows": rows, "checkpoint_bytes": saved}


def compare_heads() -> list[dict[str, Any]]:
    """Print what every head gathers and scores; returns the rows."""
    title = "ViT-B-32, 128 pairs per GPU"
    print(f"\n{title:<28}{'KB cached/pair':>15}{'MB received/step':>18}{'scores/towers, FLOPs':>23}")
    print(f"{'':<28}{'':>15}{'8':>9}{'512':>9}{'8':>12}{'512':>11}   GPUs")
    rows = []
    for head in head_names():
        one = count(ModelConfig(clip="ViT-B-32", head=head))
        steps = [step_of(one, Setup(gpus, 128)) for gpus in (8, 512)]
        received = [step.gather_bytes / 1e6 for step in steps]
        shares = [step.score_flops / step.encode_flops for step in steps]
        rows.append({"head": head, "cached": one.cached, "received_mb": received, "scores_to_towers": shares})
        cells = "".join(f"{value:>9,.0f}" for value in received)
        print(f"{head:<28}{one.cached / 1e3:>15.1f}{cells}{shares[0]:>12.2%}{shares[1]:>11.1%}")
    return rows


def predict_data(rate: float) -> list[dict[str, float]]:
    """Print what a data set costs at some pairs per second; returns the rows."""
    print(f"\n{'pairs':>14}{'TB':>8}{'shards':>9}{'manifest, MB':>14}{'plan, s':>9}{'lookup, us':>12}{'epoch, h':>10}")
    rows = []
    for pairs in PAIRS:
        shards = pairs // SHARD_PAIRS
        made, look = plan_cost(shards)
        manifest = shards * ENTRY_BYTES + pairs * ID_BYTES
        row = {
            "pairs": float(pairs),
            "terabytes": pairs * NODE.video_bytes / 1e12,
            "shards": float(shards),
            "manifest_bytes": float(manifest),
            "plan_s": made,
            "lookup_s": look,
            "epoch_h": pairs / rate / 3600,
        }
        rows.append(row)
        print(
            f"{pairs:>14,}{row['terabytes']:>8.1f}{shards:>9,}{manifest / 1e6:>14,.0f}{made:>9.2f}{look * 1e6:>12.0f}"
            f"{row['epoch_h']:>10.1f}"
            + ("   manifest above its limit: several sets" if manifest > MAX_MANIFEST else "")
        )
    return rows


CHECKED = ((1, 16), (1, 32), (2, 16), (2, 32), (4, 8), (4, 16))
"""Processes, and pairs of each, that are measured; the first three calibrate."""


def measure(rank: int, setup: Setup, folder: str) -> None:
    """Run real steps as one of several processes, and leave the CPU seconds of one."""
    torch.set_num_threads(1)
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["WORLD_SIZE"] = str(setup.workers)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=setup.workers)
    config = tiny()
    torch.manual_seed(0)
    model = Retriever(config)
    training = TrainingConfig(precision="fp32", zero_stage=1, global_batch=setup.batch)
    engine = build_engine(model, training, torch.device("cpu"), setup.workers)
    size, frames = model.frame_size, config.max_frames
    batch = RankPairs(
        (torch.randint(1, 1000, (setup.pairs, config.max_words)),),
        torch.randint(0, 256, (setup.pairs, frames, 3, size, size), dtype=torch.uint8),
        torch.ones(setup.pairs, frames, dtype=torch.bool),
        torch.arange(setup.pairs) + rank * setup.pairs,
    )
    began = 0.0
    for step in range(STEPS + 2):
        if step == 2:
            dist.barrier()
            began = time.process_time()
        backward_global_batch(engine, lambda loss, *, last: backward(engine, loss, last=last), LossConfig(), batch)
        engine.step()
    Path(folder, f"{rank}.json").write_text(json.dumps((time.process_time() - began) / STEPS))
    dist.destroy_process_group()


def tiny() -> ModelConfig:
    """The model of the check: a step of it takes seconds on a CPU."""
    return ModelConfig(clip="glscl-tiny", max_frames=6)


def check() -> dict[str, Any]:
    """Measure, calibrate and print predictions beside measurements."""
    one = count(tiny(), torch.float32)
    setups = [Setup(workers, pairs, nccl=False) for workers, pairs in CHECKED]
    measured = [_measured(setup) for setup in setups]
    cost = calibrate(one, setups[:3], measured[:3])
    rows = []
    print(f"{'processes':>10}{'pairs each':>12}{'measured':>10}{'predicted':>11}{'ratio':>8}   CPU seconds a step")
    for place, (setup, seconds) in enumerate(zip(setups, measured, strict=True)):
        expected = cost(setup)
        rows.append({"workers": setup.workers, "pairs": setup.pairs, "measured_s": seconds, "predicted_s": expected})
        print(
            f"{setup.workers:>10}{setup.pairs:>12}{seconds:>10.2f}{expected:>11.2f}{expected / seconds:>8.2f}"
            f"   {'calibrates' if place < 3 else ''}"
        )
    return {"rows": rows}


def _measured(setup: Setup) -> float:
    """CPU seconds of a step, of all processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (setup, folder), setup.workers)
        return float(sum(json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(setup.workers)))


def calibrate(one: Counts, setups: Sequence[Setup], seconds: Sequence[float]) -> Callable[[Setup], float]:
    """The seconds of all processes as three numbers times FLOPs, steps of a process, and bytes; fitted."""

    def parts(setup: Setup) -> list[float]:
        step = step_of(one, setup)
        return [setup.workers * step.flops, float(setup.workers), setup.workers * step.bytes]

    matrix = np.array([parts(setup) for setup in setups])
    scale = matrix.max(0)
    numbers = np.linalg.lstsq(matrix / scale, np.array(seconds), rcond=None)[0] / scale
    return lambda setup: float(np.dot(parts(setup), numbers))


def main() -> None:
    """Print the tables, or the check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", nargs="*", default=["ViT-B-32", "ViT-B-16", "ViT-L-14"])
    parser.add_argument("--head", default="glscl")
    parser.add_argument("--pairs-per-gpu", type=int, default=128)
    parser.add_argument("--global-batch", type=int, default=0, help="the same for any number of GPUs")
    parser.add_argument("--loaders", type=int, default=8, help="loader workers per GPU")
    parser.add_argument("--measure", action="store_true", help="check the model on this machine")
    parser.add_argument("--json", default="", help="file for the figures")
    options = parser.parse_args()
    if options.measure:
        result: dict[str, Any] = check()
    else:
        models = [
            predict(clip, options.head, options.pairs_per_gpu, options.global_batch, options.loaders)
            for clip in options.clip
        ]
        result = {"models": models, "heads": compare_heads(), "data": predict_data(models[0]["rows"][2]["pairs_per_s"])}
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
