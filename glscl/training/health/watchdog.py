"""Who does what right now, over all ranks: a run that hangs ends with a name, and a signal stops all at one step.

Every rank's `Reporter` notes what the loop and the loader processes do in Ray's key-value store, from a thread of its
own, and reads there what the driver wants. The driver's `Watch` reads the notes: a rank that is frozen cannot speak for
itself, and those that wait for it in a collective do not know for whom. Both sides poll; nothing of this is on the
path of a step but one all-reduce of a number, which travels while the step is computed (`Agreement`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from glscl.data.activity import ActivityTable

PHASES = ("starting", "loading", "stepping", "logging", "evaluating", "saving")
"""What a rank does, in the order of the loop."""
_UNBOUNDED = ("starting", "evaluating")  # may rightly last longer on one rank; torch's own time-out bounds them
LOOK = 1
"""Wish of a rank: ask Ray for preemptions at the end of this step."""
STOP = 1000
"""Wish of a rank, plus a signal's number: save and end after this step."""
_LOOK_EVERY_S = 5.0
_SILENT_PERIODS = 6


class Hub(Protocol):
    """Keys and values that the driver and all ranks see."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> bytes | None: ...

    def keys(self, prefix: str) -> list[str]: ...


class RayHub:
    """Ray's key-value store, in which every key begins with this run's token."""

    def __init__(self, token: str) -> None:
        self.token = token
        self._prefix = f"glscl-{token}-"

    def put(self, key: str, value: bytes) -> None:
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(self._prefix + key, value, overwrite=True)

    def get(self, key: str) -> bytes | None:
        from ray.experimental import internal_kv

        value: bytes | None = internal_kv._internal_kv_get(self._prefix + key)
        return value

    def keys(self, prefix: str) -> list[str]:
        from ray.experimental import internal_kv

        found = internal_kv._internal_kv_list(self._prefix + prefix)
        return sorted(key.decode().removeprefix(self._prefix) for key in found)

    def clear(self) -> None:
        """Forget the run."""
        from ray.experimental import internal_kv

        internal_kv._internal_kv_del(self._prefix, del_by_prefix=True)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long nothing may happen, in seconds.

    Attributes:
        stall_s: that a stream gives no batch, or one video is opened or decoded (``data.stall_timeout_s``).
        hang_s: that a rank is in one step, or is not heard of (``training.hang_timeout_s``).
    """

    stall_s: float
    hang_s: float

    @property
    def period_s(self) -> float:
        """Seconds between two notes of a rank."""
        return min(1.0, self.stall_s / 10, self.hang_s / 10)


@dataclass(frozen=True, slots=True)
class Note:
    """What a rank does.

    Attributes:
        attempt: of the worker group.
        rank: who.
        host: where.
        pid: its process.
        beat: number of this note.
        phase: one of `PHASES`.
        step: the step it is in.
        seconds: since when it is in this phase.
        reading: what the reader does that has been busy for the longest; if none is, the one that is waited for.
        reading_s: since when it has been busy; 0 if it is not.
    """

    attempt: str
    rank: int
    host: str
    pid: int
    beat: int
    phase: str
    step: int
    seconds: float
    reading: str = ""
    reading_s: float = 0.0

    def name(self) -> str:
        """Who, for a message."""
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    def doing(self) -> str:
        """What, for a message."""
        since = f" for {self.reading_s:.0f} s" if self.reading_s else ""
        reading = f"; {self.reading}{since}" if self.reading else ""
        return f"{self.phase} at step {self.step} for {self.seconds:.0f} s{reading}"


class Reporter:
    """A rank's side. Use as a context manager; the loop calls `at`.

    Args:
        hub: shared with the driver.
        limits: the run's.
        attempt: the same on all ranks of this worker group, another in each.
        rank: this rank.
        boards: what reads for it; the first is that of the training stream.
        look: ask for preemptions now and then (one rank does).
        end: called with the message when the driver gives the worker group up.
    """

    def __init__(
        self,
        hub: Hub,
        limits: Limits,
        attempt: str,
        rank: int,
        boards: Sequence[ActivityTable],
        look: bool = False,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._hub, self._limits, self._attempt, self._rank, self._boards = hub, limits, attempt, rank, boards
        self._end = end or end_process
        self._at = (PHASES[0], 0, time.monotonic())
        self._stop = 0
        self._look_at = time.monotonic() + _LOOK_EVERY_S if look else float("inf")
        self._beat = self._finds = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="glscl-watchdog", daemon=True)

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(self._limits.period_s)

    def at(self, phase: str, step: int) -> None:
        """Say where the loop is."""
        self._at = (phase, step, time.monotonic())

    def wish(self) -> int:
        """What this rank wants to happen after the step that begins: 0, `LOOK`, or `STOP` and a signal's number."""
        if self._stop:
            return STOP + self._stop
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_EVERY_S
            return LOOK
        return 0

    def found(self, part: str, entries: Sequence[dict[str, str]]) -> None:
        """Tell the driver of videos that cannot be used (see `quarantine_entry`) at once, however this process ends."""
        import ray

        if entries:
            self._finds += 1
            values = json.dumps([{"part": part, **entry} for entry in entries])
            with suppress(ray.exceptions.RayError, OSError):  # the store is away: the next row of the log has them
                self._hub.put(f"found-{self._attempt}-{self._rank:05d}-{self._finds}", values.encode())

    def beat(self) -> None:
        """Leave a note and read the orders: what the thread does once per period."""
        phase, step, since = self._at
        busy = [activity for board in self._boards if (activity := board.longest())]
        longest = max(busy, key=lambda activity: activity.seconds, default=None)
        reading = str(longest) if longest else ""
        if phase == "loading" and not reading:
            reading = str(self._boards[0].read()[self._boards[0].awaited])
        self._beat += 1
        note = Note(
            self._attempt,
            self._rank,
            socket.gethostname(),
            os.getpid(),
            self._beat,
            phase,
            step,
            time.monotonic() - since,
            reading,
            longest.seconds if longest else 0.0,
        )
        self._hub.put(f"note-{self._rank:05d}", json.dumps(asdict(note)).encode())
        orders = json.loads(self._hub.get("orders") or b"{}")
        self._stop = orders.get("stop", 0)
        if orders.get("attempt") == self._attempt:
            self._end(orders["failure"])

    def _loop(self) -> None:
        import ray

        while not self._closed.wait(self._limits.period_s):
            try:
                self.beat()
            except (ray.exceptions.RayError, OSError):
                continue  # the store is away for a moment, or for good: then Ray ends this process
            except Exception as error:  # else the driver would hear nothing any more, and call it a hang
                self._end(f"rank {self._rank} cannot say how it is ({type(error).__name__}: {error})")
                return


def end_process(message: str) -> None:
    """End this process and the loader processes it started, whatever they hang in."""
    import psutil

    print(f"watchdog: {message}", file=sys.stderr, flush=True)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


class Agreement:
    """The greatest of the ranks' wishes, known to all of them at the same boundary between steps.

    The number travels while the step is computed: asked before it, answered after it.
    """

    def __init__(self, device: Any) -> None:
        self._device = device

    def ask(self, wish: int) -> None:
        """Send this rank's wish off (collective)."""
        import torch
        from torch import distributed

        self._wish = torch.tensor([wish], device=self._device)
        self._work: Any = distributed.all_reduce(self._wish, distributed.ReduceOp.MAX, async_op=True)

    def answer(self) -> int:
        """The greatest wish of all ranks."""
        self._work.wait()
        return int(self._wish)


class Watch:
    """The driver's side.

    Args:
        hub: shared with the ranks.
        limits: the run's.
        clock: seconds that only grow.
    """

    def __init__(self, hub: Hub, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._hub, self._limits, self._clock = hub, limits, clock
        self.period_s = limits.period_s
        self._heard: dict[int, tuple[Note, float]] = {}
        self._orders: dict[str, Any] = {}

    def poll(self) -> str | None:
        """Read the notes and judge; returns why the worker group is given up, when that is decided."""
        now = self._clock()
        for key in self._hub.keys("note-"):
            note = Note(**json.loads(self._hub.get(key) or b"{}"))
            before = self._heard.get(note.rank)
            if before is None or (before[0].attempt, before[0].beat) != (note.attempt, note.beat):
                self._heard[note.rank] = (note, now)
        if not self._heard:
            return None
        attempt = max(self._heard.values(), key=lambda heard: heard[1])[0].attempt
        self._heard = {rank: heard for rank, heard in self._heard.items() if heard[0].attempt == attempt}
        if self._orders.get("attempt") == attempt:
            return None
        failure = judge([(note, now - at) for note, at in self._heard.values()], self._limits)
        if failure:
            self._order(attempt=attempt, failure=failure)
        return failure

    def stop(self, signum: int) -> bool:
        """Let all ranks save and end at the next boundary between steps; false if none has begun its first step."""
        self._order(stop=signum)
        return any(note.phase != PHASES[0] for note, _ in self._heard.values())

    def failure(self) -> str | None:
        """Why the latest worker group was given up."""
        attempts = {note.attempt for note, _ in self._heard.values()}
        return self._orders.get("failure") if self._orders.get("attempt") in attempts else None

    def found(self) -> list[dict[str, str]]:
        """The videos that the ranks of all worker groups found that cannot be used."""
        return [entry for key in self._hub.keys("found-") for entry in json.loads(self._hub.get(key) or b"[]")]

    def last_heard(self, rank: int) -> Note | None:
        """The last note of a rank of the latest worker group."""
        return self._heard[rank][0] if rank in self._heard else None

    def _order(self, **values: Any) -> None:
        self._orders |= values
        self._hub.put("orders", json.dumps(self._orders).encode())


def judge(heard: Sequence[tuple[Note, float]], limits: Limits) -> str | None:
    """What is wrong, in a line; None while every rank gets on.

    Args:
        heard: each rank's last note, and its age in seconds.
        limits: the run's.
    """
    stall, hang = "data.stall_timeout_s", "training.hang_timeout_s"
    heard = sorted(heard, key=lambda one: one[0].rank)
    stuck = [note for note, _ in heard if note.phase not in _UNBOUNDED and note.seconds > limits.hang_s]
    silent = [note for note, age in heard if age > _SILENT_PERIODS * limits.period_s]
    for note, age in heard:
        if age > limits.hang_s or (stuck and note in silent):
            return (
                f"{note.name()} has not been heard of for {age:.0f} s; it was {note.doing()}{_waiting(heard, silent)}. "
                f"Its process hangs or its machine is gone ({hang} {limits.hang_s:g})"
            )
    for note, _ in heard:
        if note.reading_s > limits.stall_s or (note.phase == "loading" and note.seconds > limits.stall_s):
            seconds = max(note.reading_s, note.seconds if note.phase == "loading" else 0.0)
            return (
                f"the stream of {note.name()} stands still at step {note.step} for {seconds:.0f} s: "
                f"{note.reading}"
                f"{_waiting(heard, [note])}. If that is slow storage and no hang, raise {stall} ({limits.stall_s:g})"
            )
    if not stuck:
        return None
    first = min((note.step, PHASES.index(note.phase)) for note, _ in heard)
    missing = [note for note, _ in heard if (note.step, PHASES.index(note.phase)) == first]
    if len(missing) == len(heard):
        return (
            f"no rank gets out of {stuck[0].doing()}: a collective hangs, or the step is too slow "
            f"({hang} {limits.hang_s:g})"
        )
    late = "; ".join(f"{note.name()} is {note.doing()}" for note in missing[:4])
    return f"{late}{_waiting(heard, missing)}. If that is slow and no hang, raise {hang} ({limits.hang_s:g})"


def _waiting(heard: Sequence[tuple[Note, float]], missing: Sequence[Note]) -> str:
    ranks = [str(note.rank) for note, _ in heard if note.rank not in {one.rank for one in missing}]
    if not ranks:
        return ""
    listed = ", ".join(ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"; waiting for it in a collective: rank {listed}"


def signal_name(number: int) -> str:
    """SIGTERM, SIGINT ..."""
    return signal.Signals(number).name
