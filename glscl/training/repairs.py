"""Training videos some of whose pictures do not decode: counted, and listed in the run directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from torch import distributed

from glscl.data.repairs import Entry
from glscl.system import storage
from glscl.system.ownership import Fence

FILE = "repaired.jsonl"


class Repairs:
    """The videos of all ranks in which the nearest picture stands for one that does not decode.

    Args:
        run_directory: where rank 0 writes `FILE`; what is listed there already stays.
        rank: this rank.
        world: number of ranks.
        fence: of the command that owns the run directory.
    """

    def __init__(self, run_directory: str, rank: int, world: int, fence: Fence | None = None) -> None:
        self._fence = fence
        self._uri = storage.join(run_directory, FILE)
        self._rank, self._world = rank, world
        self._new: list[Entry] = []
        self._known: dict[tuple[str, ...], Entry] = {}
        if rank == 0 and storage.exists(self._uri):
            self._add(json.loads(line) for line in storage.read_bytes(self._uri).decode().splitlines())

    def take(self, entries: Iterable[Entry]) -> None:
        """Take note of what this rank met."""
        self._new += entries

    def gather(self) -> int:
        """Merge what all ranks met (collective); returns how many videos are listed, on rank 0."""
        gathered: list[Any] = [None] * self._world
        distributed.all_gather_object(gathered, self._new)
        self._new = []
        if self._rank == 0 and self._add(entry for entries in gathered for entry in entries):
            if self._fence is not None:
                self._fence.check()
            lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in self._known.values())
            storage.write_bytes(self._uri, "".join(lines).encode())
        return len(self._known)

    def _add(self, entries: Iterable[Entry]) -> bool:
        before = len(self._known)
        for entry in entries:
            self._known.setdefault((entry["domain"], entry["shard"], entry["key"]), entry)
        return len(self._known) > before
