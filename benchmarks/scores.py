"""Measure the heads' scores: ratios side by side in one run.

    python benchmarks/scores.py [--threads 2] [--device cuda] [--heads glscl wti] [--against CHECKOUT] [--json FILE]

Every head is scored forward, and forward with backward, on cached features of width 512 against its floor, the time of
its multiply-adds at the rate of a plain product of the same shape. ``glscl``'s global part also against the blocks of
16 × 16 that its authors score, with the texts × videos × D tensor, and against one compiled expression. With
``--against``, the same heads of another checkout take turns with these. On a GPU, sizes are larger and features are
bfloat16.

All take turns, and the shortest time of each counts. ``--clock cpu`` counts the process's CPU seconds instead, which
says more where other programs run; with more than one thread, threads that wait for each other count, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from glscl.models import heads
from glscl.models.scores.kernels import describe_kernels
from glscl.models.scores.pooling import pooled_scores

WIDTH = 512
PAIRS = {  # texts, and videos, at 12 and at 64 frames on a CPU
    "mean_pool": (512, 512),
    "glscl": (256, 128),
    "wti": (128, 64),
    "xclip": (128, 64),
    "dicosa": (128, 64),
    "glccl": (96, 32),
    "xpool": (256, 128),
    "tight_transformer": (6, 3),
}
GPU_PAIRS = {"tight_transformer": (32, 16)}  # others 1000
LENGTHS = ((32, 12), (64, 64))

Features = dict[str, Tensor]


@dataclass(frozen=True)
class ScoreRow:
    """One way of scoring, per pair of text and video in nanoseconds.

    Attributes:
        head: whose score.
        way: "this", the other checkout, or another expression.
        pairs: texts, and videos.
        words: of a text.
        frames: of a video.
        step: "forward" or "forward + backward".
        nanoseconds: per pair.
        floor: of the head's multiply-adds as a plain product.
    """

    head: str
    way: str
    pairs: int
    words: int
    frames: int
    step: str
    nanoseconds: float
    floor: float


class Clock:
    """Shortest times of functions that take turns.

    Args:
        device: waited for before and after.
        seconds: how long the turns go on; each function runs three times at least.
        cpu: count the process's CPU seconds.
    """

    def __init__(self, device: torch.device, seconds: float, cpu: bool) -> None:
        self.device, self.seconds, self.cpu = device, seconds, cpu

    def now(self) -> float:
        """The time, when the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.cpu else time.perf_counter()

    def shortest(self, functions: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Each function's shortest time."""
        best = dict.fromkeys(functions, float("inf"))
        end, rounds = time.monotonic() + self.seconds, 0
        while rounds < 3 or time.monotonic() < end:
            for name, function in functions.items():
                start = self.now()
                function()
                best[name] = min(best[name], self.now() - start)
            rounds += 1
        return best


def heads_of(checkout: str) -> ModuleType:
    """The heads' package of another checkout, imported beside this one's."""
    own = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "glscl"}
    for name in own:
        del sys.modules[name]
    sys.path.insert(0, checkout)
    try:
        import glscl.models.heads as other

        other.head_names()
    finally:
        sys.path.remove(checkout)
        for name in [name for name in sys.modules if name.split(".")[0] == "glscl"]:
            del sys.modules[name]
        sys.modules.update(own)
    return other


def caches(
    package: ModuleType, name: str, pairs: int, words: int, frames: int, device: torch.device
) -> tuple[Any, Features, Features]:
    """A head and its caches of random features, all real, that want gradients."""
    torch.manual_seed(0)
    head = package.build_head(name, WIDTH, package.head_class(name).Options(), (words, frames)).to(device).eval()
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(kind)

    head = head.to(kind)
    with torch.no_grad():
        text = head.encode_text(
            random(pairs, WIDTH), random(pairs, words, WIDTH), torch.ones(pairs, words, device=device)
        )
        video = head.encode_video(random(pairs, frames, WIDTH), torch.ones(pairs, frames, device=device))
    return head, *({k: x.requires_grad_(x.is_floating_point()) for k, x in side.items()} for side in (text, video))


def _product_shape(name: str, pairs: int, words: int, frames: int) -> tuple[int, int]:
    """Rows and columns of the plain product that a head is held against, shaped as its own."""
    if name in ("mean_pool", "seq_transformer"):
        return pairs, pairs
    if name in ("wti", "xclip", "glccl"):
        return min(pairs * words, 4096), min(pairs * frames, 4096)
    return pairs, pairs * frames


def measure_scores(clock: Clock, names: list[str], other: ModuleType | None) -> list[ScoreRow]:
    """Every head's rows."""
    rows = []
    for words, frames in LENGTHS:
        for name in names:
            sizes = PAIRS if clock.device.type == "cpu" else GPU_PAIRS
            pairs = sizes.get(name, (1000, 1000))[LENGTHS.index((words, frames))]
            new = _measure_head(clock, name, pairs, words, frames, other)
            if name == "glscl":
                new += _measure_global(clock, pairs, frames)
            print(*(_line(row) for row in new), sep="\n", flush=True)
            rows += new
    return rows


def _measure_head(
    clock: Clock, name: str, pairs: int, words: int, frames: int, other: ModuleType | None
) -> list[ScoreRow]:
    rows = []
    packages = {"this": heads, **({"other checkout": other} if other else {})}
    given = {way: caches(package, name, pairs, words, frames, clock.device) for way, package in packages.items()}
    head = given["this"][0]
    shape = _product_shape(name, pairs, words, frames)
    product = _product(*shape, given["this"][1])
    for step in ("forward", "forward + backward"):
        functions: dict[str, Callable[[], object]] = {"product": product}
        for way, (scorer, text, video) in given.items():
            functions[way] = _step(scorer, text, video, step)
        best = clock.shortest(functions)
        rate = shape[0] * shape[1] * WIDTH / best.pop("product")
        passes = 3 if "backward" in step else 1
        least = passes * head.implemented_multiply_adds(words, frames) / rate * 1e9
        rows += [
            ScoreRow(name, way, pairs, words, frames, step, seconds * 1e9 / pairs**2, least)
            for way, seconds in best.items()
        ]
    return rows


def _step(scorer: Any, text: Features, video: Features, step: str) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return scorer(text, video)

    def both() -> None:
        scorer(text, video).sum().backward()

    return both if "backward" in step else forward


def _product(rows: int, columns: int, like: Features) -> Callable[[], object]:
    some = next(x for x in like.values() if x.is_floating_point())
    kind = some.dtype if some.device.type == "cuda" else torch.float32
    first, second = (torch.randn(size, WIDTH, device=some.device).to(kind) for size in (rows, columns))
    out = torch.empty(rows, columns, device=some.device, dtype=kind)
    return lambda: torch.mm(first, second.T, out=out)


def _measure_global(clock: Clock, pairs: int, frames: int) -> list[ScoreRow]:
    """GLSCL's global part alone: here, in the authors' blocks, and as one compiled expression."""
    head, text, video = caches(heads, "glscl", pairs, 4, frames, clock.device)
    query, features, gram, mask = text["sentence"], video["frames"], video["gram"], video["frame_mask"]
    tau, expression = head.options.tau, torch.compile(_expression)

    def blocks() -> None:
        for row in range(0, pairs, 16):
            for column in range(0, pairs, 16):
                _pooled_cosine(query[row : row + 16], features[column : column + 16], mask[column : column + 16], tau)

    product = _product(pairs, pairs * frames, text)
    with torch.no_grad():
        best = clock.shortest(
            {
                "product": product,
                "this": lambda: pooled_scores(query, features, gram.float(), mask, tau),
                "16 × 16 blocks": blocks,
                "compiled expression": lambda: expression(query, features, gram, mask, tau),
            }
        )
    least = best.pop("product") * 1e9 / pairs**2
    return [
        ScoreRow("glscl, global part", way, pairs, 0, frames, "forward", seconds * 1e9 / pairs**2, least)
        for way, seconds in best.items()
    ]


def _pooled_cosine(query: Tensor, frames: Tensor, mask: Tensor, tau: float) -> Tensor:
    """As the authors' code scores: every pooled video is made, for every text."""
    weights = (torch.einsum("ad,bfd->abf", query, frames) / tau).softmax(-1) * mask
    pooled = torch.einsum("abf,bfd->abd", weights, frames)
    pooled = pooled / pooled.norm(dim=-1, keepdim=True)
    return torch.einsum("ad,abd->ab", query / query.norm(dim=-1, keepdim=True), pooled)


def _expression(query: Tensor, frames: Tensor, gram: Tensor, mask: Tensor, tau: float) -> Tensor:
    products = torch.einsum("ad,bfd->bfa", query, frames).float()
    weights = (products / tau).masked_fill(~mask.unsqueeze(-1), torch.finfo(torch.float32).min).softmax(1)
    squared = (torch.bmm(gram.float(), weights) * weights).sum(1)
    return (weights * products).sum(1) * squared.clamp_min(1e-12).rsqrt()


def _line(row: ScoreRow) -> str:
    lengths = f"{row.words}/{row.frames}" if row.words else f"{row.frames} frames"
    return (
        f"| {row.head} | {row.way} | {row.pairs}² | {lengths} | {row.step} | {row.nanoseconds:,.0f} "
        f"| {row.floor:,.0f} | {row.nanoseconds / row.floor:.2f} |"
    )


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--heads", nargs="+", default=list(PAIRS), help="heads to measure")
    parser.add_argument("--against", help="another checkout of this repository")
    parser.add_argument("--seconds", type=float, default=5.0, help="of taking turns, per row")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", help="file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clock = Clock(device, options.seconds, options.clock == "cpu")
    other = heads_of(options.against) if options.against else None
    print(describe_kernels(device))
    print("| head | way | texts, videos | words/frames | step | ns per pair | floor | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    rows = measure_scores(clock, options.heads, other)
    if options.json:
        result = {
            "threads": options.threads,
            "device": str(device),
            "clock": options.clock,
            "torch": torch.__version__,
            "rows": [asdict(row) for row in rows],
        }
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
