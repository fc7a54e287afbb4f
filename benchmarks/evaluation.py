"""Measure an evaluation from cached features to ranks: seconds against its floor, and memory.

    python benchmarks/evaluation.py [--texts 10000] [--videos 10000] [--memory-mb 2048 256] [--threads 2]
        [--head glscl] [--device cuda] [--against CHECKOUT] [--json FILE]

The whole path of one process: similarities of all texts and videos in blocks, ranks in both directions, best matches
and hubness, once for every ``--memory-mb`` (`evaluation.memory_mb`). Features are random, of width 512, 12 frames each,
in float32 on a CPU and bfloat16 on a GPU. Each row is a process of its own. It counts the bytes of tensors that are
alive beyond the caches at most, and the growth of its resident memory, beyond the caches, too (Linux; a GPU's allocator
is asked instead). The floor is the time of the head's multiply-adds, each pair scored once, at the rate of a plain
product that the same process measures before. With ``--against``, another checkout's evaluation has rows, too. Ten
thousand by ten thousand take minutes, and 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from glscl.evaluation.cost import PeakMemory
from glscl.evaluation.scoring import evaluate_scores
from glscl.models.heads import Features, Head, build_head, head_class

WIDTH, WORDS, FRAMES = 512, 4, 12
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """An evaluation in a process of its own.

    Attributes:
        head: that scores.
        way: "this" or "other checkout".
        texts: that are ranked, each of a video of its own as far as there are.
        videos: that are ranked.
        memory_mb: `evaluation.memory_mb`; 0 where there is no such option.
        cache_bytes: of the caches.
        peak_bytes: most bytes of tensors alive beyond the caches; on a GPU those of its allocator.
        resident_bytes: growth of the process's resident memory beyond the caches, at most.
        seconds: on the clock.
        cpu_seconds: of the process.
        floor_cpu_seconds: of the head's multiply-adds for every pair once.
    """

    head: str
    way: str
    texts: int
    videos: int
    memory_mb: int
    cache_bytes: int
    peak_bytes: int
    resident_bytes: int
    seconds: float
    cpu_seconds: float
    floor_cpu_seconds: float


@torch.no_grad()
def make_caches(head: Head, texts: int, videos: int, device: torch.device) -> tuple[Features, Features]:
    """Caches of random features, encoded 250 at a time into memory that is taken once."""
    kind = next(head.parameters(), torch.zeros((), dtype=_kind(device))).dtype
    sides: list[Features] = []
    for rows, length in ((texts, WORDS), (videos, FRAMES)):
        whole: Features = {}
        for start in range(0, rows, 250):
            size = min(250, rows - start)
            items = torch.randn(size, length, WIDTH, device=device).to(kind)
            mask = torch.ones(size, length, device=device)
            cache = head.encode_video(items, mask) if sides else head.encode_text(items[:, 0], items, mask)
            for name, tensor in cache.items():
                if not start:
                    whole[name] = tensor.new_empty(rows, *tensor.shape[1:])
                whole[name][start : start + size] = tensor
        sides.append(whole)
    return sides[0], sides[1]


def _kind(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def product_rate(device: torch.device) -> float:
    """Multiply-adds per CPU second (per second on a GPU) of a product that is shaped as a tile of frames."""
    first, second = (torch.randn(rows, WIDTH, device=device, dtype=_kind(device)) for rows in (256, 256 * FRAMES))
    out = first @ second.T
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(20):
        start = clock()
        torch.mm(first, second.T, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return first.numel() * len(second) / best


def _resident(key: str) -> int:
    """Bytes that ``/proc/self/status`` says of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def measure(head_name: str, texts: int, videos: int, memory_mb: int, device: torch.device, way: str) -> Row:
    """One row, in this process."""
    torch.manual_seed(0)
    options = head_class(head_name).Options.model_validate({"layers": 1} if head_name == "glscl" else {})
    head = (
        build_head(head_name, WIDTH, options, (WORDS, FRAMES)).to(device, _kind(device)).eval()
    )  # caches are the same
    text, video = make_caches(head, texts, videos, device)
    owners = torch.arange(texts) * min(texts, videos) // texts
    floor = head.implemented_multiply_adds(WORDS, FRAMES) * texts * videos / product_rate(device)
    memory = {"memory": memory_mb << 20} if memory_mb else {}
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the most that was resident is forgotten
    resident = _resident("VmRSS")
    allocated = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    with PeakMemory() as tensors:
        start, cpu_start = time.perf_counter(), time.process_time()
        result = evaluate_scores(head, text, video, owners, **memory)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    assert len(result.text_to_video) == texts
    caches: list[Tensor] = [*text.values(), *video.values()]
    return Row(
        head=head_name,
        way=way,
        texts=texts,
        videos=videos,
        memory_mb=memory_mb,
        cache_bytes=sum(tensor.nbytes for tensor in caches),
        peak_bytes=torch.cuda.max_memory_allocated() - allocated if device.type == "cuda" else tensors.peak,
        resident_bytes=_resident("VmHWM") - resident,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        floor_cpu_seconds=floor,
    )


def in_its_own_process(options: argparse.Namespace, memory_mb: int, checkout: str | None) -> Row:
    """One row, in another process that imports this checkout or another."""
    words = [sys.executable, __file__, "--row", str(memory_mb), "--head", options.head, "--device", options.device]
    words += ["--texts", str(options.texts), "--videos", str(options.videos), "--threads", str(options.threads)]
    environment = os.environ | {"PYTHONPATH": checkout or str(ROOT)}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return Row(**row | {"way": "other checkout" if checkout else "this"})  # type: ignore[arg-type]


def line(row: Row) -> str:
    """A row of the printed table."""
    sizes = " | ".join(f"{size / 1e6:,.0f}" for size in (row.cache_bytes, row.peak_bytes, row.resident_bytes))
    ratio = row.cpu_seconds / row.floor_cpu_seconds
    return (
        f"| `{row.head}` | {row.way} | {row.texts:,} x {row.videos:,} | {row.memory_mb or '-'} | {sizes} "
        f"| {row.seconds:.0f} | {row.cpu_seconds:.0f} | {ratio:.2f} |"
    )


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument(
        "--memory-mb", nargs="+", type=int, default=[2048, 256], help="evaluation.memory_mb of each row"
    )
    parser.add_argument("--head", default="glscl")
    parser.add_argument("--threads", type=int, default=2, help="cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--against", help="another checkout of this repository")
    parser.add_argument("--json", help="file to write")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.row is not None:
        device = torch.device(options.device)
        print(json.dumps(asdict(measure(options.head, options.texts, options.videos, options.row, device, "this"))))
        return
    print("| head | way | texts x videos | memory_mb | caches, MB | tensors, MB | resident, MB | s | CPU s | x floor |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    ways: list[tuple[int, str | None]] = [(memory_mb, None) for memory_mb in options.memory_mb]
    for memory_mb, checkout in ways + ([(0, options.against)] if options.against else []):
        rows.append(in_its_own_process(options, memory_mb, checkout))
        print(line(rows[-1]), flush=True)
    if options.json:
        about = {"threads": options.threads, "device": options.device, "torch": torch.__version__}
        result = about | {"rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
