"""The Ray cluster that a command uses."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import psutil  # type: ignore[import-untyped]

from glscl.errors import UserError


@contextmanager
def ray_session(quiet: bool = False) -> Iterator[None]:
    """Use the cluster that ``RAY_ADDRESS`` or ``ray start`` offers, else a local one that ends with this block.

    Args:
        quiet: leave what tasks and workers print in Ray's log files: many runs at once would talk all together.
    """
    # Ray polls workers for reports at this interval; the default of 2 s would be felt in short runs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "1800")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it repeats every line of the workers
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    named = os.environ.get("RAY_ADDRESS")
    if named and named != "local" and not _answers(named):
        raise UserError(f"no Ray cluster answers at RAY_ADDRESS={named}")
    address = named or _cluster_of_this_machine() or "local"
    if address == "local":
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody reclaims this machine
        # Ray Train asks the dashboard for the state of its actors.
        ray.init(address="local", include_dashboard=True, logging_level="error", log_to_driver=not quiet)
    else:
        ray.init(address=address, logging_level="error", log_to_driver=not quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _cluster_of_this_machine() -> str | None:
    """Address of what ``ray start`` has left running here; None if it is gone (Ray itself would wait for minutes)."""
    from ray._private.utils import read_ray_address

    address = read_ray_address()
    if not address:
        return None
    if _answers(address):
        return str(address)
    print(f"the Ray cluster at {address} is gone; starting a local one", flush=True)
    return None


def _answers(address: str) -> bool:
    """Whether somebody listens at ``host:port`` (other forms of address are left to Ray)."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return True
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def alive_nodes() -> list[Mapping[str, float]]:
    """Resources of the nodes there are."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def room(cpus_per_worker: float, use_gpu: bool) -> int:
    """Workers that the nodes there are can hold, counted node by node: a worker is never split over two."""
    return room_on(alive_nodes(), cpus_per_worker, use_gpu)


def room_on(nodes: Iterable[Mapping[str, float]], cpus_per_worker: float, use_gpu: bool) -> int:
    """Workers that nodes of these resources hold."""
    workers = 0
    for node in nodes:
        fits = int(node.get("CPU", 0.0) / cpus_per_worker + 1e-9)  # 0.3 / 0.1 is a little less than 3
        workers += min(fits, int(node.get("GPU", 0.0))) if use_gpu else fits
    return workers


def check_resources(
    workers: int, cpus_per_worker: float, use_gpu: bool, wait_s: float = 0.0, most: int | None = None
) -> None:
    """Refuse what the cluster does not have (Ray would wait for ever), after giving an autoscaler time to bring it.

    Args:
        workers: that have to be there (of a range, the fewest).
        cpus_per_worker: CPUs of each, on one node.
        use_gpu: each has a GPU.
        wait_s: seconds that the cluster is given.
        most: of a range, what an autoscaler is asked for meanwhile.

    Raises:
        UserError: naming the knob.
    """
    from ray.autoscaler.sdk import request_resources

    deadline = time.monotonic() + wait_s
    if wait_s and room(cpus_per_worker, use_gpu) < workers:
        bundle = {"CPU": max(1, round(cpus_per_worker))} | ({"GPU": 1} if use_gpu else {})
        request_resources(bundles=[bundle] * (most or workers))
        while room(cpus_per_worker, use_gpu) < workers and time.monotonic() < deadline:
            time.sleep(1.0)
        request_resources(bundles=[])  # the workers' own placement group keeps the nodes from here on
    if room(cpus_per_worker, use_gpu) < workers:
        raise UserError(lacking(workers, cpus_per_worker, use_gpu, alive_nodes()))


def lacking(workers: int, cpus_per_worker: float, use_gpu: bool, nodes: Collection[Mapping[str, float]]) -> str:
    """What so many workers need that nodes of these resources have not, and the knobs."""
    there = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    wanted = {"CPU": workers * cpus_per_worker} | ({"GPU": float(workers)} if use_gpu else {})
    short = [f"{n:g} {kind} (there: {there[kind]:g})" for kind, n in wanted.items() if n > there[kind]]
    need = " and ".join(short) or (
        f"{cpus_per_worker:g} CPU {'and a GPU ' if use_gpu else ''}each on one node (there is room for "
        f"{room_on(nodes, cpus_per_worker, use_gpu)})"
    )
    return (
        f"{workers} workers need {need}: lower training.num_workers or training.cpus_per_worker, set training.use_gpu "
        f"to false, or raise training.wait_for_nodes_s where the cluster can grow"
    )


def use_interface_of_node() -> None:
    """Have gloo use the interface of this node's address in the cluster, unless ``GLOO_SOCKET_IFNAME`` says which."""
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
