"""The nodes of the connected cluster: how many workers they hold, what is missing, and a request for more."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterable

from glscl.errors import UserError
from glscl.system.hardware import Node

RENEW_S = 20.0
"""Seconds between two renewals of a request; after three times as long it is void."""


def alive_nodes() -> list[Node]:
    """Resources of the cluster's nodes that are alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def capacity_of_nodes(nodes: Iterable[Node], cpus_per_worker: float, use_gpu: bool) -> int:
    """Number of workers that these nodes hold. Counted node by node: a worker is never split over two."""
    workers = 0
    for node in nodes:
        fits = int(node.get("CPU", 0.0) / cpus_per_worker + 1e-9)  # 0.3 / 0.1 is a little less than 3
        workers += min(fits, int(node.get("GPU", 0.0))) if use_gpu else fits
    return workers


def check_resources(
    workers: int, cpus_per_worker: float, use_gpu: bool, wait_s: float = 0.0, most: int | None = None
) -> None:
    """Refuse a number of workers that the cluster cannot hold (Ray would wait for ever).

    Args:
        workers: of a range, the fewest.
        cpus_per_worker: CPUs of each worker, on one node.
        use_gpu: each worker has a GPU.
        wait_s: seconds that an autoscaler is given to add nodes.
        most: of a range, the most workers; the autoscaler is asked for these.

    Raises:
        UserError: the resources are missing; the message names the options.
    """

    def fits() -> bool:
        return capacity_of_nodes(alive_nodes(), cpus_per_worker, use_gpu) >= workers

    if wait_s and not fits():
        bundle = {"CPU": max(1, round(cpus_per_worker))} | ({"GPU": 1} if use_gpu else {})
        _wait_for_nodes([bundle] * (most or workers), fits, wait_s)
    if not fits():
        raise UserError(missing_resources(workers, cpus_per_worker, use_gpu, alive_nodes()))


def _wait_for_nodes(bundles: list[dict[str, int]], fits: Callable[[], bool], wait_s: float) -> None:
    """Ask the autoscaler for nodes that hold these bundles, until they are there or the time is over.

    Ray's own ``request_resources`` has no end: one of a killed driver would keep nodes for ever.
    """
    from glscl.system.ray_internals.cluster import autoscaling_coordinator

    coordinator, name = autoscaling_coordinator(), f"glscl-{uuid.uuid4().hex}"
    began, renewed = time.monotonic(), float("-inf")
    try:
        while not fits() and time.monotonic() - began < wait_s:
            if time.monotonic() - renewed >= RENEW_S:
                renewed = time.monotonic()
                coordinator.request_resources.remote(requester_id=name, resources=bundles, expire_after_s=3 * RENEW_S)
            time.sleep(1.0)
    finally:  # the placement group keeps the nodes afterwards
        coordinator.cancel_request.remote(requester_id=name)


def missing_resources(workers: int, cpus_per_worker: float, use_gpu: bool, nodes: Collection[Node]) -> str:
    """Error text: which resources these nodes lack for so many workers, and which options to change."""
    available = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    wanted = {"CPU": workers * cpus_per_worker} | ({"GPU": float(workers)} if use_gpu else {})
    short = [f"{n:g} {kind} (there: {available[kind]:g})" for kind, n in wanted.items() if n > available[kind]]
    need = " and ".join(short) or (
        f"{cpus_per_worker:g} CPU {'and a GPU ' if use_gpu else ''}each on one node (there is room for "
        f"{capacity_of_nodes(nodes, cpus_per_worker, use_gpu)})"
    )
    return (
        f"{workers} workers need {need}: lower training.num_workers or training.cpus_per_worker, set training.use_gpu "
        f"to false, or raise training.wait_for_nodes_s where the cluster can grow"
    )
