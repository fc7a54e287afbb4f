"""``glscl doctor``: is this cluster fit for the run that is planned? A table, and exit status 0 or 1."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from cluster.checks import (
    NETWORK,
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
from cluster.nodes import ANSWER_S, RING_S, NodeReport, clock_offset, gather, start_nodes, versions
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
    """Check, print the table, and say how many checks failed.

    Args:
        options: what is planned.
        words: the command line that gave them, which is what runs on a cluster that is checked from outside.
    """
    if options.address:
        return _from_outside(options, words)
    checks = []
    if options.storage:
        late = (f"{options.storage}: unreachable: ", NETWORK)
        checks.append(guard("storage", STORAGE_S, check_storage, options.storage, late=late))
    if options.shards:
        numbers = (options.shards, fewest(options.workers), options.loader_workers, most(options.workers))
        checks.append(guard("shards", STORAGE_S, check_shards, *numbers))
    try:
        with ray_session(quiet=True):
            checks = [*_of_cluster(options, storage_works=_fine(checks, "storage")), *checks]
    except ConnectionError as error:  # Ray says no more than that after half a minute, though somebody has answered
        found = f"{' '.join(str(error).split())}: a wrong or missing token, or another version of Ray"
        checks.insert(0, Check("cluster", "fail", found, TOKEN_KNOB))
    except Exception as error:  # connecting failed; what is inside the block does not raise
        checks.insert(0, Check("cluster", "fail", f"{' '.join(str(error).split())[:400]}", "RAY_ADDRESS"))
    return _ending(checks)


def _fine(checks: Sequence[Check], name: str) -> bool:
    return any(check.name == name and check.state == "ok" for check in checks)


def _of_cluster(options: Doctor, storage_works: bool) -> list[Check]:
    """The checks that need a cluster."""
    import ray

    found = [guard("cluster", options.wait_for_nodes_s + ANSWER_S, _resources, options)]
    actors, resources = start_nodes(options.use_gpu)
    answers = gather({node: actor.report.remote() for node, actor in actors.items()})
    silent = {node: answer for node, answer in answers.items() if isinstance(answer, Exception)}
    if silent:
        text = "; ".join(f"{node}: {' '.join(str(answer).split())[:300]}" for node, answer in silent.items())
        knob = "install glscl there" + (", or wait until one of its GPUs is free" if options.use_gpu else "")
        found.append(Check("nodes", "fail", text, knob))
    actors = {node: actor for node, actor in actors.items() if node not in silent}
    reports: dict[str, NodeReport] = {node: answers[node] for node in actors}
    if reports:
        declared = {node: int(resources[node].get("GPU", 0)) for node in reports}
        found += [
            guard("versions", ANSWER_S, check_versions, reports, versions()),
            guard("GPUs", ANSWER_S, check_gpus, reports, declared, options.use_gpu),
            guard("network", 2 * ANSWER_S + RING_S, _network, actors, resources, options.use_gpu),
            guard("clocks", ANSWER_S, _clocks, actors),
            guard("disk", ANSWER_S, check_disk, reports),
            guard("shared memory", ANSWER_S, check_shared_memory, reports),
        ]
    url = ray.init(ignore_reinit_error=True, logging_level="error").address_info["webui_url"]
    found.append(guard("dashboard", ANSWER_S, check_dashboard, f"http://{url}"))
    if storage_works:
        found.append(guard("storage of nodes", ANSWER_S, _storage_of_nodes, options.storage, actors))
    return found


def _resources(options: Doctor) -> Check:
    import ray

    wanted, wait_s = most(options.workers), options.wait_for_nodes_s
    check_resources(fewest(options.workers), 1.0, options.use_gpu, wait_s, wanted)
    there = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    return Check("cluster", "ok", f"nodes {nodes}, CPUs {there.get('CPU', 0):g}, GPUs {there.get('GPU', 0):g}")


def _network(actors: dict[str, Any], resources: dict[str, dict[str, float]], use_gpu: bool) -> Check:
    """One rank on each node that training can use."""
    import ray

    kind, backend = ("GPU", "nccl") if use_gpu else ("CPU", "gloo")
    training = [node for node in actors if resources[node].get(kind)]
    answers: dict[str, Any] = {}
    if training:
        address = ray.get(actors[training[0]].meeting_point.remote(), timeout=ANSWER_S)
        pending = {
            node: actors[node].all_reduce.remote(rank, len(training), address, backend)
            for rank, node in enumerate(training)
        }
        answers = gather(pending, ANSWER_S + RING_S)
    return check_network(answers, backend)


def _clocks(actors: dict[str, Any]) -> Check:
    return check_clocks({node: clock_offset(actor) for node, actor in actors.items()})


def _storage_of_nodes(uri: str, actors: dict[str, Any]) -> Check:
    uri = storage.resolve(uri)
    mine = storage.join(uri, f".glscl-{uuid.uuid4().hex}")
    storage.write_bytes(mine, b"")
    try:
        answers = gather({node: actor.storage_problem.remote(uri, mine) for node, actor in actors.items()}, STORAGE_S)
    finally:
        storage.remove(mine)
    return check_storage_of_nodes(uri, answers)


def _from_outside(options: Doctor, words: Sequence[str]) -> Ending:
    """Look at the dashboard from here; the rest of the command line runs on the cluster, as a job."""
    check = guard("dashboard", ANSWER_S, check_dashboard, dashboard_address(options.address))
    ending = _ending([check])
    if ending.status:
        return ending
    rest = iter(words)
    there = []
    for word in rest:
        if word == "--address":
            next(rest)
        elif not word.startswith("--address="):
            there.append(word)
    return submit(["doctor", *there], Submit(address=options.address))


def _ending(checks: Sequence[Check]) -> Ending:
    print_table(
        ["check", "state", "found", "knob"], [[c.name, c.state, c.found, c.knob] for c in checks], text_columns=4
    )
    failed = [check.name for check in checks if check.state == "fail"]
    warned = [check.name for check in checks if check.state == "warn"]
    text = f"{len(checks)} checks"
    text += f", {len(failed)} failed: {', '.join(failed)}" if failed else ", none failed"
    text += f"; to look at: {', '.join(warned)}" if warned else ""
    return Ending(1 if failed else 0, text)
