"""Measure what freezing saves: a step's time and memory, the optimiser's bytes and a checkpoint's, beside all trained.

    python benchmarks/freezing.py [--device cuda] [--config PRESET] [--head NAME] [--precision P] [--pairs N]
        [--frames N] [--counted-pairs N] [--rounds N] [--steps N] [--json FILE]

Pairs are random and in memory. Each row is a choice of ``model.freeze``, ``model.unfreeze_blocks`` and
``model.adapters``; the head, the losses and the engine (ZeRO 1) are those of `glscl train`.

* Times are the best of rounds in which a choice and the step with everything trained take turns, in one run: of the
  process's CPU time with one thread on a CPU. "x" is the share of the best step with everything trained. No more than
  two models are held at once.
* Bytes of a step are the most that its tensors take, counted, and those of the optimiser are its own tensors: fp32
  weights and two moments. They are of ``--counted-pairs`` pairs (128), on tensors without numbers, so that no memory
  and hardly any time is needed for them.
* Bytes of a checkpoint are of its files, with one worker.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from benchmarks.step import Setting, build_model, engine_step, make_pairs, run_workers, time_steps
from glscl.evaluation.cost import PeakMemory
from glscl.models.retriever import Retriever
from glscl.training.checkpoint.format import TrainState
from glscl.training.checkpoint.snapshot import take_snapshot
from glscl.training.config import RunConfig, load_config
from glscl.training.global_batch import RankPairs, backward_global_batch

ALL = "everything trained"
CHOICES: dict[str, dict[str, Any]] = {
    ALL: {},
    "image tower frozen": {"freeze": "image"},
    "both towers frozen": {"freeze": "towers"},
    "last 2 blocks trained": {"freeze": "towers", "unfreeze_blocks": 2},
    "LoRA, rank 8": {"freeze": "towers", "adapters": {"lora_rank": 8}},
    "LoRA, rank 8, everywhere": {
        "freeze": "towers",
        "adapters": {"lora_rank": 8, "lora_targets": "query,key,value,output,mlp"},
    },
    "bottlenecks of 64": {"freeze": "towers", "adapters": {"bottleneck": 64}},
}


def main() -> None:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--config", default="msrvtt", help="preset or file; its model and loss are measured")
    parser.add_argument("--head", help="another head than the configuration's")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="another precision than the configuration's")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of a timed step")
    parser.add_argument("--frames", type=int, help="frames of a video of a timed step, else the configuration's")
    parser.add_argument("--counted-pairs", type=int, default=128, help="pairs of the step whose bytes are counted")
    parser.add_argument("--rounds", type=int, default=2, help="timed rounds; 0 measures sizes alone")
    parser.add_argument("--steps", type=int, default=1, help="steps of a round")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    config = load_config(options.config)
    training = {"global_batch": options.pairs, "use_gpu": options.device == "cuda", "zero_stage": 1}
    training |= {"precision": options.precision or config.training.precision}
    given = {"head": options.head, "frame_context": "none" if options.head else None}
    model = config.model.model_copy(update={key: value for key, value in given.items() if value is not None})
    config = config.model_copy(update={"training": config.training.model_copy(update=training), "model": model})
    rows = {name: count_bytes(_with(config, choice), options.counted_pairs) for name, choice in CHOICES.items()}
    timed = _with(config, {"max_frames": options.frames or model.max_frames})
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(timed, options.device, options.steps)
        measured = run_workers(partial(measure, rounds=options.rounds), 1, setting, folder)
    for name, row in rows.items():
        row |= measured[name]
    print(f"\n{model.clip}, head {model.head}, frame context {model.frame_context}, {config.training.precision}, "
          f"{options.device}; times of {options.pairs} pairs of {timed.model.max_frames} frames, bytes of a step of "
          f"{options.counted_pairs} pairs of {model.max_frames}")  # fmt: skip
    print(f"{'':<26}{'trained M':>10}{'step ms':>10}{'x':>6}{'step MB':>9}{'x':>6}"
          f"{'optimiser MB':>14}{'checkpoint MB':>15}")  # fmt: skip
    whole = rows[ALL]
    for name, row in rows.items():
        times = f"{row['ms']:>10.0f}{row['ratio']:>6.2f}" if options.rounds else " " * 16
        print(f"{name:<26}{row['trained'] / 1e6:>10.2f}{times}"
              f"{row['step_bytes'] / 1e6:>9.0f}{row['step_bytes'] / whole['step_bytes']:>6.2f}"
              f"{row['optimiser_bytes'] / 1e6:>14.1f}{row['checkpoint_bytes'] / 1e6:>15.1f}")  # fmt: skip
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _with(config: RunConfig, choice: dict[str, Any]) -> RunConfig:
    model = type(config.model).model_validate(config.model.model_dump() | choice)
    return config.model_copy(update={"model": model})


def count_bytes(config: RunConfig, pairs: int) -> dict[str, float]:
    """Trained parameters, and the most bytes of a step's tensors (activations, gradients and what is between)."""
    with torch.device("meta"):
        model = Retriever(config.model, load_weights=False).train()
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    size, frames, words = model.frame_size, config.model.max_frames, config.model.max_words
    with FakeTensorMode():
        for module in model.modules():
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=dtype)
                    module._parameters[name] = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            for name, tensor in module._buffers.items():
                if tensor is not None:
                    module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        batch = RankPairs(
            torch.zeros(pairs, words, dtype=torch.int64),
            torch.zeros(pairs, frames, 3, size, size, dtype=torch.uint8),
            torch.ones(pairs, frames, dtype=torch.bool),
            torch.zeros(pairs, dtype=torch.int64),
        )
        # What is asked of numbers on a CPU is whether all words and frames are real.
        with patch.object(FakeTensor, "__bool__", lambda _: True), PeakMemory() as memory:
            backward_global_batch(model, lambda loss, *, last: loss.backward(), config.loss, batch)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"trained": trained, "step_bytes": memory.peak}


def measure(setting: Setting, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step of each choice, and after it the bytes of the optimiser and of a checkpoint."""
    clock = process_time if setting.device == "cpu" else perf_counter
    whole = _engine(setting)
    best = float("inf")
    found = {}
    for name, choice in CHOICES.items():
        own = Setting(_with(setting.config, choice), setting.device, setting.steps)
        engine, step = whole if name == ALL else _engine(own)
        if rounds:
            ms = time_steps(setting, {ALL: whole[1], name: step}, clock, rounds)
            best = min(best, ms[ALL])
            found[name] = {"ms": ms[name]} | _sizes(engine, own.config)
        else:
            step()
            found[name] = _sizes(engine, own.config)
        del engine, step
        gc.collect()
    for row in found.values():
        if rounds:
            row["ratio"] = row["ms"] / best
    return found


def _engine(setting: Setting) -> tuple[Any, Callable[[], None]]:
    model = build_model(setting).to(setting.device)
    return engine_step(setting, model, make_pairs(setting, model.frame_size), 1)


def _sizes(engine: Any, config: RunConfig) -> dict[str, float]:
    """Bytes of an engine's optimiser and of its checkpoint."""
    moments = [tensor for state in engine.optimizer.optimizer.state.values() for tensor in state.values()]
    masters = engine.optimizer.single_partition_of_fp32_groups
    with tempfile.TemporaryDirectory() as folder:
        state = TrainState(1, 1, 1, {}, [], frozen=None if config.model.freeze == "none" else "")
        take_snapshot(engine, folder, state, 0).write()
        files = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"optimiser_bytes": sum(tensor.nbytes for tensor in [*moments, *masters]), "checkpoint_bytes": files}


if __name__ == "__main__":
    main()
