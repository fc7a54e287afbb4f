"""The actor that ``glscl doctor`` starts on every node, and its reports. It reserves no CPU."""

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
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cluster.storage_probe import StorageProblem, storage_problem
from glscl.system.nodes import Node
from glscl.version import __version__

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

T = TypeVar("T")

PACKAGES = ("ray", "torch", "deepspeed")
ANSWER_S = 90.0  # seconds that a node is given to start a process and answer
RING_S = 60.0


class Space(NamedTuple):
    """Bytes of a file system, and how many of them an ordinary user may still fill."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class NodeReport:
    """Versions, GPUs and disks of a node. ``disk_path`` is where Ray's session and shards in transit lie."""

    versions: dict[str, str]
    gpus: int
    disk_path: str
    disk: Space
    shm: Space


class ClusterNode(NamedTuple):
    """A node of the cluster: its resources by Ray's names, and the actor on it."""

    resources: Node
    actor: ActorHandle


def read_versions() -> dict[str, str]:
    """Versions of everything that must be the same on every node."""
    versions = {"glscl": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions


def measure_space(path: str) -> Space:
    """Space of the file system that holds ``path``; 0 where there is no such path."""
    try:
        stat = os.statvfs(path)
    except FileNotFoundError:
        return Space(0, 0)
    return Space(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)


def report_this_machine() -> NodeReport:
    """The report of the machine that this process runs on."""
    scratch = tempfile.gettempdir()
    gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    return NodeReport(read_versions(), gpus, scratch, measure_space(scratch), measure_space("/dev/shm"))


def all_reduce(rank: int, world: int, address: str, backend: str) -> float:
    """Time one all-reduce of 1 MiB with the other ranks, who meet at ``host:port``; returns seconds.

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


class NodeActor:
    """What the doctor asks of a node."""

    def report(self) -> NodeReport:
        return report_this_machine()

    def now(self) -> float:
        return time.time()

    def storage_problem(self, uri: str, others: str) -> StorageProblem | None:
        return storage_problem(uri, others)

    def meeting_point(self) -> str:
        """An address on this node at which nobody listens yet."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def all_reduce(self, rank: int, world: int, address: str, backend: str) -> float:
        from glscl.system.ray_internals.cluster import use_interface_of_node  # Ray is not waited for by a mistake

        use_interface_of_node()  # as training does
        return all_reduce(rank, world, address, backend)


def start_actors(use_gpu: bool) -> dict[str, ClusterNode]:
    """Start the actor on every node that is alive, by name: its address, with the port where several share one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(NodeActor)
    alive = [node for node in ray.nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    nodes: dict[str, ClusterNode] = {}
    for node, address in zip(alive, addresses, strict=True):
        name = address if addresses.count(address) == 1 else f"{address}:{node['NodeManagerPort']}"
        handle = actor.options(
            num_cpus=0,
            num_gpus=1 if use_gpu and node["Resources"].get("GPU") else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote()
        nodes[name] = ClusterNode(node["Resources"], handle)
    return nodes


def gather(pending: Mapping[str, ObjectRef[T]], limit_s: float = ANSWER_S) -> dict[str, T | Exception]:
    """The nodes' answers by name; an exception in place of one that failed or is late."""
    import ray

    ready, _ = ray.wait(list(pending.values()), num_returns=len(pending), timeout=limit_s) if pending else ([], [])
    answers: dict[str, T | Exception] = {}
    for node, reference in pending.items():
        try:
            answers[node] = ray.get(reference) if reference in ready else TimeoutError(f"no answer in {limit_s:g} s")
        except Exception as error:
            answers[node] = error
    return answers


def clock_offsets(nodes: Mapping[str, ClusterNode]) -> dict[str, float]:
    """Seconds that the nodes' clocks are ahead of this one's: the quickest of three answers of each decides."""
    import ray

    answers: dict[str, list[tuple[float, float]]] = {name: [] for name in nodes}
    for name in 3 * list(nodes):
        before = time.time()
        remote = ray.get(nodes[name].actor.now.remote(), timeout=ANSWER_S)
        after = time.time()
        answers[name].append((after - before, remote - (before + after) / 2))
    return {name: min(times)[1] for name, times in answers.items()}
