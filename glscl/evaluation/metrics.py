"""Retrieval metrics: the recall levels, the metrics and the directions that every table, log, page and study has.

A level added to `RECALL_LEVELS` is measured, logged, printed and drawn everywhere. Nothing here imports torch, so that
configurations and pages may use the names.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from glscl.evaluation.ranks import Ranks

Direction = Literal["text_to_video", "video_to_text"]

DIRECTIONS: dict[Direction, str] = {"text_to_video": "Text to video", "video_to_text": "Video to text"}
"""Every direction, and its title."""
SHORT_DIRECTIONS: dict[Direction, str] = {"text_to_video": "T→V", "video_to_text": "V→T"}
"""The same where there is little room."""

RECALL_LEVELS = (1, 5, 10)
"""Every k of R@k that is measured and shown everywhere."""
DEEP_LEVEL = 50
"""One more k, measured for every test set and shown in its report only."""


def recall_name(k: int) -> str:
    """``R@k``."""
    return f"R@{k}"


RECALLS = tuple(map(recall_name, RECALL_LEVELS))
"""Names of the recalls that are shown everywhere."""
MAIN_METRIC = recall_name(1)
"""The metric that checkpoints are chosen by and that sentences, maps and differences are about."""
MEDIAN_RANK, MEAN_RANK = "MdR", "MnR"
RANK_TITLES = {MEDIAN_RANK: "median rank", MEAN_RANK: "mean rank"}
OPTIMISTIC, PESSIMISTIC = f"{MAIN_METRIC}_optimistic", f"{MAIN_METRIC}_pessimistic"
"""R@1 with every tie broken in favour of, and against, the right answer."""
SUMMARY = (*RECALLS, *RANK_TITLES)
"""The metrics of a row in a table of results."""
FULL_SUMMARY = (*RECALLS, recall_name(DEEP_LEVEL), *RANK_TITLES)
"""The same with the deep level."""
HELD_OUT_METRICS = tuple(f"{direction}_{name}" for direction in DIRECTIONS for name in RECALLS)
"""What held-out sets are scored by during training; a sweep may search for any of them."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that is a mean over queries, so that a study can resample it."""

    title: str
    per_cent: bool
    """A difference is then in points."""
    higher_is_better: bool
    of_ranks: Callable[[Ranks], Tensor]
    """Ranks of Q queries -> values (Q,), expectations over breaking ties at random."""

    @property
    def unit(self) -> str:
        """Unit of a difference, for sentences."""
        return "points" if self.per_cent else "ranks"

    @property
    def bounds(self) -> tuple[float, float]:
        """The values that it can have."""
        return (0.0, 100.0) if self.per_cent else (1.0, float("inf"))


def _recall(k: int) -> Metric:
    return Metric(f"recall at {k}", True, True, lambda ranks: 100.0 * ranks.within(k))


METRICS: dict[str, Metric] = {
    **{recall_name(k): _recall(k) for k in RECALL_LEVELS},
    "MRR": Metric("mean reciprocal rank", True, True, lambda ranks: 100.0 * ranks.reciprocal),
    MEAN_RANK: Metric(RANK_TITLES[MEAN_RANK], False, False, lambda ranks: ranks.mid),
}
"""The metrics of a study, by name. The median rank is no mean over queries and is not among them."""


def measure_ranks(ranks: Ranks) -> dict[str, int | float]:
    """Recalls in per cent (see `Ranks.within`), median and mean rank, and R@1 with all ties broken either way.

    Raises:
        ValueError: there are no queries.
    """
    queries = len(ranks)
    if queries == 0:
        raise ValueError("no queries: there is nothing to measure")
    mid = ranks.mid
    return {
        **{recall_name(k): 100.0 * float(ranks.within(k).sum()) / queries for k in (*RECALL_LEVELS, DEEP_LEVEL)},
        MEDIAN_RANK: statistics.median(mid.tolist()),  # torch.median returns the lower of the two middle values
        MEAN_RANK: float(mid.mean()),
        "queries": queries,
        OPTIMISTIC: 100.0 * int((ranks.optimistic == 1).sum()) / queries,
        PESSIMISTIC: 100.0 * int((ranks.pessimistic == 1).sum()) / queries,
    }
