"""The list of training videos in which the nearest picture stands for some that do not decode."""

from __future__ import annotations

import json
from collections.abc import Iterable

from glscl.data.quarantine import Entry
from glscl.system import storage
from glscl.system.ownership import Fence
from glscl.training.collectives import gather_objects

FILE = "repaired.jsonl"


class Repairs:
    """The videos of all ranks in which the nearest picture stands for one that does not decode.

    Args:
        run_directory: where `FILE` is written; what is listed there already stays. None on all ranks but the first,
            which only report what they met.
        fence: of the command that owns the run directory.
    """

    def __init__(self, run_directory: str | None, fence: Fence | None = None) -> None:
        self._fence = fence
        self._uri = storage.join(run_directory, FILE) if run_directory else None
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
