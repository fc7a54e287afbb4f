"""What a run directory keeps where the storage will not delete, and who is told of what."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from glscl.errors import BrokenRunError, RunStoppedError, UserError
from glscl.system import storage
from glscl.training.checkpoint.callback import RetentionCallback
from glscl.training.checkpoint.retention import INDEX, RAY_REGISTER, Retention, cause_in
from tests.fault_proxy import FaultProxy
from tests.training.test_checkpoint import put, steps


def test_a_storage_that_does_not_delete_ends_no_run(
    bucket: str, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"{bucket}/run"
    torn = put(run, 1, attempt="torn", ranks=(0,))
    proxy.denied = frozenset({"DELETE"})
    retention = Retention(run, keep=1)
    assert retention.prune_at_start() == []
    assert f"{run}/{torn} stays behind, because it cannot be removed (s3://" in capsys.readouterr().out
    first, second, third = (put(run, step) for step in (1, 2, 3))
    for name in (first, second, third):
        retention.register(name)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == [f"{run}/{first}", f"{run}/{second}"], "each is tried once"
    assert all("AccessDenied" in line for line in said)
    assert steps(run) == [1, 1, 2, 3]
    assert retention.known() == [third]
    assert [found.name for found in retention.best()] == [third, second, first]
    retention.prune_at_end()
    proxy.denied = frozenset()
    following = Retention(run, keep=1)
    assert [found.name for found in following.prune_at_start()] == [third, second, first]
    following.register(put(run, 4))
    assert steps(run) == [4]


def test_ray_s_register_must_go(bucket: str, proxy: FaultProxy) -> None:
    run = f"{bucket}/run"
    storage.write_bytes(f"{run}/{RAY_REGISTER}", b"{}")
    proxy.denied = frozenset({"DELETE"})
    with pytest.raises(UserError, match=f"{RAY_REGISTER}: delete object: .*AccessDenied"):
        Retention(run, keep=1).prune_at_start()


def test_what_has_been_looked_at_is_not_read_again(bucket: str, proxy: FaultProxy) -> None:
    run = f"{bucket}/run"
    retention = Retention(run, keep=2)
    retention.register(put(run, 1))
    name = put(run, 2)
    before = proxy.requests
    retention.verify(name)
    assert proxy.requests > before
    before = proxy.requests
    assert retention.verify(name).state.step == 2
    assert proxy.requests == before


def test_order_and_scores(run: str) -> None:
    retention = Retention(run, keep=2)
    names = [put(run, step, score=score) for step, score in ((1, 7.0), (2, 7.0), (3, 1.0), (4, 2.0))]
    for name in names:
        retention.register(name)
    assert retention.names() == [names[3], names[1], names[0]]
    assert [found.name for found in retention.complete()[0]] == [names[3], names[1], names[0]]
    assert [found.name for found in retention.best()] == [names[1], names[0], names[3]], "of equals the newer"
    assert [found.score for found in retention.best()] == [(7.0, 2), (7.0, 1), (2.0, 4)]
    assert json.loads(storage.read_bytes(storage.join(run, INDEX))) == {"complete": sorted([*names[:2], names[3]])}


def test_an_older_one_that_arrives_late_lets_the_newer_be(run: str) -> None:
    retention = Retention(run, keep=1)
    late, newer = put(run, 1, attempt="b"), put(run, 2)
    retention.register(newer)
    put(run, 1, attempt="b")
    retention.register(late)
    assert steps(run) == [1, 2]
    retention.register(put(run, 3))
    assert steps(run) == [3]


def test_other_folders_are_left_alone(run: str) -> None:
    for other in ("model/x", "tensorboard/x", "metrics.jsonl"):
        storage.write_bytes(storage.join(run, other), b"")
    retention = Retention(run, keep=1)
    retention.prune_at_start()
    for step in (1, 2):
        retention.register(put(run, step))
    retention.prune_at_end()
    assert {"model", "tensorboard", "metrics.jsonl", INDEX} < set(storage.list_names(run))
    assert steps(run) == [2]


def test_a_run_that_ends_with_none_keeps_what_there_is(run: str) -> None:
    torn = put(run, 1, ranks=(0,))
    Retention(run, keep=1).prune_at_end()
    assert storage.list_names(run) == [torn]


def test_the_keeper_registers_what_ray_train_reports(run: str) -> None:
    keeper = RetentionCallback(run, keep=1)
    for step in (1, 2):
        name = put(run, step)
        keeper.after_report(None, [], SimpleNamespace(path=f"some/where/{name}"))  # type: ignore[arg-type]
        keeper.after_report(None, [], None)
    assert Retention(run, keep=1).known() == [name]
    assert steps(run) == [2]


def test_causes_are_found_as_ray_wraps_them() -> None:
    wanted = RunStoppedError("x")
    by_cause, by_ray, by_train = RuntimeError(), RuntimeError(), RuntimeError()
    by_cause.__cause__ = wanted
    by_ray.cause = by_cause  # type: ignore[attr-defined]
    by_train._base_exc = by_ray  # type: ignore[attr-defined]
    for error in (wanted, by_cause, by_ray, by_train):
        assert cause_in([None, ValueError(), error, UserError("second")], (UserError,)) is wanted
    assert cause_in([None, by_train], (BrokenRunError,)) is None
    assert cause_in([], (UserError,)) is None


def test_a_torn_attempt_at_the_same_step_goes_whatever_it_is_called(run: str) -> None:
    put(run, 2, attempt="z", ranks=(0,))
    put(run, 3, attempt="a", ranks=(0,))
    Retention(run, keep=1).register(put(run, 2, attempt="b"))
    assert [name[5:] for name in storage.list_names(run) if name.startswith("step_")] == [
        "00000002-w2-b",
        "00000003-w2-a",
    ]


def test_the_index_names_what_is_complete_and_what_was(run: str) -> None:
    complete, torn = put(run, 1), put(run, 2, ranks=(0,))
    Retention(run, keep=1).prune_at_end()
    assert Retention(run, keep=1).known() == [complete], "written at the end, whoever uploaded it"
    torn = put(run, 2, ranks=(0,))
    storage.write_json(storage.join(run, INDEX), {"complete": []})
    Retention(run, keep=1).prune_at_start()
    assert Retention(run, keep=1).known() == [complete]
    assert torn not in storage.list_names(run)


def test_every_line_that_is_said(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    retention = Retention(run, keep=3)
    first, second = put(run, 1), put(run, 2)
    for name in (first, second):
        retention.register(name)
    torn = put(run, 3, ranks=(0,))
    retention.register(torn)
    storage.remove(storage.join(run, second, "state.json"))
    Retention(run, keep=3).prune_at_start()
    storage.remove(storage.join(run, first, "state.json"))
    with pytest.raises(UserError) as caught:
        Retention(run, keep=3).prune_at_start()
    storage.write_bytes(storage.join(run, INDEX), b'{"complete": ["step_1/x"]}')
    assert Retention(run, keep=3).known() == [first, second]
    incomplete = f"checkpoint {second} is incomplete (state.json: missing): passed over"
    assert capsys.readouterr().out.splitlines() == [
        f"checkpoint {torn} is incomplete after its upload (files-00001.json: missing): those before it stay",
        incomplete,
        incomplete,
        f"checkpoint {first} is incomplete (state.json: missing): passed over",
        f"{storage.join(run, INDEX)} is damaged (names other things than checkpoints): every checkpoint that lies "
        f"beside it counts",
    ]
    assert str(caught.value) == (
        f"{run}: none of its checkpoints is complete ({second}: state.json: missing; {first}: state.json: missing); "
        f"delete the run directory to start again, or choose another --name"
    )


def test_attempts_at_one_step_do_not_pile_up(run: str) -> None:
    retention = Retention(run, keep=1)
    names = [put(run, 2, attempt=attempt) for attempt in "abc"]
    retention.register(names[2])
    assert steps(run) == [2, 2], "the best and the newest"
    assert names[2] in storage.list_names(run)
