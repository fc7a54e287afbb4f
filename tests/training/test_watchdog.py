"""Who is named when a run hangs, and how a signal reaches every rank."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from glscl.data.activity import ActivityTable
from glscl.training.health.watchdog import LOOK, STOP, Limits, Note, Reporter, Watch, judge

LIMITS = Limits(stall_s=30.0, hang_s=60.0)


class Store:
    """A hub in memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.values if key.startswith(prefix))


def note(rank: int, phase: str = "stepping", seconds: float = 1.0, step: int = 12) -> Note:
    return Note("a", rank, f"host{rank}", 100 + rank, 1, phase, step, seconds)


def test_nothing_is_wrong_while_every_rank_gets_on() -> None:
    fine = [(note(0, "evaluating", 4000.0), 0.1), (note(1, "starting", 4000.0), 0.1), (note(2, "loading", 29.0), 5.0)]
    assert judge(fine, LIMITS) is None


def test_a_stalled_stream_names_rank_worker_shard_and_video() -> None:
    video = "loader worker 1 (pid 7) decoding toy/v003 (sample 000003 of s3://b/toy/shard-000001.tar)"
    late = replace(note(1, "loading", 31.0), reading=video, reading_s=31.0)
    said = judge([(note(0, "stepping", 31.0), 0.1), (late, 0.1)], LIMITS)
    assert said is not None
    assert said.startswith(f"the stream of rank 1 (host1, pid 101) stands still at step 12 for 31 s: {video}")
    assert "waiting for it in a collective: rank 0" in said
    assert "data.stall_timeout_s (30)" in said


def test_one_video_that_never_ends_is_a_stall_whatever_the_rank_does() -> None:
    late = replace(note(0, "evaluating", 31.0), reading="loader worker 0 (pid 7) decoding toy/v1", reading_s=31.0)
    assert "decoding toy/v1" in str(judge([(late, 0.1)], LIMITS))


def test_a_rank_that_does_not_come_to_the_collective_is_named() -> None:
    ranks = [(note(0, "stepping", 61.0), 0.1), (note(1, "logging", 70.0, step=11), 0.1), (note(2, "stepping", 61.0), 1)]
    said = judge(ranks, LIMITS)
    assert said is not None
    assert said.startswith("rank 1 (host1, pid 101) is logging at step 11 for 70 s; waiting for it in a collective:")
    assert said.endswith("rank 0, 2. If that is slow and no hang, raise training.hang_timeout_s (60)")


def test_a_frozen_process_is_named_though_it_froze_in_the_same_phase() -> None:
    said = judge([(note(0, "stepping", 61.0), 0.1), (note(1, "stepping", 0.5), 50.0)], LIMITS)
    assert said is not None
    assert said.startswith("rank 1 (host1, pid 101) has not been heard of for 50 s; it was stepping at step 12")
    silent = judge([(note(0, "evaluating", 61.0), 0.1), (note(1, "evaluating", 0.5), 61.0)], LIMITS)
    assert silent is not None
    assert silent.startswith("rank 1 (host1, pid 101) has not been heard of for 61 s; it was evaluating at step 12")


def test_a_collective_in_which_all_hang() -> None:
    said = judge([(note(0, "stepping", 61.0), 0.1), (note(1, "stepping", 61.0), 0.1)], LIMITS)
    assert said == (
        "no rank gets out of stepping at step 12 for 61 s: a collective hangs, or the step is too slow "
        "(training.hang_timeout_s 60)"
    )


def test_orders_travel_from_the_driver_to_the_ranks_of_that_attempt_alone() -> None:
    store, now, ended = Store(), [0.0], list[str]()
    watch = Watch(store, LIMITS, clock=lambda: now[0])
    first, second = (Reporter(store, LIMITS, "a", rank, [ActivityTable(0)], end=ended.append) for rank in (0, 1))
    for reporter in (first, second):
        reporter.beat()
    assert watch.poll() is None
    assert not watch.stop(15), "no rank has begun its first step"
    first.at("stepping", 4)
    first.beat()
    assert first.wish() == STOP + 15
    assert second.wish() == 0, "it learns of it at its next beat"
    assert watch.poll() is None
    assert watch.stop(15)

    now[0] = 61.0  # the second has not been heard of since
    first.beat()
    failure = watch.poll()
    assert failure is not None
    assert failure.startswith("rank 1 (")
    assert watch.poll() is None, "said once"
    first.beat()
    assert ended == [failure]
    assert watch.failure() == failure

    third = Reporter(store, LIMITS, "b", 0, [ActivityTable(0)], end=ended.append)  # after the restart, with one worker
    third.beat()
    assert watch.poll() is None
    third.beat()
    assert (ended, watch.failure()) == ([failure], None)
    assert third.wish() == STOP + 15, "what a signal asked for is still asked for"
    assert watch.last_heard(1) is None


def test_a_rank_that_cannot_speak_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread would die unheard, and the driver take that for a hang."""
    said: list[str] = []
    failures = [OSError("away for a moment"), ValueError("no such key")]
    reporter = Reporter(Store(), Limits(0.01, 0.01), "a", 3, [ActivityTable(0)], end=said.append)

    def fail() -> None:
        raise failures.pop(0)

    monkeypatch.setattr(reporter, "beat", fail)
    reporter._loop()
    assert said == ["rank 3 cannot say how it is (ValueError: no such key)"]


def test_a_rank_that_waits_for_a_batch_says_whose() -> None:
    store, board = Store(), ActivityTable(2)
    reporter = Reporter(store, LIMITS, "a", 0, [board, ActivityTable(2)])

    def reading() -> str:
        reporter.beat()
        return str(json.loads(store.values["note-00000"])["reading"])

    reporter.at("loading", 1)
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
    monkeypatch.setattr("glscl.training.health.watchdog.time.monotonic", lambda: now[0])
    asks, other = (Reporter(Store(), LIMITS, "a", rank, [], look=rank == 0) for rank in (0, 1))
    assert (asks.wish(), other.wish()) == (0, 0)
    now[0] = 6.0
    assert [asks.wish(), asks.wish(), other.wish()] == [LOOK, 0, 0]


def test_videos_found_unusable_reach_the_driver_at_once() -> None:
    """From every rank and every attempt, before the next row of the log, and once."""
    store = Store()
    watch = Watch(store, LIMITS)
    assert watch.found() == []
    ranks = [Reporter(store, LIMITS, attempt, rank, [ActivityTable(0)]) for attempt in ("a", "b") for rank in range(2)]
    for number, reporter in enumerate(ranks):
        reporter.found("train", [])
        reporter.found("train", [{"video_id": f"v{number}"}])
    ranks[0].found("validation", [{"video_id": "w"}, {"video_id": "x"}])
    assert [(entry["part"], entry["video_id"]) for entry in watch.found()] == [
        ("train", "v0"), ("validation", "w"), ("validation", "x"), ("train", "v1"), ("train", "v2"), ("train", "v3"),
    ]  # fmt: skip
