"""The policies stand on private parts of Ray Train: these tests fail when it changes them."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller import TrainController, placement_group_cleaner
from ray.train.v2._internal.execution.controller.state import InitializingState, RunningState
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api import data_parallel_trainer
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from glscl.errors import UserError
from glscl.system.ray_internals import train as internals
from glscl.training.driver import elastic, launch
from glscl.training.driver.elastic import ElasticPolicy, NodeFailurePolicy, build_trainer
from glscl.training.options import TrainingConfig
from glscl.training.saving import SECONDS_LEFT

Nodes = dict[str, dict[str, float]]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """The cluster: resources by id; who is not in it does not answer."""
    there: Nodes = {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}
    monkeypatch.setattr(elastic, "present_nodes", lambda: dict(there))
    known = [{"NodeID": name, "NodeManagerAddress": f"10.0.0.{name}", "Alive": True} for name in "ab"]
    monkeypatch.setattr("ray.nodes", lambda: [node | {"Resources": there.get(node["NodeID"], {})} for node in known])
    return there


def policy(nodes: Nodes, sizes: tuple[int, ...], reserved: Nodes | None = None, **training: Any) -> ElasticPolicy:
    options = TrainingConfig(num_workers=sizes[0] if len(sizes) == 1 else (sizes[0], sizes[-1]), **training)
    made = ElasticPolicy(ScalingConfig(num_workers=(sizes[0], sizes[-1])), options, sizes)
    # The coordinator is Ray's actor, which asks for and shares out nodes.
    made._maybe_send_resource_request = lambda: None
    made._get_reserved_resources = lambda: nodes if reserved is None else reserved
    return made


def test_the_most_usable_workers_are_started(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    assert policy(nodes, (1, 2, 4)).make_decision_for_non_running_worker_group().num_workers == 4
    del nodes["b"]["CPU"]
    nodes["b"]["CPU"] = 1.0
    assert policy(nodes, (1, 2, 4)).make_decision_for_non_running_worker_group().num_workers == 2  # 3 are not usable
    assert policy(nodes, (1, 2, 4))._get_num_workers_for_resource_request() == 4
    shared = policy(nodes, (1, 2, 4), reserved={"a": {"CPU": 1.0}})
    assert shared.make_decision_for_non_running_worker_group().num_workers == 1
    silent = policy(nodes, (1, 2, 4), reserved={"a": {"CPU": 1.0}, "gone": {"CPU": 8.0}})
    assert silent.make_decision_for_non_running_worker_group().num_workers == 1
    assert capsys.readouterr().out == ""
    taken = policy(nodes, (1, 2, 4), reserved={})
    assert isinstance(taken.make_decision_for_non_running_worker_group(), NoopDecision)
    assert capsys.readouterr().out == "no workers: the nodes are reserved for other runs\n"


@pytest.mark.parametrize("sizes", [(4,), (4, 8)])
def test_missing_nodes_are_waited_for_and_then_given_up(
    sizes: tuple[int, ...], nodes: Nodes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(elastic.time, "monotonic", lambda: clock.now)
    waits = policy(nodes, sizes, wait_for_nodes_s=60)
    lost = nodes.pop("b")
    for clock.now in (100.0, 110.0, 135.0):
        assert isinstance(waits.make_decision_for_non_running_worker_group(), NoopDecision)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert said[0].startswith("no workers: 4 workers need 4 CPU (there: 2): lower training.num_workers")
    assert said[0].endswith("waiting up to 60 s for nodes")
    nodes["b"] = lost
    assert waits.make_decision_for_non_running_worker_group().num_workers == 4
    del nodes["b"]
    clock.now = 200.0
    assert isinstance(waits.make_decision_for_non_running_worker_group(), NoopDecision)  # a new loss, a new wait
    clock.now = 261.0
    with pytest.raises(UserError, match=r"there: 2\).*wait_for_nodes_s.*the same command goes on"):
        waits.make_decision_for_non_running_worker_group()


def status(*reports: float | None) -> Any:
    """A poll: what each rank reports as left of the run, if it has just saved a checkpoint."""
    given = {
        rank: SimpleNamespace(training_report=None if left is None else SimpleNamespace(metrics={SECONDS_LEFT: left}))
        for rank, left in enumerate(reports)
    }
    return SimpleNamespace(worker_statuses=given)


def test_growth_comes_right_after_a_checkpoint_of_all_ranks(nodes: Nodes) -> None:
    grows = policy(nodes, (1, 2, 4), restart_cost_s=60)
    group = SimpleNamespace(num_workers=2, start_time=1.0)
    decide = grows.make_decision_for_running_worker_group
    assert isinstance(decide(group, status(None, None)), NoopDecision)
    assert isinstance(decide(group, status(1000.0, None)), NoopDecision)  # half a checkpoint
    decision = decide(group, status(None, 1000.0))
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == 4
    later = SimpleNamespace(num_workers=4, start_time=2.0)
    assert isinstance(decide(later, status(1000.0, 1000.0, 1000.0, 1000.0)), NoopDecision)  # no more than 4


def test_growth_has_to_pay_and_a_working_group_never_shrinks(nodes: Nodes) -> None:
    group = SimpleNamespace(num_workers=2, start_time=1.0)
    dear = policy(nodes, (1, 2, 4), restart_cost_s=60)
    assert isinstance(dear.make_decision_for_running_worker_group(group, status(120.0, 120.0)), NoopDecision)
    assert isinstance(dear.make_decision_for_running_worker_group(group, status(121.0, 121.0)), ResizeDecision)
    last = policy(nodes, (1, 2, 4), restart_cost_s=0)
    assert isinstance(last.make_decision_for_running_worker_group(group, status(0.0, 0.0)), NoopDecision)
    nodes["b"]["CPU"] = nodes["a"]["CPU"] = 0.5
    less = policy(nodes, (1, 2, 4), restart_cost_s=0)
    assert isinstance(less.make_decision_for_running_worker_group(group, status(9e9, 9e9)), NoopDecision)


def test_the_loss_of_a_node_is_not_a_failure_of_the_run(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    losses = NodeFailurePolicy(FailureConfig(max_failures=1), 0)
    failure = WorkerGroupError("rank 0", {0: RayActorError()})
    del nodes["b"]
    assert losses.make_decision(failure) == FailureDecision.RETRY
    assert "lost the node at 10.0.0.b" in capsys.readouterr().out
    assert losses.make_decision(failure) == FailureDecision.RETRY  # the one that the run is allowed
    assert losses.make_decision(failure) == FailureDecision.RAISE
    del nodes["a"]
    assert losses.make_decision(ControllerError(UserError("no nodes"))) == FailureDecision.RAISE


@pytest.mark.parametrize(("wait_s", "least_s"), [(0, elastic.SHARED_WAIT_S), (3600, 3600)])
def test_room_that_another_run_uses_is_waited_for(
    wait_s: float, least_s: float, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(elastic.time, "monotonic", lambda: clock.now)
    losses = NodeFailurePolicy(FailureConfig(max_failures=0, controller_failure_limit=0), wait_s)
    in_use = ControllerError(WorkerGroupStartupTimeoutError(2))
    for clock.now in (100.0, 160.0, 99.0 + least_s):
        assert losses.make_decision(in_use) == FailureDecision.RETRY
    assert f"something else uses it; waiting up to {least_s:g} s" in capsys.readouterr().out
    clock.now = 100.0 + least_s
    assert losses.make_decision(in_use) == FailureDecision.RAISE
    said = launch._explain_failure(in_use, SimpleNamespace(failure=lambda: None), "/runs")  # type: ignore[arg-type]
    assert isinstance(said, UserError)
    assert "something else uses it: wait for its end, lower training.num_workers or raise" in str(said)
    assert losses.make_decision(WorkerGroupError("rank 0", {0: RayActorError()})) == FailureDecision.RAISE
    assert losses.make_decision(in_use) == FailureDecision.RETRY, "the run has worked in between"


def test_a_node_that_is_gone_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        there, gone = server.getsockname()[1], other.getsockname()[1]
        known = [
            {
                "NodeID": name,
                "NodeManagerAddress": "127.0.0.1",
                "NodeManagerPort": port,
                "Alive": alive,
                "Resources": {},
            }
            for name, port, alive in (("there", there, True), ("gone", gone, True), ("dead", there, False))
        ]
        monkeypatch.setattr("ray.nodes", lambda: known)
        other.close()
        assert elastic.present_nodes() == {"there": {}}
        assert elastic.lost_nodes() == {"gone": "127.0.0.1", "dead": "127.0.0.1"}


def test_ray_is_given_these_policies(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def start(_: Any, **parts: Any) -> Any:
        given.update(parts, controller=data_parallel_trainer.TrainController)
        return SimpleNamespace(error=None)

    monkeypatch.setattr(DataParallelTrainer, "_initialize_and_run_controller", start)
    monkeypatch.setattr(data_parallel_trainer, "ObjectRefWrapper", lambda value: value)  # it starts Ray
    training = TrainingConfig(num_workers=(2, 9), cpus_per_worker=2)
    trainer = build_trainer(print, training, (2, 4, 8), timeout_s=1800, train_loop_config={})
    trainer.fit()
    assert not ray.is_initialized()
    assert isinstance(given["scaling_policy"], ElasticPolicy)
    assert given["scaling_policy"].scaling_config.num_workers == (2, 8)
    assert given["scaling_policy"].scaling_config.resources_per_worker == {"CPU": 2}
    assert isinstance(given["failure_policy"], NodeFailurePolicy)
    assert given["controller"] is internals.PatientController
    assert data_parallel_trainer.TrainController is TrainController
    assert trainer.backend_config.backend_cls is internals._NodeInterfaceBackend


@pytest.mark.parametrize(("put_off", "pauses"), [(True, [internals.PAUSE_S]), (False, [])])
def test_what_is_put_off_lets_other_calls_through(
    put_off: bool, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = InitializingState()
    result = SimpleNamespace(previous_state=state, next_state=state if put_off else RunningState())
    slept: list[float] = []

    async def step(_: Any) -> Any:
        return result

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(TrainController, "_step", step)
    monkeypatch.setattr(internals.asyncio, "sleep", sleep)
    assert (
        asyncio.run(internals.PatientController._step(internals.PatientController.__new__(internals.PatientController)))
        is result
    )
    assert slept == pauses


def test_a_group_that_breaks_late_in_its_start_gives_its_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own start cleans up only what breaks before the group counts as started."""
    ended: list[str] = []

    def start(group: Any, _: Any) -> None:
        group._worker_group_state = SimpleNamespace(shutdown=lambda: ended.append("all"))
        raise RayActorError

    def made(kind: type[Any]) -> Any:
        context = SimpleNamespace(backend_config=None, run_config=SimpleNamespace(storage_context=None))
        return kind(train_run_context=context, worker_group_context=None, callbacks=[])

    monkeypatch.setattr(WorkerGroup, "_start_impl", start)
    with pytest.raises(RayActorError):
        made(WorkerGroup)._start()
    assert not ended, "Ray has mended it: TidyWorkerGroup can go"
    group = made(internals.PatientController.worker_group_cls)
    with pytest.raises(RayActorError):
        group._start()
    assert ended == ["all"]
    assert not group.has_started()

    def breaks(_: Any) -> None:
        raise ValueError("gone")

    monkeypatch.setattr(WorkerGroup, "shutdown", breaks)
    with pytest.raises(RayActorError) as caught:  # not the second error, which would not be tried again
        made(internals.PatientController.worker_group_cls)._start()
    assert caught.value.__notes__ == ["ending the group failed too: ValueError('gone')"]


def test_what_gives_room_back_asks_its_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own asks a dashboard at an address that it guesses; see `glscl.system.ray_internals.train`."""
    trainer = build_trainer(print, TrainingConfig(), (1,), timeout_s=1800, train_loop_config={})
    cleaners = [c for c in trainer._create_default_callbacks() if isinstance(c, PlacementGroupCleanerCallback)]
    assert [type(callback) for callback in cleaners] == [internals.CleanerCallback]

    started: list[Any] = []
    remote = SimpleNamespace(start_monitoring=SimpleNamespace(remote=lambda: started.append("monitoring")))
    actor = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda **_: remote))
    monkeypatch.setattr(ray, "remote", lambda **_: lambda cls: started.append(cls) or actor)
    monkeypatch.setattr("ray.runtime_context.get_runtime_context", lambda: SimpleNamespace(get_actor_id=lambda: "c1"))
    cleaners[0].after_controller_start(SimpleNamespace(run_id="r"))
    assert started == [internals.Cleaner, "monitoring"]

    states = iter([{"State": "ALIVE"}, ConnectionError("the head is away"), {"State": "RESTARTING"}, {"State": "DEAD"}])
    removed: list[str] = []

    def actors(actor_id: str) -> dict[str, str]:
        assert actor_id == "c1"
        state = next(states)
        if isinstance(state, Exception):
            raise state
        return state

    monkeypatch.setattr("ray._private.state.actors", actors)
    monkeypatch.setattr("ray.actor.exit_actor", lambda: removed.append("itself"))
    monkeypatch.setattr("ray.util.placement_group_table", lambda _: {"state": "CREATED"})
    monkeypatch.setattr(placement_group_cleaner, "remove_placement_group", lambda group: removed.append(group.id))
    watching = internals.Cleaner("c1", check_interval_s=0.001, get_actor_timeout_s=1, stop_timeout=1)
    watching.register_placement_group(SimpleNamespace(id="group of the run"))
    watching._monitor_loop()
    assert removed == ["group of the run", "itself"]
    assert next(states, None) is None
    monkeypatch.setattr("ray._private.state.actors", lambda _: {})
    assert not internals.is_actor_alive("forgotten", 1), "the head forgets actors that have been gone for long"


def test_a_coordinator_that_is_slow_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = internals.scaling_policy.autoscaling_coordinator_client
    limits: list[float] = []

    def get(reference: Any, timeout: float) -> None:
        limits.append(timeout)
        raise ray.exceptions.GetTimeoutError("Get timed out")

    monkeypatch.setattr(ray, "get", get)
    logger = logging.getLogger(client.__name__)
    monkeypatch.setattr(logger, "propagate", False)  # what Ray's loggers let through depends on what ran before
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)
    caplog.set_level(logging.DEBUG, logger.name)
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    coordinator = SimpleNamespace(request_resources=SimpleNamespace(remote=lambda **_: None))
    sender = client.TrainAutoscalingCoordinatorClient("run")
    sender.__dict__["_autoscaling_coordinator"] = coordinator
    sender.send_resource_request(ScalingConfig(num_workers=1), 1)
    assert limits == [internals.PATIENCE_S]
    (record,) = [record for record in caplog.records if record.name == client.__name__]
    assert "safe to ignore" in record.getMessage()
    assert record.exc_info is None
