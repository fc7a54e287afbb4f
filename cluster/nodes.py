"""What ``glscl doctor`` does on the nodes: one small actor on each, which reserves no CPU."""

from __future__ import annotations

import glob
import os
import platform
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from typing import Any

import glscl
from glscl.system.session import use_interface_of_node

PACKAGES = ("ray", "torch", "deepspeed")
ANSWER_S = 90.0
"""Seconds that a node is given to start a process and answer."""
RING_S = 60.0


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a file system, and those that an ordinary user may still fill."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node says of itself."""

    versions: dict[str, str]
    gpus: int
    disk_path: str
    disk: Space
    shm: Space


def versions() -> dict[str, str]:
    """Of everything that must be the same on every node."""
    found = {"glscl": glscl.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def space(path: str) -> Space:
    """Of the file system that holds ``path``; nothing where there is no such path."""
    try:
        stat = os.statvfs(path)
    except FileNotFoundError:
        return Space(0, 0)
    return Space(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)


def report() -> NodeReport:
    """What this machine says of itself."""
    scratch = tempfile.gettempdir()  # of Ray's session and of shards in transit
    return NodeReport(versions(), len(glob.glob("/dev/nvidia[0-9]*")), scratch, space(scratch), space("/dev/shm"))


def all_reduce(rank: int, world: int, address: str, backend: str) -> float:
    """Seconds of one all-reduce of 1 MiB with all the others, who meet at ``host:port``.

    Raises:
        RuntimeError: the sum is wrong, or the others are not reached.
    """
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        backend, init_method=f"tcp://{address}", rank=rank, world_size=world, timeout=timedelta(seconds=RING_S)
    )
    try:
        device = "cuda" if backend == "nccl" else "cpu"
        for _ in range(2):  # the first one also connects
            values = torch.full((1 << 18,), rank + 1.0, device=device)
            start = time.perf_counter()
            dist.all_reduce(values)
            total = values.max().item()
            taken = time.perf_counter() - start
        if total != world * (world + 1) / 2:
            raise RuntimeError(f"the sum over {world} nodes is {total}, not {world * (world + 1) / 2}")
        return taken
    finally:
        dist.destroy_process_group()


class Node:
    """The actor."""

    def report(self) -> NodeReport:
        return report()

    def now(self) -> float:
        return time.time()

    def meeting_point(self) -> str:
        """An address on this node at which nobody listens yet."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def all_reduce(self, rank: int, world: int, address: str, backend: str) -> float:
        use_interface_of_node()  # as training does
        return all_reduce(rank, world, address, backend)

    def storage_problem(self, uri: str, others: str) -> tuple[str, str] | None:
        from cluster.checks import storage_problem

        return storage_problem(uri, others)


def start_nodes(use_gpu: bool) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Start the actor on every node that is alive.

    Returns:
        actors and Ray's resources by the node's name: its address, with the port where several share one.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(Node)
    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    actors: dict[str, Any] = {}
    resources: dict[str, dict[str, float]] = {}
    for node, address in zip(alive, addresses, strict=True):
        name = address if addresses.count(address) == 1 else f"{address}:{node['NodeManagerPort']}"
        resources[name] = node["Resources"]
        actors[name] = actor.options(
            num_cpus=0,
            num_gpus=1 if use_gpu and node["Resources"].get("GPU") else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote()
    return actors, resources


def gather(pending: Mapping[str, Any], limit_s: float = ANSWER_S) -> dict[str, Any]:
    """The nodes' answers; an exception in place of one that failed or did not come."""
    import ray

    ready, _ = ray.wait(list(pending.values()), num_returns=len(pending), timeout=limit_s) if pending else ([], [])
    answers: dict[str, Any] = {}
    for node, reference in pending.items():
        if reference not in ready:
            answers[node] = TimeoutError(f"no answer in {limit_s:g} s")
            continue
        try:
            answers[node] = ray.get(reference)
        except Exception as error:
            answers[node] = error
    return answers


def clock_offset(node: Any) -> float:
    """Seconds that a node's clock is ahead of this one's: of three askings, the quickest."""
    import ray

    best = (float("inf"), 0.0)
    for _ in range(3):
        before = time.time()
        there = ray.get(node.now.remote(), timeout=ANSWER_S)
        after = time.time()
        best = min(best, (after - before, there - (before + after) / 2))
    return best[1]
