"""Measure how long training stands still for a checkpoint, and what writing it costs the steps beside it.

    python benchmarks/checkpoint.py [--device cuda] [--clip ViT-B-32] [--json FILE]

Makes the towers and the head with a DeepSpeed engine (ZeRO 1, bf16: with ViT-B-32 the state has about 2 GB, and the
process about 8 GB), takes one step, and saves three checkpoints to a temporary folder. Prints how long the copy to host
memory takes, during which training stands still, how long it then takes to write the files with their checksums in a
thread, and how much slower steps are meanwhile. A minute or two on two free cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import torch
from torch import distributed

from glscl.losses import LossConfig
from glscl.models import ModelConfig, Retriever
from glscl.training.checkpoint.format import TrainState
from glscl.training.checkpoint.snapshot import HostMemory, take_snapshot
from glscl.training.engine import backward, build_engine
from glscl.training.global_batch import RankPairs, backward_global_batch
from glscl.training.options import TrainingConfig

SAVES = 3


def main() -> None:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--clip", default="ViT-B-32")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if options.device == "cuda" else "gloo"
        distributed.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        rows = measure(options.clip, torch.device(options.device), folder)
        distributed.destroy_process_group()
    print(f"{'':<6}{'GB':>6}{'stands still, s':>17}{'written in, s':>15}{'steps beside it, times':>24}")
    for index, row in enumerate(rows):
        print(f"{index + 1:<6}{row['gb']:>6.2f}{row['copy_s']:>17.2f}{row['write_s']:>15.2f}{row['slower']:>24.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def measure(clip: str, device: torch.device, folder: str) -> list[dict[str, float]]:
    """Save some checkpoints, each while steps go on."""
    model = Retriever(ModelConfig(clip=clip, max_words=8, max_frames=1))
    size = model.frame_size
    engine = build_engine(model, TrainingConfig(zero_stage=1, precision="bf16"), device, 1)
    frames = torch.zeros(2, 1, 3, size, size, dtype=torch.uint8)
    mask, ids = torch.ones(2, 1, dtype=torch.bool), torch.randint(1, 49_000, (2, 8))
    ids, *others = (tensor.to(device) for tensor in (ids, frames, mask, torch.arange(2)))
    pairs = RankPairs((ids,), *others)

    def step() -> float:
        began = time.perf_counter()
        engine.train()
        backward_global_batch(engine, partial(backward, engine), LossConfig(), pairs)
        engine.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    step()
    alone = sum(step() for _ in range(3)) / 3
    memory = HostMemory()
    rows = []
    for save in range(SAVES):
        where = f"{folder}/{save}"
        os.mkdir(where)
        began = time.perf_counter()
        snapshot = take_snapshot(engine, where, TrainState(save, 1, 1, {}, []), 0, memory)
        copied = time.perf_counter()
        writer = threading.Thread(target=snapshot.write)
        writer.start()
        beside = []
        while writer.is_alive():
            beside.append(step())
        writer.join()
        written = time.perf_counter()
        gb = sum(path.stat().st_size for path in Path(where).rglob("*") if path.is_file()) / 1e9
        slower = sum(beside) / len(beside) / alone
        rows.append({"gb": gb, "copy_s": copied - began, "write_s": written - copied, "slower": slower})
    return rows


if __name__ == "__main__":
    main()
