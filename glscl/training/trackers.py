"""Trackers beside the run's own log: wandb, MLflow and trackio, each in a process of its own (`tracker_process`).

Rows are put into a bounded queue, which takes no time; a thread writes them to the process. So a tracker that hangs, or
that cannot be reached, costs rows in the tracker, never a step. What goes wrong is printed, in one line. The run's own
``metrics.jsonl`` has every row whatever happens here.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from glscl.errors import UserError
from glscl.system import storage
from glscl.system.redaction import redact
from glscl.training.options import TrackingConfig
from glscl.training.tracker_process import RunFacts

if TYPE_CHECKING:
    from glscl.system.ownership import Fence
    from glscl.training.config import RunConfig

FILE = "trackers.json"
"""Of the run directory: the id by which a resumed run continues the trackers' run."""
_PROGRAM = str(Path(__file__).with_name("tracker_process.py"))
_ROWS = 10_000
"""Rows that wait for a tracker; those that come after are left out there."""
_END_S = 30.0
"""Seconds that a run waits at its end until the trackers have everything."""


def check_trackers(config: TrackingConfig) -> None:
    """Refuse trackers that cannot work here. Raises `UserError`: a library is not installed, or an address missing."""
    for name in config.to:
        if find_spec(name) is None:
            raise UserError(f"tracking.to: {name} is not installed: pip install 'glscl[{name}]'")
    if "mlflow" in config.to:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        relative = uri.startswith("sqlite:///") and not uri.startswith("sqlite:////")
        if relative or not ("://" in uri or uri.startswith(("/", "databricks"))):
            raise UserError(
                "tracking.to: mlflow needs the variable MLFLOW_TRACKING_URI with a server (http://HOST:5000) or an "
                f"absolute path (sqlite:////DIR/mlflow.db), because workers run elsewhere; it is '{redact(uri)}'"
            )


class Tracker:
    """One tracker of a run, in its own process. Nothing here raises, and nothing waits but `end` and `wait`."""

    def __init__(self, name: str, facts: RunFacts) -> None:
        self.name = name
        self._rows: queue.Queue[str] = queue.Queue(_ROWS)
        self._left_out = 0
        self._killed = False
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", _PROGRAM, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,  # so that Ctrl-C is the run's, and all that it started ends with it
            )
        except OSError as error:
            self._say(f"cannot be started ({error.strerror})")
            return
        self._put(redact(json.dumps(asdict(facts))))
        for work in (self._send, self._listen):
            threading.Thread(target=work, args=(self._process,), name=f"tracker {name}", daemon=True).start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row."""
        self._put(json.dumps({"step": step, "values": values}))

    def _put(self, line: str) -> None:
        if self._process is None:
            return
        try:
            self._rows.put_nowait(line)
        except queue.Full:
            self._left_out += 1
            if self._left_out == 1:
                self._say(f"is {_ROWS:,} rows behind, and gets no more until it catches up")

    def end(self, failed: bool) -> None:
        """Say that no more rows come."""
        if self._process is not None:
            while self._rows.full():  # it is far behind: the end matters more than a row
                with contextlib.suppress(queue.Empty):
                    self._rows.get_nowait()
                    self._left_out += 1
            self._put(json.dumps({"end": "failed" if failed else "finished"}))

    def wait(self, deadline: float) -> None:
        """Wait for the process until a moment of `time.monotonic`, then end it."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._say("did not take everything in time")
        if self._left_out:
            self._say(f"lacks {self._left_out:,} rows")
        self._process = None

    def _send(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                while True:
                    line = self._rows.get()
                    pipe.write(line + "\n")
                    pipe.flush()
                    if line.startswith('{"end"'):
                        return
        except OSError:
            code = process.wait()
            if not self._killed:
                self._say(f"ended by itself (status {code})")

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._say(line.strip())

    def _say(self, what: str) -> None:
        print(redact(f"tracker {self.name}: {what}; the run goes on, and metrics.jsonl has all rows"), flush=True)


class Trackers:
    """All trackers of a run, on rank 0."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = trackers

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Hand on the numbers of a row."""
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        if numbers:
            for tracker in self._trackers:
                tracker.write(step, numbers)

    def close(self, failed: bool = False) -> None:
        """End all of them; a second call does nothing."""
        for tracker in self._trackers:
            tracker.end(failed)
        deadline = time.monotonic() + _END_S
        for tracker in self._trackers:
            tracker.wait(deadline)
        self._trackers = ()


def start_trackers(config: RunConfig, fence: Fence | None = None) -> Trackers:
    """Start the trackers that a run's configuration names, or continue their run."""
    if not config.tracking.to:
        return Trackers()
    where, group = config.run_directory, config.tracking.group
    facts = RunFacts(
        id=_find_id(where, fence),
        name="/".join(where.rstrip("/").split("/")[-2:]) if group else config.name,
        project=config.tracking.project,
        group=group,
        directory="" if storage.is_remote(where) else where,
        config=config.model_dump(mode="json"),
    )
    return Trackers([Tracker(name, facts) for name in config.tracking.to])


def _find_id(run_directory: str, fence: Fence | None) -> str:
    """The id in the run directory, written there once."""
    where = storage.join(run_directory, FILE)
    if storage.exists(where):
        known = storage.read_json(where)
        if isinstance(known, dict) and isinstance(known.get("id"), str) and known["id"].isalnum():
            return str(known["id"])
    if fence is not None:
        fence.check()
    new = uuid.uuid4().hex[:12]
    storage.write_json(where, {"id": new})
    return new
