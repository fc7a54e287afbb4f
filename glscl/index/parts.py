"""Parts of an index: written whole, opened as tables and mapped vectors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from glscl.index.layout import PARTS, SEGMENTS, VIDEOS, PartFacts, part_folder, sizes_of
from glscl.index.library import Item
from glscl.index.records import Entry
from glscl.index.vectors import Array, StoredVectors, write_arrays

_VIDEO_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("stamp", pa.string()),
        ("duration", pa.float64()),
        ("captions", pa.list_(pa.string())),
        ("metadata", pa.string()),  # JSON
        ("problem", pa.string()),  # why it could not be read; empty for all else
        ("segments", pa.int32()),  # that are its own, one after the other
    ]
)
_SEGMENT_SCHEMA = pa.schema([("start", pa.float64()), ("end", pa.float64()), ("times", pa.list_(pa.float64()))])


@dataclass(slots=True)
class PartWriter:
    """Collects videos and their segments, and writes them as a part."""

    videos: list[dict[str, object]] = field(default_factory=list)
    segments: list[dict[str, object]] = field(default_factory=list)
    arrays: list[dict[str, Array]] = field(default_factory=list)

    def add(
        self, item: Item, edges: Sequence[tuple[float, float, tuple[float, ...]]], arrays: list[dict[str, Array]]
    ) -> None:
        """Add a video with start, end and frame times of its segments, and what is stored of each."""
        duration = edges[-1][1] - edges[0][0]
        self._add(item, duration, "", len(edges))
        self.segments += [{"start": start, "end": end, "times": list(times)} for start, end, times in edges]
        self.arrays += arrays

    def add_problem(self, item: Item, problem: str) -> None:
        """Add a video that cannot be used."""
        self._add(item, 0.0, problem, 0)

    def _add(self, item: Item, duration: float, problem: str, segments: int) -> None:
        self.videos.append(
            {
                "id": item.id,
                "source": item.source,
                "stamp": item.stamp,
                "duration": duration,
                "captions": list(item.captions),
                "metadata": json.dumps(item.metadata),
                "problem": problem,
                "segments": segments,
            }
        )

    def write(self, folder: str, name: str) -> PartFacts:
        """Write the part under its name, whole or not at all, and forget what was collected."""
        arrays = {}
        if self.arrays:
            arrays = {key: np.stack([one[key] for one in self.arrays]) for key in self.arrays[0]}
        videos = pa.Table.from_pylist(self.videos, _VIDEO_SCHEMA)
        segments = pa.Table.from_pylist(self.segments, _SEGMENT_SCHEMA)
        self.videos, self.segments, self.arrays = [], [], []
        return write_part(folder, name, videos, segments, arrays)


def write_part(folder: str, name: str, videos: pa.Table, segments: pa.Table, arrays: dict[str, Array]) -> PartFacts:
    """Write a part's tables and arrays whole or not at all."""
    whole = part_folder(folder, name)
    unfinished = os.path.join(folder, PARTS, f"unfinished-{name}")
    for left in (unfinished, whole):  # of a command that was killed before index.json named it
        shutil.rmtree(left, ignore_errors=True)
    os.makedirs(unfinished)
    pq.write_table(videos, os.path.join(unfinished, VIDEOS), compression="zstd")
    pq.write_table(segments, os.path.join(unfinished, SEGMENTS), compression="zstd")
    write_arrays(unfinished, arrays)
    for entry in os.scandir(unfinished):
        with open(entry.path, "rb+") as file:
            os.fsync(file.fileno())
    os.rename(unfinished, whole)
    return PartFacts(name=name, videos=len(videos), segments=len(segments), files=sizes_of(whole))


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is open.

    Attributes:
        facts: what index.json says of it.
        videos: its table of videos.
        segments: its table of segments.
        vectors: what the head keeps of them, mapped.
        first: (V + 1,) number of each video's first segment, and of all.
    """

    facts: PartFacts
    videos: pa.Table
    segments: pa.Table
    vectors: StoredVectors | None
    first: npt.NDArray[np.int64]

    @classmethod
    def open(cls, folder: str, facts: PartFacts) -> Part:
        """Open a part whose files have been checked."""
        where = part_folder(folder, facts.name)
        # Neither `read_table` nor `to_numpy`: both import pandas, which takes longer than all of this.
        videos, segments = (pq.ParquetFile(os.path.join(where, name)).read() for name in (VIDEOS, SEGMENTS))
        names = [name.removesuffix(".npy") for name in facts.files if name.endswith(".npy")]
        counts = np.from_dlpack(videos["segments"].combine_chunks()).astype(np.int64)
        vectors = StoredVectors.open(where, names) if facts.segments else None
        return cls(facts, videos, segments, vectors, np.concatenate([[0], np.cumsum(counts)]))

    def entry(self, row: int) -> Entry:
        """A video."""
        values = self.videos.slice(row, 1).to_pylist()[0]
        metadata = json.loads(values["metadata"])
        return Entry(values["id"], values["source"], values["duration"], tuple(values["captions"]), metadata)
