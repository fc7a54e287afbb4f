"""Values of every query, and a metric's mean and spread over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from glscl.evaluation.metrics import METRICS
from glscl.evaluation.ranks import Ranks
from glscl.study.statistics.interval import Array


def per_query(ranks: Ranks) -> dict[str, Array]:
    """Every metric's value of every query, (Q,), whose mean over queries is the metric."""
    return {name: np.asarray(metric.of_ranks(ranks), dtype=np.float64) for name, metric in METRICS.items()}


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over seeds. ``deviation`` is the sample standard deviation, None for one seed."""

    mean: float
    deviation: float | None
    minimum: float
    maximum: float
    seeds: int


def over_seeds(values: Any) -> Spread:
    """Mean and spread of a metric over seeds.

    Args:
        values: (S,) the metric of each seed, or (S, Q) the values of each seed and query.
    """
    means = np.asarray(values, dtype=np.float64)
    if means.ndim == 2:
        means = means.mean(1)
    if means.ndim != 1 or not len(means):
        raise ValueError(f"values must be (S,) or (S, Q) with at least one seed, not {means.shape}")
    deviation = float(means.std(ddof=1)) if len(means) > 1 else None
    return Spread(float(means.mean()), deviation, float(means.min()), float(means.max()), len(means))
