"""Measure the contrastive loss of large batches: memory and time, as a whole and in tiles.

    python benchmarks/contrastive.py [--threads 1] [--device cuda] [--heads mean_pool] [--pairs 1024 4096] [--json FILE]

Forward and backward from cached features of width 512 and 12 frames. Memory is that of tensors alive beyond the caches:
counted on a CPU, where one run is timed, and asked of the allocator on a GPU, where the second is. Batches above
16,384 pairs are measured in tiles only.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from glscl.evaluation.cost import PeakMemory
from glscl.losses import LossInputs, tiled_cross_entropies
from glscl.losses.contrastive import ContrastiveOptions, contrastive
from glscl.models.heads import Features, Head, build_head, head_class
from glscl.models.scores.kernels import describe_kernels

WIDTH, WORDS, FRAMES = 512, 4, 12
PAIRS = {"cpu": (1024, 2048, 4096, 8192, 16384), "cuda": (8192, 16384, 32768, 65536)}
MOST_WHOLE = 16384


@dataclass(frozen=True)
class Row:
    """Forward and backward of the contrastive loss from cached features.

    Attributes:
        head: that scores.
        way: "whole" or "tiles".
        pairs: of the batch.
        cache_bytes: of the caches.
        peak_bytes: most bytes of tensors alive beyond the caches, their gradients included.
        seconds: of one run, on the clock.
        cpu_seconds: of the process.
    """

    head: str
    way: str
    pairs: int
    cache_bytes: int
    peak_bytes: int
    seconds: float
    cpu_seconds: float


def measure(name: str, pairs: int, way: str, device: torch.device) -> Row:
    """One row: a head with its default options and random features, each pair with a video of its own."""
    torch.manual_seed(0)
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    head = build_head(name, WIDTH, head_class(name).Options(), (WORDS, FRAMES)).to(device, kind).eval()
    text, video = _caches(head, pairs, device, kind)
    tensors = [tensor for cache in (text, video) for tensor in cache.values()]
    scale = torch.tensor([50.0], device=device, requires_grad=True)
    ids = torch.arange(pairs, device=device)

    def step() -> None:
        if way == "tiles":
            by_text, by_video = tiled_cross_entropies(head, scale, text, video, ids, ids)
            loss = (by_text + by_video) / 2
        else:
            logits, positives = scale * head(text, video), ids[:, None] == ids[None, :]
            loss = contrastive(ContrastiveOptions(), LossInputs(logits, logits, positives, positives, {}, {}))
        loss.backward()

    if device.type == "cuda":
        step()
        for tensor in tensors:
            tensor.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    with PeakMemory() as memory:
        start, cpu_start = time.perf_counter(), time.process_time()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else memory.peak
    return Row(name, way, pairs, sum(tensor.nbytes for tensor in tensors), peak, seconds, cpu_seconds)


@torch.no_grad()
def _caches(head: Head, pairs: int, device: torch.device, kind: torch.dtype) -> tuple[Features, Features]:
    """Caches of random features that want gradients, encoded 1,024 at a time."""
    blocks = []
    for start in range(0, pairs, 1024):
        size = min(1024, pairs - start)
        shapes = (size, WIDTH), (size, WORDS, WIDTH), (size, FRAMES, WIDTH)
        sentence, tokens, frames = (torch.randn(shape, device=device).to(kind) for shape in shapes)
        text = head.encode_text(sentence, tokens, torch.ones(size, WORDS, device=device))
        blocks.append((text, head.encode_video(frames, torch.ones(size, FRAMES, device=device))))
    text, video = (
        {key: torch.cat([block[side][key] for block in blocks]) for key in blocks[0][side]} for side in (0, 1)
    )
    for tensor in (*text.values(), *video.values()):
        tensor.requires_grad_(tensor.is_floating_point())
    return text, video


def line(row: Row) -> str:
    """A row of the printed table."""
    sizes = f"{row.cache_bytes / 1e6:,.0f} | {row.peak_bytes / 1e6:,.0f}"
    return f"| `{row.head}` | {row.way} | {row.pairs:,} | {sizes} | {row.seconds:.2f} | {row.cpu_seconds:.2f} |"


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--heads", nargs="+", default=["mean_pool", "glscl"], help="heads to measure")
    parser.add_argument("--pairs", nargs="+", type=int, help="batches to measure")
    parser.add_argument("--json", help="file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    print(describe_kernels(device))
    print("| head | loss | pairs | caches, MB | peak, MB | seconds | CPU seconds |\n|---|---|---|---|---|---|---|")
    rows = []
    for name in options.heads:
        for pairs in options.pairs or PAIRS[device.type]:
            for way in ("whole", "tiles") if pairs <= MOST_WHOLE else ("tiles",):
                rows.append(measure(name, pairs, way, device))
                print(line(rows[-1]), flush=True)
    if options.json:
        about = {"threads": options.threads, "device": str(device), "torch": torch.__version__}
        result = about | {"rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
