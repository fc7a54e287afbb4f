"""Who is named when a run hangs, and how a signal reaches every rank."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from glscl.data.activity import ActivityTable
from glscl.training.health.heartbeat import Heartbeat, HeartbeatSender, Limits, Phase, StepRequest
from glscl.training.health.watchdog import Watchdog, diagnose

LIMITS = Limits(stall_s=30.0, hang_s=60.0)


class Store:
    """A store in memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.values if key.startswith(prefix))


def note(rank: int, phase: str = "stepping", seconds: float = 1.0, step: int = 12) -> Heartbeat:
    return Heartbeat("a", rank, f"host{rank}", 100 + rank, 1, Phase(phase), step, seconds)


def test_nothing_is_wrong_while_every_rank_gets_on() -> None:
    fine = [(note(0, "evaluating", 4000.0), 0.1), (note(1, "starting", 4000.0), 0.1), (note(2, "loading", 29.0), 5.0)]
    fine += [(note(3, Phase.COMPILING, 4000.0), 0.1), (note(4, Phase.UPLOADING, 4000.0), 0.1)]
    assert diagnose(fine, LIMITS) is None


def test_a_stalled_stream_names_rank_worker_shard_and_video() -> None:
    video = "loader worker 1 (pid 7) decoding toy/v003 (sample 000003 of s3://b/toy/shard-000001.tar)"
    late = replace(note(1, "loading", 31.0), reading=video, reading_s=31.0)
    said = diagnose([(note(0, "stepping", 31.0), 0.1), (late, 0.1)], LIMITS)
    assert said is not None
    assert said.startswith(f"the stream of rank 1 (host1, pid 101) stands still at step 12 for 31 s: {video}")
    assert "waiting for it in a collective: rank 0" in said
    assert "data.stall_timeout_s (30)" in said


def test_one_video_that_never_ends_is_a_stall_whatever_the_rank_does() -> None:
    late = replace(note(0, "evaluating", 31.0), reading="loader worker 0 (pid 7) decoding toy/v1", reading_s=31.0)
    assert "decoding toy/v1" in str(diagnose([(late, 0.1)], LIMITS))


def test_a_rank_that_does_not_come_to_the_collective_is_named() -> None:
    ranks = [(note(0, "stepping", 61.0), 0.1), (note(1, "logging", 70.0, step=11), 0.1), (note(2, "stepping", 61.0), 1)]
    said = diagnose(ranks, LIMITS)
    assert said is not None
    assert said.startswith("rank 1 (host1, pid 101) is logging at step 11 for 70 s; waiting for it in a collective:")
    assert said.endswith("rank 0, 2. If that is slow and no hang, raise training.hang_timeout_s (60)")


def test_a_frozen_process_is_named_though_it_froze_in_the_same_phase() -> None:
    said = diagnose([(note(0, "stepping", 61.0), 0.1), (note(1, "stepping", 0.5), 50.0)], LIMITS)
    assert said is not None
    assert said.startswith("rank 1 (host1, pid 101) has not been heard of for 50 s; it was stepping at step 12")
    silent = diagnose([(note(0, "evaluating", 61.0), 0.1), (note(1, "evaluating", 0.5), 61.0)], LIMITS)
    assert silent is not None
    assert silent.startswith("rank 1 (host1, pid 101) has not been heard of for 61 s; it was evaluating at step 12")


def test_a_collective_in_which_all_hang() -> None:
    said = diagnose([(note(0, "stepping", 61.0), 0.1), (note(1, "stepping", 61.0), 0.1)], LIMITS)
    assert said == (
        "no rank gets out of stepping at step 12 for 61 s: a collective hangs, or the step is too slow "
        "(training.hang_timeout_s 60)"
    )


def test_orders_travel_from_the_driver_to_the_ranks_of_that_attempt_alone() -> None:
    store, now, ended = Store(), [0.0], list[str]()
    watchdog = Watchdog(store, LIMITS, clock=lambda: now[0])
    first, second = (HeartbeatSender(store, LIMITS, "a", rank, [ActivityTable(0)], end=ended.append) for rank in (0, 1))
    for sender in (first, second):
        sender.beat()
    assert watchdog.poll() is None
    assert not watchdog.stop(), "no rank has begun its first step"
    assert first.step_request() == StepRequest.NONE, "it learns of it at its next beat"
    first.at(Phase.STEPPING, 4)
    assert first.step_request() == StepRequest.STOP, "the first step begins with a beat of its own"
    assert second.step_request() == StepRequest.NONE
    assert watchdog.stop(), "whatever it has read before"
    assert watchdog.poll() is None

    now[0] = 61.0  # the second has not been heard of since
    first.beat()
    failure = watchdog.poll()
    assert failure is not None
    assert failure.startswith("rank 1 (")
    assert watchdog.poll() is None, "said once"
    first.beat()
    assert ended == [failure]
    assert watchdog.failure() == failure

    third = HeartbeatSender(
        store, LIMITS, "b", 0, [ActivityTable(0)], end=ended.append
    )  # after the restart, with one worker
    third.beat()
    assert watchdog.poll() is None
    third.beat()
    assert (ended, watchdog.failure()) == ([failure], None)
    assert third.step_request() == StepRequest.STOP, "what a signal asked for is still asked for"
    assert watchdog.last_heartbeat(1) is None


def test_a_rank_that_cannot_speak_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread would die unheard, and the driver take that for a hang."""
    said: list[str] = []
    failures = [OSError("away for a moment"), ValueError("no such key")]
    sender = HeartbeatSender(Store(), Limits(0.01, 0.01), "a", 3, [ActivityTable(0)], end=said.append)

    def fail() -> None:
        raise failures.pop(0)

    monkeypatch.setattr(sender, "beat", fail)
    sender._loop()
    failures.append(ValueError("no such key"))
    sender.at(Phase.LOADING, 1)
    assert said == ["rank 3 cannot say how it is (ValueError: no such key)"] * 2


def test_a_rank_that_waits_for_a_batch_says_whose() -> None:
    store, board = Store(), ActivityTable(2)
    sender = HeartbeatSender(store, LIMITS, "a", 0, [board, ActivityTable(2)])

    def reading() -> str:
        sender.beat()
        return str(json.loads(store.values["heartbeat-00000"])["reading"])

    sender.at(Phase.LOADING, 1)
    assert reading() == "loader worker 0 has not begun"
    for worker in (0, 1):
        board.note(worker, f"decoding toy/v{worker}")
        board.note(worker, "")
    board.awaited = 1
    assert "loader worker 1 (pid" in reading()
    assert reading().endswith("at rest after decoding toy/v1")
    board.note(0, "decoding toy/v2")
    assert reading().endswith("decoding toy/v2"), "who is busy comes before who is waited for"


def test_one_rank_asks_for_preemptions_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("glscl.training.health.heartbeat.time.monotonic", lambda: now[0])
    asks, other = (HeartbeatSender(Store(), LIMITS, "a", rank, [], checks_preemption=rank == 0) for rank in (0, 1))
    assert (asks.step_request(), other.step_request()) == (StepRequest.NONE, StepRequest.NONE)
    now[0] = 6.0
    assert [asks.step_request(), asks.step_request(), other.step_request()] == [
        StepRequest.CHECK_PREEMPTION,
        StepRequest.NONE,
        StepRequest.NONE,
    ]


def test_videos_found_unusable_reach_the_driver_at_once() -> None:
    """From every rank and every attempt, before the next row of the log, and once."""
    store = Store()
    watchdog = Watchdog(store, LIMITS)
    assert watchdog.unusable_videos() == []
    ranks = [
        HeartbeatSender(store, LIMITS, attempt, rank, [ActivityTable(0)]) for attempt in ("a", "b") for rank in range(2)
    ]
    for number, sender in enumerate(ranks):
        sender.report_unusable("train", [])
        sender.report_unusable("train", [{"video_id": f"v{number}"}])
    ranks[0].report_unusable("validation", [{"video_id": "w"}, {"video_id": "x"}])
    assert [(entry["part"], entry["video_id"]) for entry in watchdog.unusable_videos()] == [
        ("train", "v0"), ("validation", "w"), ("validation", "x"), ("train", "v1"), ("train", "v2"), ("train", "v3"),
    ]  # fmt: skip
