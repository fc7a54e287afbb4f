"""The nodes of the connected cluster: how many workers they hold, what is missing, and a request for more."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from glscl.errors import UserError
from glscl.system.hardware import Node

RENEW_S = 20.0
"""Seconds between two renewals of a request; after three times as long it is void."""


class NodeRequest:
    """A request to the autoscaler for nodes that hold these bundles. It ends with the ``with`` block or the process.

    Ray's own ``request_resources`` has no end: one of a killed driver would keep nodes for ever.
    """

    def __init__(self, bundles: Sequence[Mapping[str, float]]) -> None:
        self._bundles = list(map(dict, bundles))
        self._name = f"glscl-{uuid.uuid4().hex}"
        self._renewed = float("-inf")

    def __enter__(self) -> Self:
        from glscl.system.ray_internals.cluster import autoscaling_coordinator

        self._coordinator = autoscaling_coordinator()
        return self

    def renew(self) -> None:
        """Repeat the request if that is due."""
        if time.monotonic() - self._renewed >= RENEW_S:
            self._renewed = time.monotonic()
            self._coordinator.request_resources.remote(
                requester_id=self._name, resources=self._bundles, expire_after_s=3 * RENEW_S
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._coordinator.cancel_request.remote(requester_id=self._name)


def alive_nodes() -> list[Node]:
    """Resources of the cluster's nodes that are alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def worker_capacity(cpus_per_worker: float, use_gpu: bool) -> int:
    """Number of workers that the cluster's nodes hold. Counted node by node: a worker is never split over two."""
    return capacity_of_nodes(alive_nodes(), cpus_per_worker, use_gpu)


def capacity_of_nodes(nodes: Iterable[Node], cpus_per_worker: float, use_gpu: bool) -> int:
    """Number of workers that these nodes hold."""
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
        workers: number of workers; of a range, the fewest.
        cpus_per_worker: CPUs of each worker, on one node.
        use_gpu: each worker has a GPU.
        wait_s: seconds that an autoscaler is given to add nodes.
        most: of a range, the most workers; the autoscaler is asked for these.

    Raises:
        UserError: the resources are missing; the message names the options.
    """
    deadline = time.monotonic() + wait_s
    if wait_s and worker_capacity(cpus_per_worker, use_gpu) < workers:
        bundle = {"CPU": max(1, round(cpus_per_worker))} | ({"GPU": 1} if use_gpu else {})
        with NodeRequest([bundle] * (most or workers)) as request:  # the placement group keeps the nodes afterwards
            while worker_capacity(cpus_per_worker, use_gpu) < workers and time.monotonic() < deadline:
                request.renew()
                time.sleep(1.0)
    if worker_capacity(cpus_per_worker, use_gpu) < workers:
        raise UserError(missing_resources(workers, cpus_per_worker, use_gpu, alive_nodes()))


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
