"""What a run leaves behind while it trains: JSON lines, TensorBoard events, the quarantine list."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from typing import Any

from tensorboardX import SummaryWriter

from glscl import storage
from glscl.ownership import Fence

METRICS = "metrics.jsonl"
QUARANTINE = "quarantine.jsonl"
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
        self._events = SummaryWriter(
            os.path.join(self._folder, TENSORBOARD),
            purge_step=step + 1,
            flush_secs=30,
            filename_suffix=f".{uuid.uuid4().hex[:8]}",  # else attempts of the same second write the same file
        )

    def _check_owner(self) -> None:
        if self._fence is not None:
            self._fence.check()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Add one row; numbers also become TensorBoard scalars."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(name.replace("@", "_"), value, step)  # TensorBoard refuses @

    def quarantine(self, entries: list[dict[str, str]]) -> None:
        """Replace the list of unusable videos (nothing is written while it is empty)."""
        if entries:
            self._check_owner()
            text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
            storage.write_bytes(storage.join(self._uri, QUARANTINE), text.encode())

    def not_finite(self, report: dict[str, Any]) -> None:
        """Write down a step that went wrong, in a file of its own (see `not_finite_name`) and in the metrics."""
        self._check_owner()
        name = not_finite_name(report["step"])
        storage.write_json(storage.join(self._uri, name), report)
        self.write(report["step"], {"not_finite": report["not_finite"], "pairs": name})

    def flush(self) -> None:
        """Copy to a remote run directory (TensorBoard's events may lag: its writer has a queue)."""
        self._events.flush()
        self._copy()

    def _copy(self) -> None:
        if self._scratch is None:
            return
        self._check_owner()
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(folder, name)
                storage.upload(path, storage.join(self._uri, os.path.relpath(path, self._folder)))

    def close(self) -> None:
        """Write out everything and release."""
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
