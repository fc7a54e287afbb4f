"""``glscl doctor``: whether a cluster is fit for a planned run. A table of checks, and exit status 0 or 1."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from pydantic import Field

from cluster.checks import (
    Check,
    check_clocks,
    check_dashboard,
    check_disk,
    check_gpus,
    check_network,
    check_shards,
    check_shared_memory,
    check_storage,
    check_storage_of_nodes,
    check_versions,
    guard,
)
from cluster.dashboard import dashboard_address
from cluster.nodes import (
    ANSWER_S,
    RING_S,
    ClusterNode,
    NodeReport,
    clock_offset,
    gather_answers,
    read_versions,
    start_actors,
)
from cluster.storage_probe import NETWORK, StorageProblem
from cluster.submit import Ending, Submit, submit
from glscl.options import Options
from glscl.reporting.console import print_table
from glscl.system import storage
from glscl.system.environment import TOKEN_KNOB
from glscl.system.nodes import check_resources
from glscl.system.session import ray_session
from glscl.training.options import Workers, fewest_and_most

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
    """Check, print the table, and say how many checks failed.

    Args:
        options: the planned run.
        words: the command line; with an address, it runs as a job on that cluster.
    """
    if options.address:
        return _check_from_outside(options, words)
    checks = []
    if options.storage:
        late = (f"{options.storage}: unreachable: ", NETWORK)
        checks.append(guard("storage", STORAGE_S, check_storage, options.storage, late=late))
    if options.shards:
        fewest, most = fewest_and_most(options.workers)
        numbers = (options.shards, fewest, options.loader_workers, most)
        checks.append(guard("shards", STORAGE_S, check_shards, *numbers))
    try:
        with ray_session(quiet=True):
            storage_works = any(check.name == "storage" and check.state == "ok" for check in checks)
            checks = [*_check_cluster(options, storage_works), *checks]
    except ConnectionError as error:  # Ray says no more than that after half a minute, though somebody has answered
        finding = f"{' '.join(str(error).split())}: a wrong or missing token, or another version of Ray"
        checks.insert(0, Check("cluster", "fail", finding, TOKEN_KNOB))
    except Exception as error:  # connecting failed; what is inside the block does not raise
        checks.insert(0, Check("cluster", "fail", f"{' '.join(str(error).split())[:400]}", "RAY_ADDRESS"))
    return _conclude(checks)


def _check_cluster(options: Doctor, storage_works: bool) -> list[Check]:
    """The checks that need a cluster."""
    import ray

    checks = [guard("cluster", options.wait_for_nodes_s + ANSWER_S, _check_resources, options)]
    nodes = start_actors(options.use_gpu)
    pending = {name: node.actor.report.remote() for name, node in nodes.items()}
    answers: dict[str, NodeReport | Exception] = gather_answers(pending)
    reports = {name: answer for name, answer in answers.items() if not isinstance(answer, Exception)}
    if silent := {name: answer for name, answer in answers.items() if isinstance(answer, Exception)}:
        text = "; ".join(f"{name}: {' '.join(str(answer).split())[:300]}" for name, answer in silent.items())
        knob = "install glscl there" + (", or wait until one of its GPUs is free" if options.use_gpu else "")
        checks.append(Check("nodes", "fail", text, knob))
    nodes = {name: nodes[name] for name in reports}
    if reports:
        declared = {name: int(node.resources.get("GPU", 0)) for name, node in nodes.items()}
        checks += [
            guard("versions", ANSWER_S, check_versions, reports, read_versions()),
            guard("GPUs", ANSWER_S, check_gpus, reports, declared, options.use_gpu),
            guard("network", 2 * ANSWER_S + RING_S, _check_network, nodes, options.use_gpu),
            guard("clocks", ANSWER_S, _check_clocks, nodes),
            guard("disk", ANSWER_S, check_disk, reports),
            guard("shared memory", ANSWER_S, check_shared_memory, reports),
        ]
    url = ray.init(ignore_reinit_error=True, logging_level="error").address_info["webui_url"]
    checks.append(guard("dashboard", ANSWER_S, check_dashboard, f"http://{url}"))
    if storage_works:
        checks.append(guard("storage of nodes", ANSWER_S, _check_storage_of_nodes, options.storage, nodes))
    return checks


def _check_resources(options: Doctor) -> Check:
    import ray

    fewest, most = fewest_and_most(options.workers)
    check_resources(fewest, 1.0, options.use_gpu, options.wait_for_nodes_s, most)
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
        answers = gather_answers(pending, ANSWER_S + RING_S)
    return check_network(answers, backend)


def _check_clocks(nodes: Mapping[str, ClusterNode]) -> Check:
    return check_clocks({name: clock_offset(node.actor) for name, node in nodes.items()})


def _check_storage_of_nodes(uri: str, nodes: Mapping[str, ClusterNode]) -> Check:
    uri = storage.resolve(uri)
    written = storage.join(uri, f".glscl-{uuid.uuid4().hex}")
    storage.write_bytes(written, b"")
    try:
        pending = {name: node.actor.storage_problem.remote(uri, written) for name, node in nodes.items()}
        answers: dict[str, StorageProblem | Exception | None] = gather_answers(pending, STORAGE_S)
    finally:
        storage.remove(written)
    return check_storage_of_nodes(uri, answers)


def _check_from_outside(options: Doctor, words: Sequence[str]) -> Ending:
    """Look at the dashboard from here; the rest of the command line runs on the cluster, as a job."""
    check = guard("dashboard", ANSWER_S, check_dashboard, dashboard_address(options.address))
    ending = _conclude([check])
    if ending.status:
        return ending
    remaining = iter(words)
    job = []
    for word in remaining:
        if word == "--address":
            next(remaining)
        elif not word.startswith("--address="):
            job.append(word)
    return submit(["doctor", *job], Submit(address=options.address))


def _conclude(checks: Sequence[Check]) -> Ending:
    """Print the table; the verdict counts the checks that failed."""
    print_table(
        ["check", "state", "found", "knob"], [[c.name, c.state, c.finding, c.knob] for c in checks], text_columns=4
    )
    failed = [check.name for check in checks if check.state == "fail"]
    warned = [check.name for check in checks if check.state == "warn"]
    text = f"{len(checks)} checks"
    text += f", {len(failed)} failed: {', '.join(failed)}" if failed else ", none failed"
    text += f"; to look at: {', '.join(warned)}" if warned else ""
    return Ending(1 if failed else 0, text)
