"""``glscl doctor``: whether a cluster is fit for a planned run. A table of checks, and exit status 0 or 1."""

import re
import uuid
from collections.abc import Mapping, Sequence
from itertools import pairwise

from pydantic import Field

from cluster import checks
from cluster.checks import Check, guard
from cluster.dashboard import dashboard_address
from cluster.nodes import ANSWER_S, RING_S, ClusterNode, NodeReport, clock_offsets, gather, read_versions, start_actors
from cluster.storage_probe import NETWORK, StorageProblem, shorten
from cluster.submit import Ending, Submit, submit
from glscl.options import Options
from glscl.reporting.console import print_table
from glscl.system import storage
from glscl.system.environment import TOKEN_KNOB
from glscl.system.nodes import check_resources
from glscl.system.session import ray_session
from glscl.training.options import Workers, fewest, most

STORAGE_S = 30.0
"""Seconds after which storage counts as unreachable."""


class Doctor(Options):
    """Check a cluster before money is spent: nodes, network, dashboard, storage, shards.

    Run it on the cluster, with the numbers of the run that is planned; or from outside with --address, then it runs
    there as a job. Exit status 0 if nothing failed (warnings may remain), 1 otherwise.
    """

    storage: str = ""
    """Folder or s3:// prefix of the runs: is listed, written, read and deleted in, from the driver and every node."""
    shards: tuple[str, ...] = ()
    """Training shard sets: are they there, and are they enough for the readers?"""
    workers: Workers = 1
    """Planned training.num_workers, a number or a range."""
    loader_workers: int = Field(default=2, ge=0)
    """Planned data.loader_workers."""
    use_gpu: bool = False
    """Training will use GPUs: then they are counted, and nodes talk through NCCL instead of gloo."""
    wait_for_nodes_s: float = Field(default=0.0, ge=0)
    """Seconds that an autoscaling cluster is given to bring nodes for these workers."""
    address: str = ""
    """Dashboard of a cluster to check from outside, http://HEAD:8265."""


def doctor(options: Doctor, words: Sequence[str]) -> Ending:
    """Check, print the table, and say how many checks failed; with an address, ``words`` run there as a job."""
    if options.address:
        return _check_from_outside(options, words)
    rows = []
    if options.storage:
        late = (f"{options.storage}: unreachable: ", NETWORK)
        rows.append(guard("storage", STORAGE_S, checks.check_storage, options.storage, late=late))
    if options.shards:
        numbers = (options.shards, fewest(options.workers), options.loader_workers, most(options.workers))
        rows.append(guard("shards", STORAGE_S, checks.check_shards, *numbers))
    try:
        with ray_session(quiet=True):
            storage_works = any(check.name == "storage" and check.state == "ok" for check in rows)
            rows = [*_check_cluster(options, storage_works), *rows]
    except ConnectionError as error:  # Ray says no more than that after half a minute, though somebody has answered
        finding = f"{' '.join(str(error).split())}: a wrong or missing token, or another version of Ray"
        rows.insert(0, Check("cluster", "fail", finding, TOKEN_KNOB))
    except Exception as error:  # connecting failed; what is inside the block does not raise
        rows.insert(0, Check("cluster", "fail", f"{' '.join(str(error).split())[:400]}", "RAY_ADDRESS"))
    return _conclude(rows)


def _check_cluster(options: Doctor, storage_works: bool) -> list[Check]:
    """The checks that need a cluster."""
    import ray

    rows = [guard("cluster", options.wait_for_nodes_s + ANSWER_S, _check_resources, options)]
    nodes = start_actors(options.use_gpu)
    pending = {name: node.actor.report.remote() for name, node in nodes.items()}
    answers: dict[str, NodeReport | Exception] = gather(pending)
    reports = {name: answer for name, answer in answers.items() if not isinstance(answer, Exception)}
    if silent := {name: answer for name, answer in answers.items() if isinstance(answer, Exception)}:
        text = "; ".join(f"{name}: {shorten(answer)}" for name, answer in silent.items())
        knob = "install glscl there" + (", or wait until one of its GPUs is free" if options.use_gpu else "")
        rows.append(Check("nodes", "fail", text, knob))
    nodes = {name: nodes[name] for name in reports}
    if reports:
        declared = {name: int(node.resources.get("GPU", 0)) for name, node in nodes.items()}
        rows += [
            guard("versions", ANSWER_S, checks.check_versions, reports, read_versions()),
            guard("GPUs", ANSWER_S, checks.check_gpus, reports, declared, options.use_gpu),
            guard("network", 2 * ANSWER_S + RING_S, _check_network, nodes, options.use_gpu),
            guard("clocks", ANSWER_S, lambda: checks.check_clocks(clock_offsets(nodes))),
            guard("disk", ANSWER_S, checks.check_disk, reports),
            guard("shared memory", ANSWER_S, checks.check_shared_memory, reports),
        ]
    url = ray.init(ignore_reinit_error=True, logging_level="error").address_info["webui_url"]
    rows.append(guard("dashboard", ANSWER_S, checks.check_dashboard, f"http://{url}"))
    if storage_works:
        rows.append(guard("storage of nodes", ANSWER_S, _check_storage_of_nodes, options.storage, nodes))
    return rows


def _check_resources(options: Doctor) -> Check:
    import ray

    wanted, wait_s = most(options.workers), options.wait_for_nodes_s
    check_resources(fewest(options.workers), 1.0, options.use_gpu, wait_s, wanted)
    total = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    return Check("cluster", "ok", f"nodes {nodes}, CPUs {total.get('CPU', 0):g}, GPUs {total.get('GPU', 0):g}")


def _check_network(nodes: Mapping[str, ClusterNode], use_gpu: bool) -> Check:
    """One rank on each node that training can use."""
    import ray

    kind, backend = ("GPU", "nccl") if use_gpu else ("CPU", "gloo")
    actors = {name: node.actor for name, node in nodes.items() if node.resources.get(kind)}
    answers: dict[str, float | Exception] = {}
    if actors:
        address = ray.get(next(iter(actors.values())).meeting_point.remote(), timeout=ANSWER_S)
        pending = {
            name: actor.all_reduce.remote(rank, len(actors), address, backend)
            for rank, (name, actor) in enumerate(actors.items())
        }
        answers = gather(pending, ANSWER_S + RING_S)
    return checks.check_network(answers, backend)


def _check_storage_of_nodes(uri: str, nodes: Mapping[str, ClusterNode]) -> Check:
    uri = storage.resolve(uri)
    written = storage.join(uri, f".glscl-{uuid.uuid4().hex}")
    storage.write_bytes(written, b"")
    try:
        pending = {name: node.actor.storage_problem.remote(uri, written) for name, node in nodes.items()}
        answers: dict[str, StorageProblem | Exception | None] = gather(pending, STORAGE_S)
    finally:
        storage.remove(written)
    return checks.check_storage_of_nodes(uri, answers)


def _check_from_outside(options: Doctor, words: Sequence[str]) -> Ending:
    """Look at the dashboard from here; the rest of the command line runs on the cluster, as a job."""
    ending = _conclude([guard("dashboard", ANSWER_S, checks.check_dashboard, dashboard_address(options.address))])
    if ending.status:
        return ending
    pairs = pairwise(["", *words])
    job = [word for before, word in pairs if before != "--address" and not re.match("--address(=|$)", word)]
    return submit(["doctor", *job], Submit(address=options.address))


def _conclude(rows: Sequence[Check]) -> Ending:
    """Print the table; the verdict counts the checks that failed."""
    cells = [[row.name, row.state, row.finding, row.knob] for row in rows]
    print_table(["check", "state", "found", "knob"], cells, text_columns=4)
    failed = [row.name for row in rows if row.state == "fail"]
    warned = [row.name for row in rows if row.state == "warn"]
    text = f"{len(rows)} checks, " + (f"{len(failed)} failed: {', '.join(failed)}" if failed else "none failed")
    return Ending(1 if failed else 0, text + (f"; to look at: {', '.join(warned)}" if warned else ""))
