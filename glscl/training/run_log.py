"""What a run leaves behind while it trains: JSON lines and TensorBoard events."""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from glscl.errors import UserError
from glscl.system import storage
from glscl.system.ownership import Fence

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class RunLog:
    """Metrics of the run directory, written by rank 0.

    A remote run directory is written locally and copied at every `flush`. A resumed run drops the rows after the step
    it resumes from, so the file reads as if nothing had happened.

    Args:
        run_directory: path or URI.
        step: the step resumed from.
        fence: of the driver that owns the run directory, looked at before anything there is replaced.
    """

    def __init__(self, run_directory: str, step: int, fence: Fence | None = None) -> None:
        self._uri, self._fence = run_directory, fence
        self._check_owner()
        # In the worker's own folder in Ray's session, with which it goes if the process is killed.
        remote = storage.is_remote(run_directory)
        self._scratch = tempfile.TemporaryDirectory(prefix="glscl-log-", dir=os.getcwd()) if remote else None
        self._folder = self._scratch.name if self._scratch else storage.resolve(run_directory)
        os.makedirs(self._folder, exist_ok=True)
        rows = [row for row in read_metrics(run_directory) if row["step"] <= step]
        storage.write_bytes(
            os.path.join(self._folder, METRICS), "".join(json.dumps(row) + "\n" for row in rows).encode()
        )
        self._file = open(os.path.join(self._folder, METRICS), "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        events = os.path.join(self._folder, TENSORBOARD)
        os.makedirs(events, exist_ok=True)
        # Not SummaryWriter: the thread that it writes in dies when the disk is full, and the training waits for ever.
        self._events = EventsWriter(
            os.path.join(events, "events"),
            f".{uuid.uuid4().hex[:8]}",  # else attempts of the same second write the same file
        )
        self._events.write_event(Event(step=step + 1, file_version="brain.Event:2"))
        self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def _check_owner(self) -> None:
        if self._fence is not None:
            self._fence.check()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add one row; numbers also become TensorBoard scalars.

        Raises:
            UserError: the disk is full.
        """
        with self._explained():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    summary = scalar(name.replace("@", "_"), value)  # TensorBoard refuses @
                    self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._events.flush()

    def not_finite(self, report: dict[str, Any]) -> None:
        """Write down a step that went wrong, in a file of its own (see `not_finite_name`) and in the metrics."""
        self._check_owner()
        name = not_finite_name(report["step"])
        storage.write_json(storage.join(self._uri, name), report)
        self.write(report["step"], {"not_finite": report["not_finite"], "pairs": name})

    def flush(self) -> None:
        """Copy to a remote run directory."""
        with self._explained():
            self._copy()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder}: the log of the run cannot be written ({error.strerror or error}): free space there, "
                f"then give the same command again; the checkpoints are intact"
            ) from error

    def _copy(self) -> None:
        if self._scratch is None:
            return
        self._check_owner()
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(folder, name)
                storage.upload(path, storage.join(self._uri, os.path.relpath(path, self._folder)))

    def close(self) -> None:
        """Write out everything and release; a second call does nothing."""
        if self._file.closed:
            return
        self._file.close()
        self._events.close()
        self._copy()
        if self._scratch is not None:
            self._scratch.cleanup()


def not_finite_name(step: int) -> str:
    """The file with what is known of a step whose loss or gradient is not finite."""
    return f"nonfinite-step_{step:08d}.json"


def read_metrics(run_directory: str) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``; empty if there is none. A torn last line (a killed writer's) is left out."""
    where = storage.join(run_directory, METRICS)
    if not storage.exists(where):
        return []
    lines = storage.read_bytes(where).decode("utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
