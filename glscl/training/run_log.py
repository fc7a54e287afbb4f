"""What rank 0 writes of a run: JSON lines, TensorBoard events, rows for trackers, and the videos that were repaired."""

import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from glscl.data.quarantine import Entry
from glscl.errors import UserError
from glscl.system import storage
from glscl.system.ownership import Fence
from glscl.training.collectives import gather_objects
from glscl.training.trackers import Trackers

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
REPAIRED = "repaired.jsonl"


@dataclass(frozen=True, slots=True)
class NonFiniteReport:
    """What all ranks know of such a step; its fields are the keys of the file in the run directory."""

    step: int
    not_finite: list[str]
    pairs: list[str]
    """Of the global batch, in order."""

    def describe(self, checkpoint: str) -> str:
        """What the run ends with; Ray Train waits for the upload of its last checkpoint before."""
        more = f" and {len(self.pairs) - 3} more" if len(self.pairs) > 3 else ""
        return (
            f"step {self.step}: {', '.join(self.not_finite)} not finite, of pairs {', '.join(self.pairs[:3])}{more} "
            f"(all in {non_finite_name(self.step)}). Last checkpoint, from before that: {checkpoint}. Lower "
            f"training.lr_towers or training.lr_head, train in fp32 (training.precision), or look at these pairs and "
            f"at the terms of the loss"
        )


class Log:
    """What the training loop writes to: on every rank but the first, nowhere."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...
    def write_non_finite(self, report: NonFiniteReport) -> None: ...
    def flush(self) -> None: ...
    def close(self, failed: bool = False) -> None: ...


class RunLog(Log):
    """Metrics of the run directory, from the step that a run resumes from on.

    A remote run directory is written locally and copied at every `flush`. A resumed run drops the rows after its step,
    so the file reads as if nothing had happened. The fence is looked at before anything there is replaced.
    """

    def __init__(
        self, run_directory: str, step: int, fence: Fence | None = None, trackers: Trackers | None = None
    ) -> None:
        self._uri, self._fence, self._trackers = run_directory, fence, trackers or Trackers()
        self._check_owner()
        # In the worker's own folder in Ray's session, with which it goes if the process is killed.
        remote = storage.is_remote(run_directory)
        self._scratch = tempfile.TemporaryDirectory(prefix="glscl-log-", dir=os.getcwd()) if remote else None
        self._folder = self._scratch.name if self._scratch else storage.resolve(run_directory)
        os.makedirs(self._folder, exist_ok=True)
        rows = [row for row in read_metrics(run_directory) if row["step"] <= step]
        metrics = os.path.join(self._folder, METRICS)
        storage.write_bytes(metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file = open(metrics, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)
        events = os.path.join(self._folder, TENSORBOARD)
        os.makedirs(events, exist_ok=True)
        # Not SummaryWriter: the thread that it writes in dies when the disk is full, and the training waits for ever.
        suffix = f".{uuid.uuid4().hex[:8]}"  # else attempts of the same second write the same file
        self._events = EventsWriter(os.path.join(events, "events"), suffix)
        self._events.write_event(Event(step=step + 1, file_version="brain.Event:2"))
        self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def _check_owner(self) -> None:
        if self._fence is not None:
            self._fence.check()

    def write(self, step: int, values: Mapping[str, float | str | list[str]]) -> None:
        """Add one row; numbers also become TensorBoard scalars. Raises `UserError`: the disk is full."""
        with self._explained():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    summary = scalar(name.replace("@", "_"), value)  # TensorBoard refuses @
                    self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._events.flush()
        self._trackers.write(step, values)

    def write_non_finite(self, report: NonFiniteReport) -> None:
        """Record a non-finite step in a file (see `non_finite_name`) and in the metrics."""
        self._check_owner()
        name = non_finite_name(report.step)
        storage.write_json(storage.join(self._uri, name), asdict(report))
        self.write(report.step, {"not_finite": report.not_finite, "pairs": name})

    def flush(self) -> None:
        """Copy to a remote run directory."""
        with self._explained():
            if self._scratch is None:
                return
            self._check_owner()
            for folder, _, names in os.walk(self._folder):
                for name in names:
                    path = os.path.join(folder, name)
                    storage.upload(path, storage.join(self._uri, os.path.relpath(path, self._folder)))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder}: the log of the run cannot be written ({error.strerror or error}): free space there, "
                f"then give the same command again; the checkpoints are intact"
            ) from error

    def close(self, failed: bool = False) -> None:
        """Write out everything and release; a second call does nothing. Trackers are told whether the run failed."""
        if self._file.closed:
            return
        self._file.close()
        self._events.close()
        try:
            self.flush()
        finally:
            self._trackers.close(failed)
        if self._scratch is not None:
            self._scratch.cleanup()


def non_finite_name(step: int) -> str:
    """The file with what is known of a step whose loss or gradient is not finite."""
    return f"nonfinite-step_{step:08d}.json"


def read_metrics(run_directory: str) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``; empty if there is none. A torn last line (a killed writer's) is left out."""
    where = storage.join(run_directory, METRICS)
    if not storage.exists(where):
        return []
    lines = storage.read_bytes(where).decode("utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Repairs:
    """The videos of all ranks in which the nearest picture stands for one that does not decode.

    They are listed in `REPAIRED` of ``run_directory``, after what is there already. That is None on all ranks but the
    first, which only report what they met.
    """

    def __init__(self, run_directory: str | None, fence: Fence | None = None) -> None:
        self._fence = fence
        self._uri = storage.join(run_directory, REPAIRED) if run_directory else None
        self._new: list[Entry] = []
        self._known: dict[tuple[str, ...], Entry] = {}
        if self._uri and storage.exists(self._uri):
            self._merge(json.loads(line) for line in storage.read_bytes(self._uri).decode().splitlines())

    def add(self, entries: Iterable[Entry]) -> None:
        """Take note of what this rank met."""
        self._new += entries

    def gather(self) -> int:
        """Merge what all ranks met (collective); returns how many videos are listed, where they are."""
        gathered = gather_objects(self._new)
        self._new = []
        if self._uri and self._merge(entry for entries in gathered for entry in entries):
            if self._fence is not None:
                self._fence.check()
            lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in self._known.values())
            storage.write_bytes(self._uri, "".join(lines).encode())
        return len(self._known)

    def _merge(self, entries: Iterable[Entry]) -> bool:
        before = len(self._known)
        for entry in entries:
            self._known.setdefault((entry["domain"], entry["shard"], entry["key"]), entry)
        return len(self._known) > before
