"""Private parts of Ray Train: its controller, worker group, policies, process group and placement-group cleaner.

What is different here from what Ray Train does by itself:

1. The trainer takes a scaling policy and a failure policy (`glscl.training.driver.elastic` has this project's).
2. Where a worker dies in the last part of its group's start, Ray forgets the group but keeps its resources, and the
   next group waits for them for ever. Here they are given back (`TidyWorkerGroup`).
3. A decision that a policy put off leaves the controller deaf to calls. Here it pauses, so that calls get through.
4. Ray prints a traceback, and says that it means nothing, where its coordinator takes more than five seconds to answer.
   Here it is given `PATIENCE_S`, and the line has no traceback.
5. gloo takes the interface that the machine's name resolves to, which is often the loopback; here, that of the address
   by which the nodes of the cluster know each other.
6. The detached actor that gives a run's resources back when its driver is killed asks a dashboard at an address that it
   guesses whether the controller lives: where the machine has another cluster, that one's. It then stays for ever, or
   dies with a traceback beside a sound run. Here it asks the head of its own cluster, and is not started where the
   cluster ends with the driver.
7. Ray starts an actor that hands out its own data sets, of which there are none here.
8. Its controller prints a traceback of every error that a callback raises. Here what a user has to mend has none.
9. Its local mode, in which a training function runs in the process that calls it, forgets checkpoints. Here they are
   uploaded at once (`local_training`).
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import state
from ray.train import ControllerError, FailureConfig, Result, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks import placement_group_callback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution import failure_handling, scaling_policy
from ray.train.v2._internal.execution.controller import TrainController, placement_group_cleaner
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner
from ray.train.v2._internal.execution.failure_handling import FailureDecision as FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision as NoopDecision
from ray.train.v2._internal.execution.scaling_policy import ScalingDecision as ScalingDecision
from ray.train.v2._internal.execution.train_fn_utils import LocalTrainFnUtils, set_train_fn_utils
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.context import LocalTrainContext
from ray.util.state.exception import RayStateApiException

from glscl.errors import UserError
from glscl.system.ray_internals.cluster import replaced, use_interface_of_node

PATIENCE_S = 30.0  # seconds that Ray's coordinator of requests for nodes is given to answer
PAUSE_S = 1.0  # seconds until a decision that was put off is asked for again


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


for _module in (scaling_policy.autoscaling_coordinator_client, scaling_policy.elastic):
    _module.AUTOSCALING_REQUESTS_GET_TIMEOUT_S = PATIENCE_S
    logging.getLogger(_module.__name__).addFilter(_without_traceback)


def lacked_free_resources(error: BaseException) -> bool:
    """Whether a run failed because the nodes that are there had no free resources for its workers."""
    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


class ScalingPolicy(scaling_policy.ElasticScalingPolicy):  # type: ignore[misc]  # Ray's packages are not typed
    """Ray's elastic scaling policy, whose steps have public names here; a subclass makes the decisions.

    Args:
        scaling_config: Ray's.
        own_cluster: nothing else runs on the cluster, and no node joins it: nobody is asked for nodes.
    """

    def __init__(self, scaling_config: ScalingConfig, *, own_cluster: bool = False) -> None:
        super().__init__(scaling_config)
        self.own_cluster = own_cluster

    def _send_resource_request(self) -> None:
        if not self.own_cluster:
            super()._send_resource_request()

    def _maybe_send_resource_request(self) -> None:
        if not self.own_cluster:
            super()._maybe_send_resource_request()

    def _cancel_resource_request(self) -> None:
        if not self.own_cluster:
            super()._cancel_resource_request()

    def request_nodes(self) -> None:
        """Ask the autoscaler for nodes for the most workers, where that is due."""
        self._maybe_send_resource_request()

    def reserved_nodes(self) -> Mapping[str, Mapping[str, float]]:
        """Resources by node that the coordinator has reserved for this run."""
        if self.own_cluster:
            return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        return self._get_reserved_resources() or {}

    def resize(self, workers: int) -> ScalingDecision:
        """The decision to have so many workers."""
        return self._get_resize_decision(workers)


class FailurePolicy(failure_handling.DefaultFailurePolicy):  # type: ignore[misc]
    """Ray's failure policy, which counts; a subclass makes the decisions."""

    def is_retryable(self, error: BaseException) -> bool:
        """Whether Ray would try again after such an error, if the count allowed it."""
        return bool(self._is_retryable_error(error))


class TidyWorkerGroup(WorkerGroup):  # type: ignore[misc]
    """The workers, their processes and resources; all of it is gone when a start fails."""

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


class PatientController(TrainController):  # type: ignore[misc]
    """Runs the loop that asks the policies; hears calls while a decision is put off."""

    worker_group_cls = TidyWorkerGroup

    async def _step(self) -> Any:
        try:
            result = await super()._step()
        except UserError as error:  # what Ray wraps itself, it prints with a traceback first
            raise ControllerError(error) from error
        if result.next_state is result.previous_state:  # put off: let calls such as abort through meanwhile
            await asyncio.sleep(PAUSE_S)
        return result


class _NodeInterfaceBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_interface_of_node)
        super().on_start(worker_group, backend_config)


class NodeInterfaceConfig(TorchConfig):  # type: ignore[misc]
    """The process group of torch, over the interface by which the nodes know each other."""

    backend_cls = _NodeInterfaceBackend


def is_actor_alive(actor_id: str, timeout: float) -> bool:
    """Whether an actor of this process's own cluster lives; RayStateApiException: the head does not answer now."""
    try:
        return bool(state.actors(actor_id).get("State", "DEAD") != "DEAD")  # the head may have forgotten it
    except Exception as error:  # as many types as there are ways for a head to be away
        raise RayStateApiException(f"{type(error).__name__}: {error}") from error


class Cleaner(PlacementGroupCleaner):  # type: ignore[misc]
    """Removes a run's placement group once its controller is gone."""

    def _monitor_loop(self) -> None:
        with replaced(placement_group_cleaner, "is_actor_alive", is_actor_alive):
            super()._monitor_loop()

    def _exit(self) -> None:
        state.state.disconnect()  # its threads must not outlive what the process takes down
        super()._exit()


class CleanerCallback(PlacementGroupCleanerCallback):  # type: ignore[misc]
    """Starts a `Cleaner` with the controller."""

    def after_controller_start(self, train_run_context: Any) -> None:
        with replaced(placement_group_callback, "PlacementGroupCleaner", Cleaner):
            super().after_controller_start(train_run_context)


class PolicyTrainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` with one's own policies: for the number of workers and, made as the run begins, for failures."""

    def __init__(
        self,
        loop: Callable[[dict[str, Any]], Any],
        scaling_policy: ScalingPolicy,
        failure_policy: Callable[[FailureConfig], FailurePolicy],
        timeout_s: int,
        **options: Any,
    ) -> None:
        super().__init__(
            loop,
            scaling_config=scaling_policy.scaling_config,
            torch_config=NodeInterfaceConfig(timeout_s=timeout_s),
            **options,
        )
        self._scaling_policy, self._failure_policy = scaling_policy, failure_policy

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        arguments |= {
            "scaling_policy": self._scaling_policy,
            "failure_policy": self._failure_policy(self.run_config.failure_config),
        }
        with replaced(data_parallel_trainer, "TrainController", PatientController):
            return super()._initialize_and_run_controller(**arguments)

    def _create_default_callbacks(self) -> list[Any]:
        needless: tuple[type, ...] = (DatasetsCallback,)
        if self._scaling_policy.own_cluster:  # its resources end with the driver, whatever ends it
            needless += (PlacementGroupCleanerCallback,)
        with replaced(data_parallel_trainer, "PlacementGroupCleanerCallback", CleanerCallback):
            return [one for one in super()._create_default_callbacks() if not isinstance(one, needless)]


class _LocalContext(LocalTrainContext):  # type: ignore[misc]
    def get_storage(self) -> None:
        """Nowhere of Ray's: the function that uploads knows where."""


class _LocalTraining(LocalTrainFnUtils):  # type: ignore[misc]
    def __init__(self, name: str, uploaded: Callable[[str], object]) -> None:
        super().__init__(name)
        self._context = _LocalContext(name)
        self._uploaded = uploaded

    def report(self, metrics: dict[str, Any], checkpoint: Any = None, **options: Any) -> None:
        name = options.get("checkpoint_dir_name")
        if checkpoint is not None and name is not None:
            options["checkpoint_upload_fn"](checkpoint, name)
            self._uploaded(name)


@contextmanager
def local_training(name: str, uploaded: Callable[[str], object]) -> Iterator[None]:
    """Let a training function be called in this block as the only worker; ``uploaded`` is told names of checkpoints."""
    set_train_fn_utils(_LocalTraining(name, uploaded))
    try:
        yield
    finally:
        set_train_fn_utils(None)
