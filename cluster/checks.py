"""What ``glscl doctor`` checks: each a small function from what was found to a `Check`."""

from __future__ import annotations

import errno
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.dashboard import connect, demands_token
from cluster.nodes import NodeReport
from glscl.data.shards import open_shard_set
from glscl.errors import StorageError, UserError
from glscl.system import storage

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
NETWORK = "AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, and the network between"
CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table: what was looked at, how it is, what was found, and what to change."""

    name: str
    state: State
    found: str
    knob: str = ""


def guard(
    name: str, limit_s: float, check: Callable[..., Check], *arguments: Any, late: tuple[str, str] = ("", "")
) -> Check:
    """Run a check; one that raises, or hangs, is a failed check.

    Args:
        name: of the check.
        limit_s: seconds until it counts as hanging.
        check: what to run.
        arguments: of ``check``.
        late: what hanging means in words, and the knob.
    """
    result: list[Check] = []

    def run() -> None:
        try:
            result.append(check(*arguments))
        except UserError as error:
            result.append(Check(name, "fail", str(error)))
        except BaseException as error:  # whatever a check does, the others are still wanted
            result.append(Check(name, "fail", f"the check itself failed: {type(error).__name__}: {_short(error)}"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    return result[0] if result else Check(name, "fail", f"{late[0]}no answer in {limit_s:g} s", late[1])


# ----------------------------------------------------------------------------------------------------------- nodes


def check_versions(reports: Mapping[str, NodeReport], mine: Mapping[str, str]) -> Check:
    """Every node runs what the driver runs."""
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
    found = ", ".join(f"{node} {count}" for node, count in declared.items() if count) or "none"
    absent = [
        f"{node} offers Ray {declared[node]} GPUs and shows {report.gpus} devices"
        for node, report in reports.items()
        if declared[node] > report.gpus
    ]
    unused = [
        f"{node} shows {report.gpus} devices and offers Ray {declared[node]}"
        for node, report in reports.items()
        if declared[node] < report.gpus
    ]
    if absent:
        return Check(
            "GPUs", "fail", "; ".join(absent), "the node's NVIDIA driver and container runtime, or its GPU count"
        )
    if use_gpu and not any(declared.values()):
        return Check("GPUs", "fail", "none in the cluster", "a node type with GPUs, or leave out --use-gpu")
    if unused and use_gpu:
        return Check("GPUs", "warn", "; ".join(unused), "--num-gpus of `ray start`, or the node type's resources")
    return Check("GPUs", "ok", found)


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
    found = "; ".join(f"{node} {size / GIB:.2f} GiB" for node, size in sizes.items())
    state: State = (
        "fail" if min(sizes.values()) < SMALLEST_SHM else "warn" if min(sizes.values()) < LITTLE_SHM else "ok"
    )
    knob = "--shm-size of docker run, or an emptyDir of medium Memory at /dev/shm" if state != "ok" else ""
    return Check("shared memory", state, found, knob)


def check_network(answers: Mapping[str, float | Exception], backend: str) -> Check:
    """The nodes that train have done an all-reduce together; ``answers`` are its seconds, or what went wrong."""
    if not answers:
        return Check("network", "warn", "no node that trains is up", "--wait-for-nodes-s where the cluster can grow")
    wrong = [f"{node}: {_short(answer)}" for node, answer in answers.items() if isinstance(answer, Exception)]
    if wrong:
        knob = "open all ports between nodes; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface"
        return Check("network", "fail", f"{backend} all-reduce: " + "; ".join(wrong), knob)
    slowest = max(answer for answer in answers.values() if not isinstance(answer, Exception))
    return Check("network", "ok", f"{backend} all-reduce of 1 MiB over {len(answers)} nodes in {slowest * 1e3:.1f} ms")


# ----------------------------------------------------------------------------------------------------------- dashboard


def check_dashboard(url: str) -> Check:
    """Jobs can be submitted, and not by just anybody."""
    guarded = demands_token(url)
    connect(url)
    if not guarded:
        return Check(
            "dashboard",
            "warn",
            f"{url} demands no token: whoever reaches that port can run code",
            "RAY_AUTH_MODE=token and one token on every node",
        )
    return Check("dashboard", "ok", f"{url}, token accepted")


# ----------------------------------------------------------------------------------------------------------- storage


def check_storage(uri: str) -> Check:
    """The driver can list, write, read and delete."""
    problem = storage_problem(uri)
    if problem:
        return Check("storage", "fail", f"{uri}: {problem[0]}", problem[1])
    return Check("storage", "ok", f"{uri}: listed, written, read and deleted")


def check_storage_of_nodes(uri: str, answers: Mapping[str, tuple[str, str] | Exception | None]) -> Check:
    """Every node can do the same, and sees what the driver wrote."""
    bad = {node: answer for node, answer in answers.items() if answer is not None}
    if not bad:
        return Check("storage of nodes", "ok", f"{uri} from {len(answers)} nodes")
    found = "; ".join(f"{n}: {_short(a) if isinstance(a, Exception) else a[0]}" for n, a in bad.items())
    knobs = dict.fromkeys(answer[1] for answer in bad.values() if not isinstance(answer, Exception))
    return Check("storage of nodes", "fail", f"{uri}: {found}", "; ".join(knobs))


def storage_problem(uri: str, others: str | None = None) -> tuple[str, str] | None:
    """List, write, read and delete a small file in a folder or prefix.

    Args:
        uri: the folder.
        others: a file that somebody else wrote there and that must be seen.

    Returns:
        What is wrong in words and the knob, or None.
    """
    probe, content = f".glscl-{uuid.uuid4().hex}", uuid.uuid4().bytes
    where, step = storage.join(uri, probe), "list"
    try:
        storage.list_names(uri)
        if others and not storage.exists(others):
            return "what the driver wrote there is not seen", "--storage: s3:// or a file system that all nodes mount"
        step = "write"
        storage.write_bytes(where, content)
        step = "read"
        if storage.read_bytes(where) != content or probe not in storage.list_names(uri):
            return (
                "what was just written is not what is read or listed",
                "--storage: a store that keeps what it is given",
            )
        step = "delete"
        storage.remove(where)
    except StorageError as error:
        return _explain(error.__cause__ or error, step)
    except UserError:
        raise
    except Exception as error:  # file systems and S3 clients have no exception in common
        return _explain(error, step)
    return None


def _explain(error: BaseException, step: str) -> tuple[str, str]:
    """Tell apart what a user would mend in different places."""
    from botocore.exceptions import (  # type: ignore[import-untyped]  # comes with s3fs
        ClientError,
        HTTPClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    from glscl.system.s3_errors import advice

    chain = list(_chain(error))
    codes = [
        str(e.response.get("Error", {}).get("Code", "")) for e in chain if isinstance(getattr(e, "response", 0), dict)
    ]
    code = next(filter(None, codes), "")
    numbers = {e.errno for e in chain if isinstance(e, OSError)}
    if any(isinstance(e, NoCredentialsError | PartialCredentialsError) for e in chain):
        return "no credentials", CREDENTIALS
    if any(isinstance(e, HTTPClientError | ConnectionError | TimeoutError) for e in chain):
        return f"unreachable ({type(error).__name__}: {_short(error)})", NETWORK
    if code in ("NoSuchBucket", "404") or (isinstance(error, FileNotFoundError) and code):
        return "no such bucket", "--storage"
    if code == "RequestTimeTooSkewed":
        return "refused: this machine's clock is wrong", "chrony or another NTP client"
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return f"wrong credentials ({code})", CREDENTIALS
    if numbers & {errno.ENOSPC, errno.EDQUOT}:
        return "full", "remove files there, or another --storage"
    if numbers & {errno.EROFS, errno.EACCES, errno.EPERM} or isinstance(error, PermissionError):
        right = {"list": "s3:ListBucket", "write": "s3:PutObject", "read": "s3:GetObject", "delete": "s3:DeleteObject"}
        knob = f"{right[step]} for this prefix, or the folder's owner, mode and mount"
        return (f"read-only: may not {step}" if step in ("write", "delete") else f"may not {step}"), knob
    refused = next((e for e in chain if isinstance(e, ClientError)), None)
    if refused:
        request = {"list": "list_objects_v2", "write": "put_object", "read": "get_object", "delete": "delete_object"}
        return f"cannot {step}: {_short(refused)}", advice(refused, request[step])
    return f"cannot {step}: {type(error).__name__}: {_short(error)}", "--storage"


def _chain(error: BaseException | None) -> Iterator[Any]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# ----------------------------------------------------------------------------------------------------------- shards


def check_shards(uris: Sequence[str], workers: int, loader_workers: int, most: int | None = None) -> Check:
    """There is a tar for every process that will read.

    Args:
        uris: the sets.
        workers: planned, or the fewest of a range.
        loader_workers: of each.
        most: of a range, the most; the run leaves alone what has too few tars.
    """
    counts = {uri: len(open_shard_set(uri).manifest.shards) for uri in uris}
    there, loaders = sum(counts.values()), max(1, loader_workers)
    knob = "lower data.loader_workers or training.num_workers, or build with a smaller --samples-per-shard"
    needs: tuple[tuple[int, State], ...] = ((workers, "fail"), (most or workers, "warn"))
    for count, state in needs:
        if there < count * loaders:
            found = f"too few: {there} shards for {count} workers x {loaders} loader workers"
            return Check("shards", state, found, knob)
    return Check("shards", "ok", f"{there} shards for {most or workers} workers x {loaders} loader workers")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
