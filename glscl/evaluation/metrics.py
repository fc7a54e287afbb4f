"""Retrieval metrics: the recall levels, the metrics and the directions that every table, log, page and study has.

A level added to `RECALL_LEVELS` is measured, logged, printed and drawn everywhere. Nothing here imports torch, so that
configurations and pages may use the names.
"""

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
SHORT_DIRECTIONS: dict[Direction, str] = {"text_to_video": "T→V", "video_to_text": "V→T"}  # where there is little room

RECALL_LEVELS = (1, 5, 10)  # every k of R@k that is measured and shown everywhere
DEEP_LEVEL = 50  # one more k, measured for every test set and shown in its report only
NDCG_LEVEL = 10  # the k of nDCG@k


def recall_name(k: int) -> str:
    """``R@k``."""
    return f"R@{k}"


def hit_name(k: int) -> str:
    """``hit@k``: a relevant video is among the first k, where a query may have several."""
    return f"hit@{k}"


RECALLS = tuple(map(recall_name, RECALL_LEVELS))  # names of the recalls that are shown everywhere
MAIN_METRIC = recall_name(1)  # checkpoints are chosen by it; sentences, maps and differences are about it
MRR, NDCG = "MRR", f"nDCG@{NDCG_LEVEL}"
MEDIAN_RANK, MEAN_RANK = "MdR", "MnR"
RANK_TITLES = {MEDIAN_RANK: "median rank", MEAN_RANK: "mean rank"}
OPTIMISTIC, PESSIMISTIC = f"{MAIN_METRIC}_optimistic", f"{MAIN_METRIC}_pessimistic"
"""R@1 with every tie broken in favour of, and against, the right answer."""
SUMMARY = (*RECALLS, MRR, NDCG, *RANK_TITLES)  # the metrics of a row in a table of results
FULL_SUMMARY = (*RECALLS, recall_name(DEEP_LEVEL), MRR, NDCG, *RANK_TITLES)  # the same with the deep level
RELEVANT_SUMMARY = (*RECALLS, *map(hit_name, RECALL_LEVELS), MRR, NDCG)
"""The metrics of a test set in which a caption may have several relevant videos (`measure_relevant`)."""
HELD_OUT_METRICS = tuple(f"{direction}_{name}" for direction in DIRECTIONS for name in RECALLS)
"""What held-out sets are scored by during training; a sweep may search for any of them."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that is a mean over queries, so that a study can resample it."""

    title: str
    per_cent: bool  # a difference is then in points
    higher_is_better: bool
    of_ranks: "Callable[[Ranks], Tensor]"  # ranks of Q queries -> values (Q,), expected over breaking ties at random

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
    MRR: Metric("mean reciprocal rank", True, True, lambda ranks: 100.0 * ranks.reciprocal),
    NDCG: Metric(
        f"discounted gain among the first {NDCG_LEVEL}", True, True, lambda r: 100.0 * r.discounted(NDCG_LEVEL)
    ),
    MEAN_RANK: Metric(RANK_TITLES[MEAN_RANK], False, False, lambda ranks: ranks.mid),
}
"""The metrics of a study, by name. The median rank is no mean over queries and is not among them."""


def measure_ranks(ranks: "Ranks") -> dict[str, int | float]:
    """Recalls, MRR and nDCG in per cent, median and mean rank, R@1 with ties broken either way.

    Raises `ValueError`: no queries.
    """
    queries = len(ranks)
    if queries == 0:
        raise ValueError("no queries: there is nothing to measure")
    mid = ranks.mid
    return {
        **{recall_name(k): 100.0 * float(ranks.within(k).sum()) / queries for k in (*RECALL_LEVELS, DEEP_LEVEL)},
        MRR: 100.0 * float(ranks.reciprocal.mean()),
        NDCG: 100.0 * float(ranks.discounted(NDCG_LEVEL).mean()),
        MEDIAN_RANK: statistics.median(mid.tolist()),  # torch.median returns the lower of the two middle values
        MEAN_RANK: float(mid.mean()),
        "queries": queries,
        OPTIMISTIC: 100.0 * int((ranks.optimistic == 1).sum()) / queries,
        PESSIMISTIC: 100.0 * int((ranks.pessimistic == 1).sum()) / queries,
    }
