"""What a cluster has, and what commands make of it where an option says ``auto``."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Auto = Literal["auto"]

Node = Mapping[str, float]
"""Resources of one node, by Ray's names: CPU, GPU."""

MOST_LOADERS = 8
"""Decoding processes per worker that `auto` makes at most."""


@dataclass(frozen=True, slots=True)
class Share:
    """How a command uses the nodes: so many workers, with so much each."""

    workers: int
    use_gpu: bool
    cpus: float
    loaders: int

    def __str__(self) -> str:
        each = f"{'1 GPU, ' if self.use_gpu else ''}{self.cpus:g} CPUs and {self.loaders} loader workers each"
        return f"{self.workers} x {each}"


def choose(
    nodes: Collection[Node],
    *,
    workers: int | Auto = "auto",
    use_gpu: bool | Auto = "auto",
    cpus: float | Auto = "auto",
    loaders: int | Auto = "auto",
    cpus_each: int = 0,
) -> Share:
    """Put numbers in place of every "auto".

    A GPU is used where any node has one. There are as many workers as GPUs; without GPUs one on each node, or as many
    as have ``cpus_each``. They divide a node's CPUs among them, and use some of theirs for decoding: all but one beside
    a GPU, a quarter where the CPUs compute as well.

    Args:
        nodes: what there is.
        workers: how many; of a range, the most.
        use_gpu: one GPU each.
        cpus: CPUs of each.
        loaders: decoding processes of each.
        cpus_each: CPUs of a worker where there are no GPUs; 0 is a whole node.
    """
    gpu = any(node.get("GPU", 0) >= 1 for node in nodes) if use_gpu == "auto" else use_gpu
    usable = [node for node in nodes if node.get("GPU" if gpu else "CPU", 0) >= 1] or [{"CPU": 1.0, "GPU": 1.0}]
    places = [int(node["GPU"]) if gpu else max(1, int(node["CPU"]) // cpus_each) if cpus_each else 1 for node in usable]
    count, least = sum(places), 0.01
    if workers != "auto":
        count, least = workers, 1.0  # more than the nodes hold get one CPU each, and are refused later
        spread = math.ceil(count / len(usable))
        places = [max(1, min(place, count)) if gpu else spread for place in places]
    if cpus == "auto":
        own = min(node.get("CPU", 0.0) / place for node, place in zip(usable, places, strict=True))
        own = float(math.floor(own)) if own >= 1 else max(least, math.floor(own * 100) / 100)
    else:
        own = cpus
    decoding = min(MOST_LOADERS, max(1, int(own) - 1 if gpu else int(own) // 4)) if loaders == "auto" else loaders
    return Share(count, gpu, own, decoding)
