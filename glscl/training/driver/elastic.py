"""The worker group under Ray Train: how many workers there are, and whose fault it is that some are gone.

What Ray Train does by itself, and what is different here:

1. Ray starts as many workers of a range as fit; a run here has the most of its usable sizes (`sizes`) that fit.
2. Ray looks every minute whether more fit, and restarts at once. Here a group that works is only ever replaced by a
   larger one, as soon as a checkpoint of all its ranks is there, so that few steps are done twice, and only where that
   saves more than a restart costs (``training.restart_cost_s``).
3. Ray waits for missing nodes for ever, with a core at full load and deaf to Ctrl-C, or gives up after a few attempts
   of a minute each, also where only another run uses them. Here the run says what it waits for, and ends after
   ``training.wait_for_nodes_s`` with the knobs.
4. Ray counts a lost node as a failure of the run unless the cloud had announced it. Here it does not count.
5. gloo takes the interface that the machine's name resolves to, which is often the loopback; here, that of the address
   by which the nodes of the cluster know each other.
6. Where a worker dies in the last part of its group's start, Ray forgets the group but keeps its room, and the next one
   waits for that room for ever. Here the room is given back.

With `glscl.training.driver.cleaner` the module on private parts of Ray Train; ``tests/training/test_elastic.py`` says
so when they change.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import ray
from ray.train import FailureConfig, Result, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ScalingDecision,
    autoscaling_coordinator_client,
    elastic,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api import data_parallel_trainer

from glscl.errors import UserError
from glscl.system.nodes import capacity_of_nodes, missing_resources
from glscl.system.session import use_interface_of_node
from glscl.training.driver.cleaner import CleanerCallback
from glscl.training.options import TrainingConfig

SECONDS_LEFT = "seconds_left"
"""Key of a checkpoint's report: how long the rest of the run will take at this number of workers."""
ANSWER_S = 3.0
"""Seconds in which a node that is there takes a connection."""
REPEAT_S = 30.0
"""Seconds between two lines that say what a run waits for."""
SHARED_WAIT_S = 240.0
"""Least seconds that a run waits for room which is there and in use."""
PATIENCE_S = 30.0
"""Seconds that Ray's coordinator of requests for nodes is given to answer."""
PAUSE_S = 1.0
"""Seconds until a decision that was put off is asked for again."""


IN_USE = "the cluster has the room, but something else uses it"


def is_in_use(error: BaseException) -> bool:
    """Whether a run failed because the nodes that are there had no free room for its workers."""
    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def present_nodes() -> dict[str, dict[str, float]]:
    """Resources by id of the nodes that answer; Ray itself notices a machine that is gone only after a while."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with ThreadPoolExecutor(32) as pool:
        answers = pool.map(_answers, nodes)
    return {node["NodeID"]: node["Resources"] for node, there in zip(nodes, answers, strict=True) if there}


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


def _one_line_only(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


# Ray prints a traceback, and says that it means nothing, where its coordinator takes more than five seconds to answer.
for _module in (autoscaling_coordinator_client, elastic):
    _module.AUTOSCALING_REQUESTS_GET_TIMEOUT_S = PATIENCE_S
    logging.getLogger(_module.__name__).addFilter(_one_line_only)


class NodesPolicy(ElasticScalingPolicy):  # type: ignore[misc]  # Ray's packages are not typed
    """Decides how many workers there are.

    Args:
        scaling_config: Ray's.
        training: of the run.
        sizes: numbers of workers that the run can have, rising.
    """

    def __init__(self, scaling_config: ScalingConfig, training: TrainingConfig, sizes: tuple[int, ...]) -> None:
        super().__init__(scaling_config)
        self._training = training
        self._sizes = sizes
        self._waits_since: float | None = None
        self._said = float("-inf")
        self._group_start: float | None = None
        self._reports: Counter[int] = Counter()
        self._saved = 0

    def _get_num_workers_for_resource_request(self) -> int:
        return self._sizes[-1]

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """The most workers that there is room for, or wait for nodes.

        Raises:
            UserError: they have not come.
        """
        self._maybe_send_resource_request()
        present = present_nodes()
        if not self._largest(present.values()):
            return self._wait(present.values())
        if self._training.is_elastic:  # a share of the cluster, if other runs want one too
            reserved = self._get_reserved_resources() or {}
            size = self._largest(reserved[node] for node in reserved if node in present)
            if not size:
                return self._pause("the nodes are reserved for other runs")
        else:
            size = self._sizes[0]
        self._waits_since = None
        self._said = float("-inf")
        return self._get_resize_decision(size)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Grow right after a checkpoint, where it pays."""
        self._maybe_send_resource_request()
        if worker_group_state.start_time != self._group_start:
            self._group_start = worker_group_state.start_time
            self._reports.clear()
            self._saved = 0
        left_s = self._seconds_left(worker_group_status.worker_statuses)
        now = worker_group_state.num_workers
        if left_s is None or now == self._sizes[-1]:
            return NoopDecision()
        size = self._largest((self._get_reserved_resources() or {}).values())
        saves = left_s * (1 - now / size) if size else 0.0
        if size <= now or saves <= self._training.restart_cost_s:
            return NoopDecision()
        print(f"nodes have joined: from {now} to {size} workers, which saves about {saves:.0f} s", flush=True)
        return self._get_resize_decision(size)

    def _largest(self, nodes: Iterable[Mapping[str, float]]) -> int:
        """The largest usable number of workers that these resources hold; 0 if none."""
        holds = capacity_of_nodes(nodes, self._training.cpus, self._training.on_gpu)
        return max((size for size in self._sizes if size <= holds), default=0)

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
        reason = missing_resources(self._sizes[0], training.cpus, training.on_gpu, nodes)
        self._waits_since = self._waits_since or now
        if now - self._waits_since >= training.wait_for_nodes_s:
            raise UserError(
                f"{reason}; nodes that the run had are gone, and the same command goes on from the last checkpoint"
            )
        return self._pause(f"{reason}; waiting up to {training.wait_for_nodes_s:g} s for nodes")

    def _pause(self, reason: str) -> ScalingDecision:
        now = time.monotonic()
        if now - self._said >= REPEAT_S:
            self._said = now
            print(f"no workers: {reason}", flush=True)
        return NoopDecision()


class LossPolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Decides whether to go on after a failure.

    Always if a node is lost, for a time if another run uses the room, else ``training.max_failures`` times.
    """

    def __init__(self, failure_config: FailureConfig, wait_s: float) -> None:
        super().__init__(failure_config)
        self._known = set(lost_nodes())
        self._wait_s = max(wait_s, SHARED_WAIT_S)
        self._in_use_since: float | None = None

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Retry or raise."""
        lost = {node: address for node, address in lost_nodes().items() if node not in self._known}
        if lost and self._is_retryable_error(training_failed_error):
            self._known |= set(lost)
            where = ", ".join(sorted(lost.values()))
            print(f"lost the node at {where}: the run goes on from its last checkpoint", flush=True)
            return FailureDecision.RETRY
        if is_in_use(training_failed_error):
            now = time.monotonic()
            self._in_use_since = self._in_use_since or now
            if now - self._in_use_since >= self._wait_s:
                return FailureDecision.RAISE
            print(f"no workers: {IN_USE}; waiting up to {self._wait_s:g} s", flush=True)
            return FailureDecision.RETRY
        self._in_use_since = None
        return super().make_decision(training_failed_error)


class Group(WorkerGroup):  # type: ignore[misc]
    """The workers, their processes and their room; all of it is gone when a start fails."""

    def _start(self) -> None:
        try:
            super()._start()
        except Exception as error:
            if self.has_started():
                try:
                    self.shutdown()
                except Exception as later:  # the first reason decides whether the run is tried again
                    error.add_note(f"ending the group failed too: {later!r}")
            raise


class Controller(TrainController):  # type: ignore[misc]
    """Runs the loop that asks the policies; hears calls while a decision is put off."""

    worker_group_cls = Group

    async def _step(self) -> Any:
        result = await super()._step()
        if result.next_state is result.previous_state:  # put off: let calls such as abort through meanwhile
            await asyncio.sleep(PAUSE_S)
        return result


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_interface_of_node)
        super().on_start(worker_group, backend_config)


@dataclass
class Processes(TorchConfig):  # type: ignore[misc]
    """The process group of torch, over the interface by which the nodes know each other."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """What sets it up."""
        return _Backend


class Trainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` with these policies.

    Args:
        loop: what every worker runs.
        training: of the run.
        sizes: numbers of workers that the run can have, rising.
        timeout_s: after which torch gives a collective up.
        options: of `TorchTrainer`.
    """

    def __init__(
        self,
        loop: Callable[[dict[str, Any]], Any],
        training: TrainingConfig,
        sizes: tuple[int, ...],
        timeout_s: int,
        **options: Any,
    ) -> None:
        resources = {"CPU": training.cpus} | ({"GPU": 1.0} if training.on_gpu else {})
        scaling = ScalingConfig(
            num_workers=(sizes[0], sizes[-1]), use_gpu=training.on_gpu, resources_per_worker=resources
        )
        super().__init__(loop, scaling_config=scaling, torch_config=Processes(timeout_s=timeout_s), **options)
        self._policy = NodesPolicy(scaling, training, sizes)
        self._wait_s = training.wait_for_nodes_s

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        losses = LossPolicy(self.run_config.failure_config, self._wait_s)
        parts |= {"scaling_policy": self._policy, "failure_policy": losses}
        with patch.object(data_parallel_trainer, "TrainController", Controller):
            return super()._initialize_and_run_controller(**parts)

    def _create_default_callbacks(self) -> list[Any]:
        with patch.object(data_parallel_trainer, "PlacementGroupCleanerCallback", CleanerCallback):
            return list(super()._create_default_callbacks())
