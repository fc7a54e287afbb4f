"""The segments of an index that count, in one row of numbers, whichever part holds them."""

from __future__ import annotations

import json
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from glscl.evaluation.caches import Cache
from glscl.index.catalogue import Catalogue
from glscl.index.records import Entry, Value
from glscl.index.vectors import StoredVectors, gather
from glscl.index.where import Test

Rows = npt.NDArray[np.int64]


class Segments:
    """Segments that can be found are numbered through all parts, those of a video one after the other.

    Attributes:
        video: (S,) of each segment the number of its video, counted through all rows of all parts.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._parts, self._live = catalogue.parts, catalogue.live
        self._starts = np.concatenate([[0], np.cumsum([len(rows) for rows in self._live])]).astype(np.int64)
        self._video_starts = np.concatenate([[0], np.cumsum([part.facts.videos for part in self._parts])]).astype(
            np.int64
        )
        owners = [
            first + np.searchsorted(part.first, rows, side="right") - 1
            for part, rows, first in zip(self._parts, self._live, self._video_starts, strict=False)
        ]
        self.video: Rows = np.concatenate(owners).astype(np.int64) if owners else np.zeros(0, np.int64)
        self._vectors = [
            StoredVectors(part.vectors.arrays, rows)
            for part, rows in zip(self._parts, self._live, strict=True)
            if part.vectors is not None
        ]
        self._vector_starts = np.concatenate([[0], np.cumsum([len(own) for own in self._vectors])]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.video)

    def gather(self, rows: Rows, device: torch.device) -> Cache:
        """What the head keeps of some, in the order given."""
        owner = np.searchsorted(self._vector_starts, rows, side="right") - 1
        cache = gather(self._vectors, owner, rows - self._vector_starts[owner])
        return {name: tensor.to(device) for name, tensor in cache.items()}

    def rows_of(self, video: int) -> Rows:
        """The segments of a video, in the order of time."""
        return np.arange(np.searchsorted(self.video, video), np.searchsorted(self.video, video, side="right"))

    def best_videos(self, rows: Rows, scores: npt.NDArray[np.float32], k: int) -> list[int]:
        """The ``k`` videos whose best segment scores highest, best first; of equals, the first."""
        if not len(rows):
            return []
        order = np.lexsort((rows, -scores))
        videos = self.video[rows[order]]
        _, first = np.unique(videos, return_index=True)
        return [int(video) for video in videos[np.sort(first)[:k]]]

    def _place(self, row: int) -> tuple[int, int]:
        """Part of a segment, and its row in the part's table."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return part, int(self._live[part][row - self._starts[part]])

    def edges(self, row: int) -> tuple[float, float]:
        """First and last second of a segment."""
        part, at = self._place(row)
        table = self._parts[part].segments
        return float(table["start"][at].as_py()), float(table["end"][at].as_py())

    def edges_of(self, rows: Rows) -> list[tuple[float, float]]:
        """`edges` of segments of one video."""
        part, _ = self._place(int(rows[0]))
        at, table = self._live[part][rows - self._starts[part]], self._parts[part].segments
        starts, ends = table["start"], table["end"]  # `take` of a numpy array would import pandas
        return [(float(starts[row].as_py()), float(ends[row].as_py())) for row in at.tolist()]

    def times(self, row: int) -> tuple[float, ...]:
        """Seconds of the frames of a segment."""
        part, at = self._place(row)
        return tuple(self._parts[part].segments["times"][at].as_py())

    def entry(self, video: int) -> Entry:
        """A video by its number."""
        part = int(np.searchsorted(self._video_starts, video, side="right")) - 1
        return self._parts[part].entry(int(video - self._video_starts[part]))

    @property
    def seconds(self) -> float:
        """Of all videos together."""
        durations = np.array(self._column("duration"), np.float64)
        return float(durations[np.unique(self.video)].sum())

    def allowed(self, tests: dict[str, Test]) -> Rows:
        """The segments of the videos that pass all tests."""
        keep = np.ones(int(self._video_starts[-1]), bool)
        for key, test in tests.items():
            keep &= np.fromiter((test(value) for value in self._values(key)), bool, len(keep))
        return np.flatnonzero(keep[self.video])

    def _values(self, key: str) -> list[Value | None]:
        """The value of a key of every video; of ``id`` and ``duration`` the video's own, where metadata have none."""
        own = [metadata.get(key) for metadata in self._metadata]
        if key in ("id", "duration"):
            return [other if value is None else value for value, other in zip(own, self._column(key), strict=True)]
        return own

    @cached_property
    def _metadata(self) -> list[dict[str, Value]]:
        return [json.loads(str(text)) for text in self._column("metadata")]

    def _column(self, name: str) -> list[Value]:
        return [value for part in self._parts for value in part.videos[name].to_pylist()]
