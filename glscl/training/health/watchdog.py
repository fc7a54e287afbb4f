"""The driver's watchdog: reads the ranks' heartbeats and says which rank hangs. One that hangs cannot say it."""

import json
import time
from collections.abc import Callable, Sequence

from glscl.training.health.heartbeat import (
    HEARTBEAT_PREFIX,
    ORDERS,
    UNUSABLE_PREFIX,
    Heartbeat,
    HeartbeatStore,
    Limits,
    Phase,
)

_UNBOUNDED = (Phase.STARTING, Phase.COMPILING, Phase.EVALUATING, Phase.UPLOADING)
"""Phases that may rightly last longer on one rank; torch's own time-out bounds them."""
_SILENT_PERIODS = 6


class Watchdog:
    """Reads the heartbeats of all ranks and leaves orders for them, in a store that they share."""

    def __init__(self, store: HeartbeatStore, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._limits, self._clock = store, limits, clock
        self.period_s = limits.period_s
        self._last: dict[int, tuple[Heartbeat, float]] = {}
        self._orders: dict[str, str | bool] = {}

    def poll(self) -> str | None:
        """Read the heartbeats and diagnose; returns why the worker group is given up, when that is decided."""
        now = self._clock()
        self._read(now)
        if not self._last:
            return None
        attempt = max(self._last.values(), key=lambda last: last[1])[0].attempt
        self._last = {rank: last for rank, last in self._last.items() if last[0].attempt == attempt}
        if self._orders.get("attempt") == attempt:
            return None
        failure = diagnose([(heartbeat, now - at) for heartbeat, at in self._last.values()], self._limits)
        if failure:
            self._order(attempt=attempt, failure=failure)
        return failure

    def stop(self) -> bool:
        """Let all ranks save and end at the next boundary between steps; false if none has begun its first step.

        A rank that begins it after this has read the heartbeats also reads the order.
        """
        self._order(stop=True)
        self._read(self._clock())
        return any(heartbeat.phase != Phase.STARTING for heartbeat, _ in self._last.values())

    def failure(self) -> str | None:
        """Why the latest worker group was given up."""
        attempts = {heartbeat.attempt for heartbeat, _ in self._last.values()}
        return str(self._orders["failure"]) if self._orders.get("attempt") in attempts else None

    def unusable_videos(self) -> list[dict[str, str]]:
        """The videos that cannot be used, of the ranks of all worker groups."""
        keys = self._store.keys(UNUSABLE_PREFIX)
        return [entry for key in keys for entry in json.loads(self._store.get(key) or b"[]")]

    def last_heartbeat(self, rank: int) -> Heartbeat | None:
        """The last heartbeat of a rank of the latest worker group."""
        return self._last[rank][0] if rank in self._last else None

    def step(self) -> int:
        """The step that the last rank of the latest worker group is in; 0 before the first heartbeat."""
        return min((heartbeat.step for heartbeat, _ in self._last.values()), default=0)

    def _read(self, now: float) -> None:
        for key in self._store.keys(HEARTBEAT_PREFIX):
            heartbeat = Heartbeat.from_json(self._store.get(key) or b"{}")
            before = self._last.get(heartbeat.rank)
            if before is None or (before[0].attempt, before[0].number) != (heartbeat.attempt, heartbeat.number):
                self._last[heartbeat.rank] = (heartbeat, now)

    def _order(self, **values: str | bool) -> None:
        self._orders |= values
        self._store.put(ORDERS, json.dumps(self._orders).encode())


def diagnose(last: Sequence[tuple[Heartbeat, float]], limits: Limits) -> str | None:
    """What is wrong, in a line, by each rank's last heartbeat and its age in seconds; None while every rank gets on."""
    last = sorted(last, key=lambda one: one[0].rank)
    stuck = [beat for beat, _ in last if beat.phase not in _UNBOUNDED and beat.seconds > limits.hang_s]
    return _silence(last, stuck, limits) or _stall(last, limits) or (_hang(last, stuck, limits) if stuck else None)


def _silence(last: Sequence[tuple[Heartbeat, float]], stuck: Sequence[Heartbeat], limits: Limits) -> str | None:
    """The first rank whose process does not send any more."""
    silent = [beat for beat, age in last if age > _SILENT_PERIODS * limits.period_s]
    for beat, age in last:
        if age > limits.hang_s or (stuck and beat in silent):
            return (
                f"{beat.name()} has not been heard of for {age:.0f} s; it was {beat.doing()}{_waiting(last, silent)}. "
                f"Its process hangs or its machine is gone (training.hang_timeout_s {limits.hang_s:g})"
            )
    return None


def _stall(last: Sequence[tuple[Heartbeat, float]], limits: Limits) -> str | None:
    """The first rank whose stream stands still."""
    for beat, _ in last:
        waited = beat.seconds if beat.phase == Phase.LOADING else 0.0
        seconds = max(beat.reading_s, waited)
        if seconds > limits.stall_s:
            return (
                f"the stream of {beat.name()} stands still at step {beat.step} for {seconds:.0f} s: "
                f"{beat.reading}{_waiting(last, [beat])}. If that is slow storage and no hang, raise "
                f"data.stall_timeout_s ({limits.stall_s:g})"
            )
    return None


def _hang(last: Sequence[tuple[Heartbeat, float]], stuck: Sequence[Heartbeat], limits: Limits) -> str:
    """The ranks that all others wait for in a collective."""
    places = [(beat.step, list(Phase).index(beat.phase)) for beat, _ in last]
    late = [beat for (beat, _), place in zip(last, places, strict=True) if place == min(places)]
    if len(late) == len(last):
        return (
            f"no rank gets out of {stuck[0].doing()}: a collective hangs, or the step is too slow "
            f"(training.hang_timeout_s {limits.hang_s:g})"
        )
    names = "; ".join(f"{beat.name()} is {beat.doing()}" for beat in late[:4])
    return (
        f"{names}{_waiting(last, late)}. If that is slow and no hang, raise training.hang_timeout_s ({limits.hang_s:g})"
    )


def _waiting(last: Sequence[tuple[Heartbeat, float]], missing: Sequence[Heartbeat]) -> str:
    missing_ranks = {beat.rank for beat in missing}
    ranks = [str(beat.rank) for beat, _ in last if beat.rank not in missing_ranks]
    if not ranks:
        return ""
    listed = ", ".join(ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"; waiting for it in a collective: rank {listed}"
