"""Heartbeats, with which each rank tells the driver what it is doing, and the consensus on what ranks are asked for."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from typing import Protocol, Self, cast

import torch
from torch import distributed

from glscl.data.activity import ActivityTable

CHECK_PREEMPTION_EVERY_S = 5.0
HEARTBEAT_PREFIX = "heartbeat-"
UNUSABLE_PREFIX = "unusable-"
ORDERS = "orders"


class Phase(StrEnum):
    """What a rank does, in the order of the loop."""

    STARTING = "starting"
    LOADING = "loading"
    COMPILING = "compiling and stepping"
    STEPPING = "stepping"
    LOGGING = "logging"
    EVALUATING = "evaluating"
    UPLOADING = "waiting for the upload of an earlier checkpoint"
    SAVING = "saving"


class StepRequest(IntEnum):
    """What a rank asks for after the step that begins; of several ranks' requests the greatest counts."""

    NONE = 0
    CHECK_PREEMPTION = 1
    """Ask Ray whether nodes are about to be taken away."""
    STOP = 2
    """Save and end, because of a signal."""


class HeartbeatStore(Protocol):
    """Keys and values that the driver and all ranks see; in a run it is Ray's (`KeyValueStore`)."""

    def put(self, key: str, value: bytes) -> None: ...
    def get(self, key: str) -> bytes | None: ...
    def keys(self, prefix: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How long nothing may happen, in seconds."""

    stall_s: float
    """That a stream gives no batch, or one video is opened or decoded (``data.stall_timeout_s``)."""
    hang_s: float
    """That a rank is in one step, or is not heard of (``training.hang_timeout_s``)."""

    @property
    def period_s(self) -> float:
        """Seconds between two heartbeats of a rank."""
        return min(1.0, self.stall_s / 10, self.hang_s / 10)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a rank does."""

    attempt: str
    """Token of the worker group."""
    rank: int
    host: str
    pid: int
    number: int
    """Of this heartbeat, rising."""
    phase: Phase
    step: int
    seconds: float
    """How long the rank has been in this phase."""
    reading: str = ""
    """What the reader does that has been busy for the longest; if none is, the one that is waited for."""
    reading_s: float = 0.0
    """How long it has been busy; 0 if it is not."""

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {"phase": Phase(values["phase"])})

    def to_json(self) -> bytes:
        """JSON in UTF-8."""
        return json.dumps(asdict(self)).encode()

    def name(self) -> str:
        """Who, for a message."""
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    def doing(self) -> str:
        """What, for a message."""
        since = f" for {self.reading_s:.0f} s" if self.reading_s else ""
        reading = f"; {self.reading}{since}" if self.reading else ""
        return f"{self.phase} at step {self.step} for {self.seconds:.0f} s{reading}"


class HeartbeatSender:
    """A rank's side: sends heartbeats and reads the driver's orders. Use as a context manager; the loop calls `at`.

    ``attempt`` is the worker group's token; the first of ``boards``, what the processes that read for this rank do, is
    the training stream's. One rank ``checks_preemption``; ``end`` gets the message when the driver gives up.
    """

    def __init__(
        self,
        store: HeartbeatStore,
        limits: Limits,
        attempt: str,
        rank: int,
        boards: Sequence[ActivityTable],
        checks_preemption: bool = False,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._store, self._limits, self._attempt, self._rank, self._boards = store, limits, attempt, rank, boards
        self._end = end or end_process
        self._at = (Phase.STARTING, 0, time.monotonic())
        self._stop_requested = False
        self._check_at = time.monotonic() + CHECK_PREEMPTION_EVERY_S if checks_preemption else float("inf")
        self._sent = self._reports = 0
        self._closed = threading.Event()
        self._beating = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="glscl-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(self._limits.period_s)

    def at(self, phase: Phase, step: int) -> None:
        """Say where the loop is; that the first step begins, the driver hears before it does."""
        begins = self._at[0] == Phase.STARTING and phase != Phase.STARTING
        self._at = (phase, step, time.monotonic())
        if begins:
            self._beat_or_end()

    def step_request(self) -> StepRequest:
        """What this rank asks for after the step that begins."""
        if self._stop_requested:
            return StepRequest.STOP
        if time.monotonic() >= self._check_at:
            self._check_at = time.monotonic() + CHECK_PREEMPTION_EVERY_S
            return StepRequest.CHECK_PREEMPTION
        return StepRequest.NONE

    def report_unusable(self, part: str, entries: Sequence[dict[str, str]]) -> None:
        """Tell the driver of videos that cannot be used (see `quarantine_entry`) at once, however this process ends."""
        import ray

        if entries:
            self._reports += 1
            values = json.dumps([{"part": part, **entry} for entry in entries])
            with suppress(ray.exceptions.RayError, OSError):  # the store is away: the next row of the log has them
                key = f"{UNUSABLE_PREFIX}{self._attempt}-{self._rank:05d}-{self._reports}"
                self._store.put(key, values.encode())

    def beat(self) -> None:
        """Send a heartbeat and read the orders: what the thread does once per period."""
        phase, step, since = self._at
        busy = [activity for board in self._boards if (activity := board.longest())]
        longest = max(busy, key=lambda activity: activity.seconds, default=None)
        reading = str(longest) if longest else ""
        if phase == Phase.LOADING and not reading:
            reading = str(self._boards[0].read()[self._boards[0].awaited])
        self._sent += 1
        who = (self._attempt, self._rank, socket.gethostname(), os.getpid(), self._sent)
        busy_s = longest.seconds if longest else 0.0
        heartbeat = Heartbeat(*who, phase, step, time.monotonic() - since, reading, busy_s)
        self._store.put(f"{HEARTBEAT_PREFIX}{self._rank:05d}", heartbeat.to_json())
        orders = json.loads(self._store.get(ORDERS) or b"{}")
        self._stop_requested = bool(orders.get("stop", False))
        if orders.get("attempt") == self._attempt:
            self._end(orders["failure"])

    def _loop(self) -> None:
        while not self._closed.wait(self._limits.period_s):
            if not self._beat_or_end():
                return

    def _beat_or_end(self) -> bool:
        import ray

        try:
            with self._beating:
                self.beat()
        except (ray.exceptions.RayError, OSError):
            pass  # the store is away for a moment, or for good: then Ray ends this process
        except Exception as error:  # else the driver would hear nothing any more, and call it a hang
            self._end(f"rank {self._rank} cannot say how it is ({type(error).__name__}: {error})")
            return False
        return True


def end_process(message: str) -> None:
    """End this process and the loader processes it started, whatever they hang in."""
    import psutil

    print(f"watchdog: {message}", file=sys.stderr, flush=True)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


class Consensus:
    """The greatest of the ranks' requests, known to all of them at the same boundary between steps.

    The number travels while the step is computed: sent before it, read after it. It goes from CPU to CPU, because
    reading a number of a GPU waits for all that the GPU was given before.
    """

    def __init__(self) -> None:
        own = None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")
        self._group = cast("distributed.ProcessGroup | None", own)

    def send(self, request: StepRequest) -> None:
        """Send this rank's request off (collective)."""
        self._request = torch.tensor([int(request)])
        self._work = distributed.all_reduce(self._request, distributed.ReduceOp.MAX, self._group, async_op=True)

    def result(self) -> StepRequest:
        """The greatest request of all ranks."""
        self._work.wait()
        return StepRequest(int(self._request))
