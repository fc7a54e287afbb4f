"""The Ray cluster that a command uses."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glscl.errors import UserError


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
        ray.init(address="local", include_dashboard=True, logging_level="error", log_to_driver=not quiet, **options)
    else:
        ray.init(address=address, logging_level="error", log_to_driver=not quiet, **options)
    try:
        yield
    finally:
        ray.shutdown()


def name_cluster() -> None:
    """Let this Ray worker process find its own cluster where it would look for any."""
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


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


def check_resources(workers: int, cpus_per_worker: float, use_gpu: bool, wait_s: float = 0.0) -> None:
    """Refuse what the cluster does not have (Ray would wait for ever), after giving an autoscaler time to bring it.

    Raises:
        UserError: naming the knob.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    wanted = {"CPU": workers * cpus_per_worker} | ({"GPU": float(workers)} if use_gpu else {})

    def lacking() -> list[str]:
        there = ray.cluster_resources()
        return [
            f"{amount:g} {kind} (there: {there.get(kind, 0.0):g})"
            for kind, amount in wanted.items()
            if amount > there.get(kind, 0.0)
        ]

    deadline = time.monotonic() + wait_s
    if wait_s and lacking():
        bundle = {"CPU": max(1, round(cpus_per_worker))} | ({"GPU": 1} if use_gpu else {})
        request_resources(bundles=[bundle] * workers)
        while lacking() and time.monotonic() < deadline:
            time.sleep(1.0)
        request_resources(bundles=[])  # the workers' own placement group keeps the nodes from here on
    if missing := lacking():
        raise UserError(
            f"{workers} workers need {' and '.join(missing)}: lower training.num_workers or training.cpus_per_worker, "
            f"set training.use_gpu to false, or raise training.wait_for_nodes_s where the cluster can grow"
        )
