"""The checks of ``glscl doctor``: small functions from the nodes' reports to a `Check`."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.dashboard import connect, demands_token
from cluster.nodes import NodeReport
from cluster.storage_probe import StorageProblem, shorten, storage_problem
from glscl.data.shards import open_shard_set
from glscl.errors import UserError

State = Literal["ok", "warn", "fail"]
GIB = 1 << 30
FULL = 0.95
"""Share of a disk in use from which Ray gives a node no more objects to hold (its ``local_fs_capacity_threshold``)."""
LITTLE_DISK = 20 * GIB
SMALLEST_SHM = 256 << 20
"""Docker gives a container 64 MiB unless told otherwise; the first decoded batches end such a loader worker."""
LITTLE_SHM = 4 * GIB
SKEW_WARN_S, SKEW_FAIL_S = 2.0, 300.0
"""S3 refuses requests whose clock is a quarter of an hour off; two nodes may be off in opposite directions."""


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table: the name of the check, the state, what was seen, and what to change."""

    name: str
    state: State
    finding: str
    knob: str = ""


def guard(
    name: str, limit_s: float, check: Callable[..., Check], *arguments: object, late: tuple[str, str] = ("", "")
) -> Check:
    """Run a check; one that raises, or hangs for ``limit_s``, has failed. ``late``: what hanging means, and a knob."""
    result: list[Check] = []

    def run() -> None:
        try:
            result.append(check(*arguments))
        except UserError as error:
            result.append(Check(name, "fail", str(error)))
        except BaseException as error:  # whatever a check does, the others are still wanted
            result.append(Check(name, "fail", f"the check itself failed: {type(error).__name__}: {shorten(error)}"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    return result[0] if result else Check(name, "fail", f"{late[0]}no answer in {limit_s:g} s", late[1])


def check_versions(reports: Mapping[str, NodeReport], mine: Mapping[str, str]) -> Check:
    """Every node has the driver's versions."""
    different = [
        f"{node} has {package} {report.versions.get(package, 'missing')}, the driver {version}"
        for node, report in reports.items()
        for package, version in mine.items()
        if report.versions.get(package) != version
    ]
    if different:
        knob = "give every node the same image, or install with --constraint constraints.txt everywhere"
        return Check("versions", "fail", "; ".join(different), knob)
    return Check("versions", "ok", ", ".join(f"{package} {version}" for package, version in mine.items()))


def check_gpus(reports: Mapping[str, NodeReport], declared: Mapping[str, int], use_gpu: bool) -> Check:
    """Ray's count of GPUs is what the nodes' devices say."""
    counts = ", ".join(f"{node} {count}" for node, count in declared.items() if count) or "none"
    absent, unused = [], []
    for node, report in reports.items():
        if declared[node] > report.gpus:
            absent.append(f"{node} offers Ray {declared[node]} GPUs and shows {report.gpus} devices")
        elif declared[node] < report.gpus:
            unused.append(f"{node} shows {report.gpus} devices and offers Ray {declared[node]}")
    if absent:
        knob = "the node's NVIDIA driver and container runtime, or its GPU count"
        return Check("GPUs", "fail", "; ".join(absent), knob)
    if use_gpu and not any(declared.values()):
        return Check("GPUs", "fail", "none in the cluster", "a node type with GPUs, or leave out --use-gpu")
    if unused and use_gpu:
        return Check("GPUs", "warn", "; ".join(unused), "--num-gpus of `ray start`, or the node type's resources")
    return Check("GPUs", "ok", counts)


def check_clocks(offsets: Mapping[str, float]) -> Check:
    """The nodes agree on the time; ``offsets`` are seconds ahead of the driver."""
    skew = max(offsets.values()) - min(offsets.values())
    if skew < SKEW_WARN_S:
        return Check("clocks", "ok", f"within {skew:.2f} s")
    ahead, behind = max(offsets, key=lambda node: offsets[node]), min(offsets, key=lambda node: offsets[node])
    state: State = "fail" if skew >= SKEW_FAIL_S else "warn"
    return Check("clocks", state, f"{ahead} is {skew:.1f} s ahead of {behind}", "chrony or another NTP client on both")


def check_disk(reports: Mapping[str, NodeReport]) -> Check:
    """Room for shards in transit, checkpoints on their way and Ray's spilled objects."""

    def line(node: str) -> str:
        disk = reports[node].disk
        return f"{node} {disk.free / GIB:.1f} of {disk.total / GIB:.0f} GiB free in {reports[node].disk_path}"

    knob = "remove files, a larger volume, or data.cache_dir on another one"
    full = [n for n, report in reports.items() if report.disk.free <= (1 - FULL) * report.disk.total]
    little = [n for n, report in reports.items() if report.disk.free < LITTLE_DISK]
    if full:
        return Check("disk", "fail", "full: " + "; ".join(map(line, full)), knob)
    if little:
        return Check("disk", "warn", "; ".join(map(line, little)), knob)
    return Check("disk", "ok", "; ".join(map(line, reports)))


def check_shared_memory(reports: Mapping[str, NodeReport]) -> Check:
    """Decoded batches pass from loader workers to training through ``/dev/shm``."""
    sizes = {node: report.shm.total for node, report in reports.items()}
    finding = "; ".join(f"{node} {size / GIB:.2f} GiB" for node, size in sizes.items())
    least = min(sizes.values())
    state: State = "fail" if least < SMALLEST_SHM else "warn" if least < LITTLE_SHM else "ok"
    knob = "--shm-size of docker run, or an emptyDir of medium Memory at /dev/shm" if state != "ok" else ""
    return Check("shared memory", state, finding, knob)


def check_network(answers: Mapping[str, float | Exception], backend: str) -> Check:
    """The nodes that train have done an all-reduce together; ``answers`` are its seconds, or what went wrong."""
    if not answers:
        return Check("network", "warn", "no node that trains is up", "--wait-for-nodes-s where the cluster can grow")
    wrong = [f"{node}: {shorten(answer)}" for node, answer in answers.items() if isinstance(answer, Exception)]
    if wrong:
        knob = "open all ports between nodes; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface"
        return Check("network", "fail", f"{backend} all-reduce: " + "; ".join(wrong), knob)
    slowest = max(answer for answer in answers.values() if not isinstance(answer, Exception))
    return Check("network", "ok", f"{backend} all-reduce of 1 MiB over {len(answers)} nodes in {slowest * 1e3:.1f} ms")


def check_dashboard(url: str) -> Check:
    """Jobs can be submitted, and not by just anybody."""
    guarded = demands_token(url)
    connect(url)
    if guarded:
        return Check("dashboard", "ok", f"{url}, token accepted")
    finding = f"{url} demands no token: whoever reaches that port can run code"
    return Check("dashboard", "warn", finding, "RAY_AUTH_MODE=token and one token on every node")


def check_storage(uri: str) -> Check:
    """The driver can list, write, read and delete."""
    problem = storage_problem(uri)
    if problem:
        return Check("storage", "fail", f"{uri}: {problem.what}", problem.knob)
    return Check("storage", "ok", f"{uri}: listed, written, read and deleted")


def check_storage_of_nodes(uri: str, answers: Mapping[str, StorageProblem | Exception | None]) -> Check:
    """Every node can do the same, and sees what the driver wrote."""
    problems = {
        node: StorageProblem(shorten(answer), "") if isinstance(answer, Exception) else answer
        for node, answer in answers.items()
        if answer is not None
    }
    if not problems:
        return Check("storage of nodes", "ok", f"{uri} from {len(answers)} nodes")
    finding = "; ".join(f"{node}: {problem.what}" for node, problem in problems.items())
    knobs = dict.fromkeys(problem.knob for problem in problems.values() if problem.knob)
    return Check("storage of nodes", "fail", f"{uri}: {finding}", "; ".join(knobs))


def check_shards(uris: Sequence[str], workers: int, loader_workers: int, most: int | None = None) -> Check:
    """There is a tar for every process that will read.

    Of a range of ``workers``, that is the fewest; a run does not grow to a number, up to ``most``, with too few tars.
    """
    shards, loaders = sum(len(open_shard_set(uri).manifest.shards) for uri in uris), max(1, loader_workers)
    knob = "lower data.loader_workers or training.num_workers, or build with a smaller --samples-per-shard"
    needs: tuple[tuple[int, State], ...] = ((workers, "fail"), (most or workers, "warn"))
    for count, state in needs:
        if shards < count * loaders:
            finding = f"too few: {shards} shards for {count} workers x {loaders} loader workers"
            return Check("shards", state, finding, knob)
    return Check("shards", "ok", f"{shards} shards for {most or workers} workers x {loaders} loader workers")
