"""The Ray cluster that a command uses: an existing one, or a local one that ends with the command."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from glscl.errors import BrokenRunError, UserError, one_line
from glscl.system import environment, stopping
from glscl.system.environment import check_environment, named_cluster
from glscl.system.nodes import Node, alive_nodes
from glscl.system.ownership import start_of

_PREFIX = "glscl-ray-"
_OWNER = "owner.json"
_END_S = 15.0
_KEEP_DAYS = 7
_STARTS = 2
PATIENCE = {
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_py_gcs_connect_timeout_s": "120",
}
"""Ray's time limits of a start, which a busy machine needs longer than Ray allows."""


@contextmanager
def ray_session(quiet: bool = False) -> Iterator[None]:
    """Connect to the cluster of ``RAY_ADDRESS`` or ``ray start``, else to a local one that ends with this block.

    If it is ``quiet``, the output of tasks and workers, which many runs would mix, is in Ray's log files alone. Errors
    are those of `check_environment`, and a BrokenRunError where a local cluster does not start.
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
    check_environment()
    named = named_cluster()
    address = cluster_of_this_machine() if named in (None, "auto") else named
    if address is None and named == "auto":
        raise UserError("RAY_ADDRESS=auto: no Ray cluster runs on this machine; start one, or unset RAY_ADDRESS")
    if address in (None, "local"):
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody reclaims this machine
        with _local_cluster(quiet):
            yield
        return
    with ray.init(address=address, logging_level="error", log_to_driver=not quiet):
        stopping.reinstall_handlers()
        yield


def on_this_machine() -> bool:
    """Whether `ray_session` is sure to start a local cluster, so that everything runs on this machine."""
    import ray

    from glscl.system.ray_internals.cluster import written_address

    named = os.environ.get("RAY_ADDRESS")
    return not ray.is_initialized() and (named == "local" or not (named or written_address()))


@contextmanager
def _local_cluster(quiet: bool) -> Iterator[None]:
    """Run a local cluster that leaves no processes and no files behind, except for the logs of a failure."""
    parent = environment.temporary_folder()
    _remove_left_folders(parent)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    _mark_owned(folder)
    before = _children()
    failed = False
    try:
        with _temporary_files_in(os.path.join(folder, "tmp")):
            _start_ray(folder, quiet)
            stopping.reinstall_handlers()
            yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException:
        failed = True
        raise
    finally:
        _end(before)
        if failed:
            _remove(os.path.join(folder, "tmp"))
            _mark_owned(folder, failed=True)
            print(f"Ray's logs of this command: {folder} (removed after {_KEEP_DAYS} days)", flush=True)
        else:
            _remove(folder)


def _start_ray(folder: str, quiet: bool) -> None:
    """Start a local cluster, however busy the machine is.

    Ray gives up on parts of itself after times that a machine under load needs. Those that can be set are set; one
    that cannot is half a minute for its node to appear. A start that has failed is tried again before a BrokenRunError.
    """
    import ray

    from glscl.system.ray_internals.cluster import patient_start

    for variable, value in PATIENCE.items():
        os.environ.setdefault(variable, value)
    has_token = environment.ray_token() or environment.can_keep_token()
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and not has_token:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # Ray would write one into the home folder
    before = _children()
    for left in range(_STARTS - 1, -1, -1):
        try:
            with patient_start():
                ray.init(
                    address="local",
                    include_dashboard=True,
                    logging_level="error",
                    log_to_driver=not quiet,
                    _temp_dir=folder,
                )
            return
        except Exception as error:  # Ray has no type for it
            reason = one_line(error)
            _end(before)
            if not left:
                raise BrokenRunError(f"Ray does not start on this machine, tried {_STARTS} times: {reason}") from error
            print(f"Ray has not started ({reason}); trying again", flush=True)


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def _end(before: Collection[int]) -> None:
    """Shut Ray down, and end what this process has started since."""
    import ray

    started = []
    for child in psutil.Process().children():
        if child.pid not in before:
            started.append(child)
            with suppress(psutil.NoSuchProcess):
                started += child.children(recursive=True)
    ray.shutdown()
    _, alive = psutil.wait_procs(started, timeout=_END_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """In this block, this process and those that it starts (some end by force) put their temporary files there."""
    os.makedirs(folder)
    before, default = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = default
        del os.environ["TMPDIR"]
        if before is not None:
            os.environ["TMPDIR"] = before


def _mark_owned(folder: str, failed: bool = False) -> None:
    """Write into a folder which process it belongs to, and whether its command has failed."""
    owner = {"pid": os.getpid(), "start": start_of(os.getpid()), **({"failed": True} if failed else {})}
    Path(folder, _OWNER).write_text(json.dumps(owner), encoding="utf-8")


def _remove_left_folders(parent: str) -> None:
    """Delete the folders of commands that were killed, and old logs of commands that failed."""
    for mark in Path(parent).glob(f"{_PREFIX}*/{_OWNER}"):
        try:
            owner = json.loads(mark.read_text(encoding="utf-8"))
            old = time.time() - mark.stat().st_mtime > _KEEP_DAYS * 86400
            running = start_of(owner["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being removed by another command, being written, or another version's
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


def cluster_of_this_machine(say: bool = True) -> str | None:
    """Address of the cluster that ``ray start`` made on this machine; None if it is gone (Ray would wait minutes)."""
    from glscl.system.ray_internals.cluster import written_address

    address = written_address()
    if not address:
        return None
    try:
        environment.check_cluster(address, f"the Ray cluster of this machine, {address}")
    except environment.NoAnswerError:
        if say:
            print(f"the Ray cluster at {address} is gone; starting a local one", flush=True)
        return None
    return address


def cluster_nodes() -> list[Node]:
    """Resources of the nodes of the cluster that `ray_session` would use, by the same checks; nothing is started."""
    import ray

    from glscl.system.ray_internals.cluster import nodes_at, resources_of_this_machine

    if ray.is_initialized():
        return alive_nodes()
    check_environment()
    named = named_cluster()
    address = cluster_of_this_machine(say=False) if named in (None, "auto") else named
    return [resources_of_this_machine()] if address in (None, "local") else nodes_at(address)
