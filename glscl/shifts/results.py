"""The results of an evaluation under shifts, as ``shifts.json`` holds them and the page shows them.

Recalls are in per cent, changes in points. Strength 0 is the frames as they are.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from glscl.data.quarantine import Entry, Incomplete
from glscl.data.records import describe_share
from glscl.evaluation.metrics import Direction
from glscl.evaluation.results import Metrics, ScoredRun, Section
from glscl.study.results import Estimate


class Strength(Section):
    """One pass over a test set."""

    shift: str  # kind; empty for the frames as they are
    strength: int
    value: float | None  # what the strength stands for
    recall: dict[Direction, Estimate]  # R@1 with its interval over queries
    change: dict[Direction, Estimate]  # of R@1 from the frames as they are, paired over queries
    metrics: dict[Direction, Metrics]  # all of an ordinary evaluation
    hubness_skewness: float


class ShiftedTest(Section):
    """One test set."""

    name: str
    domain: str
    split: str
    relation: Literal["in-domain", "cross-domain"]
    shards: str
    fingerprint: str  # of the set's manifest
    videos: int
    texts: int
    quarantine: list[Entry]
    rejected: int  # videos left out when the shards were built
    plain: Strength
    shifted: list[Strength]

    @property
    def share(self) -> str:
        """``16 of 19``: its videos, wherever some are missing."""
        return describe_share(self.videos, self.videos + len(self.quarantine) + self.rejected)

    @property
    def passes(self) -> list[Strength]:
        """The frames as they are, and every shift."""
        return [self.plain, *self.shifted]

    def of_kind(self, kind: str) -> list[Strength]:
        """The strengths of one kind of shift, 0 included."""
        return [self.plain, *(one for one in self.shifted if one.shift == kind)]


class ShiftResults(ScoredRun):
    """One model under shifts on all its test sets."""

    resamples: int
    kinds: dict[str, str]  # name -> what it is, with the unit of its values
    tests: list[ShiftedTest]
    incomplete: list[Incomplete] = Field(default_factory=list)
