"""The videos of an index by id, and the rows of its parts that count."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from glscl.errors import UserError
from glscl.index.layout import IndexFacts, check_files, part_folder
from glscl.index.library import Item
from glscl.index.parts import Part, PartWriter
from glscl.index.records import Entry

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Catalogue:
    """All parts of an index, open, with what was deleted.

    Attributes:
        parts: in the order of index.json.
        deleted: rows of videos of each part that no longer count.
    """

    parts: tuple[Part, ...]
    deleted: tuple[frozenset[int], ...]

    @classmethod
    def open(cls, folder: str, facts: IndexFacts) -> Catalogue:
        """Open the parts that ``index.json`` names. Raises `UserError`: a file is missing or of another size."""
        for part in facts.parts:
            check_files(part_folder(folder, part.name), part.files)
        return cls(
            tuple(Part.open(folder, part) for part in facts.parts),
            tuple(frozenset(facts.deleted.get(part.name, ())) for part in facts.parts),
        )

    @cached_property
    def places(self) -> dict[str, tuple[int, int]]:
        """Part and row of every video that counts, those that could not be read included."""
        found: dict[str, tuple[int, int]] = {}
        for number, part in enumerate(self.parts):
            for row, name in enumerate(part.videos["id"].to_pylist()):
                if row not in self.deleted[number]:
                    if name in found:
                        raise UserError(f"the index holds '{name}' twice; build it again")
                    found[name] = number, row
        return found

    def has(self, name: str) -> bool:
        """Whether a video is there."""
        return name in self.places

    def ids(self) -> set[str]:
        """Ids of all videos, those that could not be read included."""
        return set(self.places)

    def stamp(self, name: str) -> str | None:
        """The stamp with which a video was indexed; None if it is not there."""
        return str(self._value(name, "stamp")) if name in self.places else None

    def differs(self, item: Item) -> bool:
        """Whether captions, metadata or address of a video are others by now."""
        part, row = self.places[item.id]
        entry = self.parts[part].entry(row)
        return (entry.source, entry.captions, entry.metadata) != (item.source, item.captions, item.metadata)

    def entry(self, name: str) -> Entry:
        """A video by its id. Raises `UserError`: there is none, or it could not be read."""
        if name not in self.places or self._value(name, "problem"):
            raise UserError(f"no video '{name}' in the index")
        part, row = self.places[name]
        return self.parts[part].entry(row)

    def problems(self) -> dict[str, str]:
        """Videos that could not be read, with the reason."""
        return {name: reason for name in self.places if (reason := str(self._value(name, "problem")))}

    def _value(self, name: str, column: str) -> object:
        part, row = self.places[name]
        return self.parts[part].videos[column][row].as_py()

    def entries(self) -> Iterator[Entry]:
        """All videos that can be found, in the order of the parts."""
        for number, part in enumerate(self.parts):
            counts = np.diff(part.first)
            for row in range(part.facts.videos):
                if row not in self.deleted[number] and counts[row]:
                    yield part.entry(row)

    @cached_property
    def live(self) -> tuple[Rows, ...]:
        """Of each part, the rows of its segments that count."""
        rows = []
        for part, deleted in zip(self.parts, self.deleted, strict=True):
            keep = np.ones(part.facts.videos, bool)
            keep[list(deleted)] = False
            rows.append(np.flatnonzero(np.repeat(keep, np.diff(part.first))))
        return tuple(rows)

    @property
    def live_segments(self) -> int:
        """How many segments count."""
        return sum(map(len, self.live))

    def tombstones(self, names: Collection[str]) -> dict[str, set[int]]:
        """Rows of these videos by part, as index.json lists what is deleted; names that are not there have none."""
        rows: dict[str, set[int]] = {}
        for name in names:
            if name in self.places:
                part, row = self.places[name]
                rows.setdefault(self.parts[part].facts.name, set()).add(row)
        return rows

    def copy_into(self, writer: PartWriter, item: Item) -> None:
        """Add a video of this index, described as ``item`` says, to a part that is being written."""
        number, row = self.places[item.id]
        part = self.parts[number]
        if problem := str(self._value(item.id, "problem")):
            writer.add_problem(item, problem)
            return
        first, last = (int(edge) for edge in part.first[row : row + 2])
        edges = [
            (segment["start"], segment["end"], tuple(segment["times"]))
            for segment in part.segments.slice(first, last - first).to_pylist()
        ]
        assert part.vectors is not None
        arrays = [{name: np.array(a[at]) for name, a in part.vectors.arrays.items()} for at in range(first, last)]
        writer.add(item, edges, arrays)
