"""Hardware of the cluster's nodes: numbers in place of options that say ``auto``, and the network interface."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

Auto = Literal["auto"]

Node = Mapping[str, float]
"""Resources of one node, by Ray's names: CPU, GPU."""

MOST_LOADERS = 8
"""Most decoding processes per worker that ``auto`` chooses."""


@dataclass(frozen=True, slots=True)
class Share:
    """How a command uses the nodes: the number of workers, and what each of them gets."""

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
    """Put a number in place of every "auto".

    GPUs are used if any node has one. There are as many workers as GPUs; without GPUs one per node, or as many as get
    ``cpus_each``. The workers of a node divide its CPUs. For decoding, a worker uses all of its CPUs but one beside a
    GPU, and a quarter where the CPUs compute as well.

    Args:
        nodes: resources of the cluster's nodes.
        workers: their number; of a range, the most.
        use_gpu: one GPU per worker.
        cpus: per worker.
        loaders: decoding processes per worker.
        cpus_each: CPUs per worker that ``auto`` reckons with if there are no GPUs; 0 is a whole node.
    """
    gpu = any(node.get("GPU", 0) >= 1 for node in nodes) if use_gpu == "auto" else use_gpu
    usable = [node for node in nodes if node.get("GPU" if gpu else "CPU", 0) >= 1] or [{"CPU": 1.0, "GPU": 1.0}]
    per_node = [_fitting_workers(node, gpu, cpus_each) for node in usable]
    count, least = sum(per_node), 0.01
    if workers != "auto":
        count, least = workers, 1.0  # more than the nodes hold get one CPU each, and are refused later
        spread = math.ceil(count / len(usable))
        per_node = [max(1, min(fitting, count)) if gpu else spread for fitting in per_node]
    each = _divided_cpus(usable, per_node, least) if cpus == "auto" else cpus
    return Share(count, gpu, each, _decoding_processes(each, gpu) if loaders == "auto" else loaders)


def _decoding_processes(cpus: float, gpu: bool) -> int:
    return min(MOST_LOADERS, max(1, int(cpus) - 1 if gpu else int(cpus) // 4))


def _divided_cpus(nodes: Collection[Node], workers: Collection[int], least: float) -> float:
    """CPUs of each worker where the workers of a node divide its CPUs: a whole number, or hundredths below one."""
    share = min(node.get("CPU", 0.0) / sharing for node, sharing in zip(nodes, workers, strict=True))
    return float(math.floor(share)) if share >= 1 else max(least, math.floor(share * 100) / 100)


def _fitting_workers(node: Node, gpu: bool, cpus_each: int) -> int:
    """Workers of one node: one per GPU; without GPUs one, or as many as get ``cpus_each``."""
    if gpu:
        return int(node["GPU"])
    return max(1, int(node["CPU"]) // cpus_each) if cpus_each else 1


def use_interface_of_node() -> None:
    """Set ``GLOO_SOCKET_IFNAME`` to the interface of this node's address in the cluster, unless it is set."""
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
