"""The nodes of the cluster: numbers in place of options that say ``auto``, how many workers fit, a request for more."""

import math
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from glscl.errors import UserError

Auto = Literal["auto"]

Node = Mapping[str, float]  # resources of one node, by Ray's names: CPU, GPU

MOST_LOADERS = 8  # most decoding processes per worker that ``auto`` chooses
RENEW_S = 20.0  # seconds between two renewals of a request; after three times as long it is void


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

    GPUs are used, one per worker, if any node has one. There are as many workers as GPUs; without GPUs one per node, or
    as many as get ``cpus_each``. The workers of a node divide its CPUs. For decoding, a worker uses all of its CPUs but
    one beside a GPU, and a quarter where the CPUs compute as well. Of a range of workers, ``workers`` is the most.
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


def choose_fitting(
    nodes: Collection[Node], workers: int | Auto, use_gpu: bool | Auto, cpus: float | Auto, loaders: int | Auto
) -> Share:
    """`choose` for processes that only encode and score, of 4 CPUs each. Raises `UserError`: the nodes hold fewer."""
    share = choose(nodes, workers=workers, use_gpu=use_gpu, cpus=cpus, loaders=loaders, cpus_each=4)
    if capacity_of_nodes(nodes, share.cpus, share.use_gpu) < share.workers:
        raise UserError(missing_resources(share.workers, share.cpus, share.use_gpu, nodes))
    return share


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
    """Refuse a number of workers (of a range, the fewest) that the cluster cannot hold; Ray would wait for ever.

    An autoscaler is given ``wait_s`` seconds to add nodes, for the ``most`` workers of a range.
    """

    def fits() -> bool:
        return capacity_of_nodes(alive_nodes(), cpus_per_worker, use_gpu) >= workers

    if wait_s and not fits():
        bundle = {"CPU": max(1, round(cpus_per_worker))} | ({"GPU": 1} if use_gpu else {})
        _wait_for_nodes([bundle] * (most or workers), fits, wait_s)
    if not fits():
        raise UserError(missing_resources(workers, cpus_per_worker, use_gpu, alive_nodes()))


def _wait_for_nodes(bundles: list[dict[str, int]], fits: Callable[[], bool], wait_s: float) -> None:
    """Ask the autoscaler for nodes that hold these, for ``wait_s`` at most; Ray's own request would never end."""
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
