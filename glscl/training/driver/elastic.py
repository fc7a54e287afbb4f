"""Elastic scaling and failure policy of the Ray Train worker group.

What Ray Train does by itself, and what is different here:

1. Ray starts as many workers of a range as fit; a run here has the most of its usable world sizes that fit.
2. Ray looks every minute whether more fit, and restarts at once. Here a group that works only grows, right after a
   checkpoint of all its ranks, and where that saves more than a restart costs (``training.restart_cost_s``).
3. Ray waits for missing nodes for ever, with a core at full load and deaf to Ctrl-C, or gives up after a few minutes.
   Here the run says what it waits for, and ends after ``training.wait_for_nodes_s`` with the options to change.
4. Ray counts a lost node as a failure of the run unless the cloud had announced it. Here it does not count.

`glscl.system.ray_internals.train` fits these policies into Ray Train.
"""

import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig

from glscl.errors import UserError
from glscl.system.nodes import capacity_of_nodes, missing_resources
from glscl.system.ray_internals.train import (
    FailureDecision,
    FailurePolicy,
    NoopDecision,
    PolicyTrainer,
    ScalingDecision,
    ScalingPolicy,
    lacked_free_resources,
)
from glscl.system.session import is_own
from glscl.training.options import TrainingConfig
from glscl.training.saving import SECONDS_LEFT

ANSWER_S = 3.0  # in which a node that is there takes a connection
REPEAT_S = 30.0  # between two lines that say what a run waits for
SHARED_WAIT_S = 240.0  # least time that a run waits for room which is there and in use
IN_USE = "the cluster has the room, but something else uses it"


def present_nodes() -> dict[str, dict[str, float]]:
    """Resources by id of the nodes that answer; Ray itself notices a machine that is gone only after a while."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(32) as pool:
        answers = pool.map(_answers, nodes)
    return {node["NodeID"]: node["Resources"] for node, answered in zip(nodes, answers, strict=True) if answered}


def lost_nodes() -> dict[str, str]:
    """Addresses by id of the nodes that are gone, whether Ray has noticed or not."""
    present = present_nodes()
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] not in present}


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


class ElasticPolicy(ScalingPolicy):
    """Decides how many workers there are; ``world_sizes`` are the numbers that the run can have, rising."""

    def __init__(
        self,
        scaling_config: ScalingConfig,
        training: TrainingConfig,
        world_sizes: tuple[int, ...],
        *,
        own_cluster: bool = False,
    ) -> None:
        super().__init__(scaling_config, own_cluster=own_cluster)
        self._training = training
        self._world_sizes = world_sizes
        self._waits_since: float | None = None
        self._last_line_at = float("-inf")
        self._group_start: float | None = None
        self._reports: Counter[int] = Counter()
        self._saved = 0

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """The most workers that there is room for, or wait for nodes. Raises `UserError`: they have not come."""
        self.request_nodes()
        present = present_nodes()
        if not self._largest(present.values()):
            return self._wait(present.values())
        if self._training.is_elastic:  # a share of the cluster, if other runs want one too
            reserved = self.reserved_nodes()
            size = self._largest(reserved[node] for node in reserved if node in present)
            if not size:
                return self._pause("the nodes are reserved for other runs")
        else:
            size = self._world_sizes[0]
        self._waits_since = None
        self._last_line_at = float("-inf")
        return self.resize(size)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Grow right after a checkpoint, where it pays."""
        self.request_nodes()
        if worker_group_state.start_time != self._group_start:
            self._group_start = worker_group_state.start_time
            self._reports.clear()
            self._saved = 0
        left_s = self._seconds_left(worker_group_status.worker_statuses)
        now = worker_group_state.num_workers
        if left_s is None or now == self._world_sizes[-1]:
            return NoopDecision()
        size = self._largest(self.reserved_nodes().values())
        saves = left_s * (1 - now / size) if size else 0.0
        if size <= now or saves <= self._training.restart_cost_s:
            return NoopDecision()
        print(f"nodes have joined: from {now} to {size} workers, which saves about {saves:.0f} s", flush=True)
        return self.resize(size)

    def _largest(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """The largest usable number of workers that these resources hold; 0 if none."""
        holds = capacity_of_nodes(nodes, self._training.cpus, self._training.on_gpu)
        return max((size for size in self._world_sizes if size <= holds), default=0)

    def _seconds_left(self, statuses: Mapping[int, Any]) -> float | None:
        """The rest of the run, if this poll has brought the last rank's report of a checkpoint."""
        left: float | None = None
        for rank, status in statuses.items():
            if status.training_report is not None:
                self._reports[rank] += 1
                left = status.training_report.metrics[SECONDS_LEFT]
        saved = min(self._reports[rank] for rank in statuses)
        whole = saved > self._saved
        self._saved = saved
        return left if whole else None

    def _wait(self, nodes: Collection[Mapping[str, float]]) -> ScalingDecision:
        now = time.monotonic()
        training = self._training
        reason = missing_resources(self._world_sizes[0], training.cpus, training.on_gpu, nodes)
        self._waits_since = self._waits_since or now
        if now - self._waits_since >= training.wait_for_nodes_s:
            raise UserError(
                f"{reason}; nodes that the run had are gone, and the same command goes on from the last checkpoint"
            )
        return self._pause(f"{reason}; waiting up to {training.wait_for_nodes_s:g} s for nodes")

    def _pause(self, reason: str) -> ScalingDecision:
        now = time.monotonic()
        if now - self._last_line_at >= REPEAT_S:
            self._last_line_at = now
            print(f"no workers: {reason}", flush=True)
        return NoopDecision()


class NodeFailurePolicy(FailurePolicy):
    """Decides whether to go on after a failure."""

    def __init__(self, failure_config: FailureConfig, wait_s: float) -> None:
        super().__init__(failure_config)
        self._known = set(lost_nodes())
        self._wait_s = max(wait_s, SHARED_WAIT_S)
        self._in_use_since: float | None = None

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Retry after a lost node, while room is in use, or ``training.max_failures`` times; else raise."""
        lost = {node: address for node, address in lost_nodes().items() if node not in self._known}
        if lost and self.is_retryable(training_failed_error):
            self._known |= set(lost)
            where = ", ".join(sorted(lost.values()))
            print(f"lost the node at {where}: the run goes on from its last checkpoint", flush=True)
            return FailureDecision.RETRY
        if lacked_free_resources(training_failed_error):
            now = time.monotonic()
            self._in_use_since = self._in_use_since or now
            if now - self._in_use_since >= self._wait_s:
                return FailureDecision.RAISE
            print(f"no workers: {IN_USE}; waiting up to {self._wait_s:g} s", flush=True)
            return FailureDecision.RETRY
        self._in_use_since = None
        return super().make_decision(training_failed_error)


def build_trainer(
    loop: Callable[[dict[str, Any]], Any],
    training: TrainingConfig,
    world_sizes: tuple[int, ...],
    timeout_s: int,
    **options: Any,
) -> PolicyTrainer:
    """A trainer with these policies and `TorchTrainer`'s options; torch gives a collective up after ``timeout_s``."""
    resources = {"CPU": training.cpus} | ({"GPU": 1.0} if training.on_gpu else {})
    scaling = ScalingConfig(
        num_workers=(world_sizes[0], world_sizes[-1]), use_gpu=training.on_gpu, resources_per_worker=resources
    )
    scaling_policy = ElasticPolicy(scaling, training, world_sizes, own_cluster=is_own())
    failure_policy = partial(NodeFailurePolicy, wait_s=training.wait_for_nodes_s)
    return PolicyTrainer(loop, scaling_policy, failure_policy, timeout_s, **options)
