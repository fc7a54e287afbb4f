"""The Ray cluster that a command uses."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from glscl import stopping
from glscl.errors import UserError
from glscl.processes import start_of

_PREFIX = "glscl-ray-"
_OWNER = "owner.json"
_END_S = 15.0
_KEEP_DAYS = 7


@contextmanager
def ray_session(quiet: bool = False, stops_runs: bool = False) -> Iterator[None]:
    """Use the cluster that ``RAY_ADDRESS`` or ``ray start`` offers, else a local one that ends with this block.

    Args:
        quiet: leave what tasks and workers print in Ray's log files: many runs at once would talk all together.
        stops_runs: trainings may be ended from outside. What gives their resources back then is a process of Ray Train
            that asks the dashboard; where a machine has several clusters, it must be told which is its own.
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
    options: dict[str, Any] = {"runtime_env": {"worker_process_setup_hook": name_cluster}} if stops_runs else {}
    if address == "local":
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody reclaims this machine
        # Ray Train asks the dashboard for the state of its actors.
        with _own_cluster(quiet, options):
            yield
        return
    ray.init(address=address, logging_level="error", log_to_driver=not quiet, **options)
    stopping.take_back()
    try:
        yield
    finally:
        ray.shutdown()


def name_cluster() -> None:
    """Let this Ray worker process find its own cluster where it would look for any."""
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


@contextmanager
def _own_cluster(quiet: bool, options: dict[str, Any]) -> Iterator[None]:
    """A local cluster that leaves neither processes nor files behind, but its logs where something went wrong."""
    import ray
    from ray._common.utils import get_default_system_temp_dir

    parent = get_default_system_temp_dir()
    _remove_left_folders(parent)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    _own(folder)
    before = {child.pid for child in psutil.Process().children()}
    failed = False
    try:
        with _temporary_files_in(os.path.join(folder, "tmp")):
            ray.init(
                address="local",
                include_dashboard=True,
                logging_level="error",
                log_to_driver=not quiet,
                _temp_dir=folder,
                **options,
            )
            stopping.take_back()
            yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException:
        failed = True
        raise
    finally:
        started = [
            process
            for child in psutil.Process().children()
            if child.pid not in before
            for process in [child, *_descendants(child)]
        ]
        ray.shutdown()
        _, alive = psutil.wait_procs(started, timeout=_END_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if failed:
            _remove(os.path.join(folder, "tmp"))
            _own(folder, failed=True)
            print(f"Ray's logs of this command: {folder} (removed after {_KEEP_DAYS} days)", flush=True)
        else:
            _remove(folder)


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """Let this process, and those that it starts in this block, put their temporary files there.

    Ray's processes are ended by force, and this one may be.
    """
    os.makedirs(folder)
    variable, default = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = default
        del os.environ["TMPDIR"]
        if variable is not None:
            os.environ["TMPDIR"] = variable


def _descendants(process: Any) -> list[Any]:
    try:
        return process.children(recursive=True)  # type: ignore[no-any-return]
    except psutil.NoSuchProcess:
        return []


def _own(folder: str, **more: Any) -> None:
    """Mark a folder as this process's."""
    owner = {"pid": os.getpid(), "start": start_of(os.getpid()), **more}
    Path(folder, _OWNER).write_text(json.dumps(owner), encoding="utf-8")


def _remove_left_folders(parent: str) -> None:
    """Delete what commands that were killed have left, and the logs of failed ones that are old."""
    for mark in Path(parent).glob(f"{_PREFIX}*/{_OWNER}"):
        try:
            owner = json.loads(mark.read_text(encoding="utf-8"))
            old = time.time() - mark.stat().st_mtime > _KEEP_DAYS * 86400
        except (OSError, ValueError):
            continue  # being removed by another command, or being written
        running = start_of(owner["pid"])
        if running is not None and owner.get("start", running) == running:  # earlier versions left no "start"
            continue
        if old or not owner.get("failed"):
            _remove(str(mark.parent))


def _remove(folder: str) -> None:
    deadline = time.monotonic() + _END_S
    while os.path.isdir(folder):
        try:
            shutil.rmtree(folder)
        except OSError as error:  # a process that is just ending wrote another file
            if time.monotonic() > deadline:
                print(f"cannot remove {folder}, where the Ray cluster of a command was ({error})", flush=True)
                return
            time.sleep(0.1)


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
