"""Families of comparisons: Holm's correction, and how many resamples, queries and seeds a family needs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from scipy import stats

from glscl.study.statistics.interval import LEVEL

Key = TypeVar("Key", bound=Hashable)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's step-down correction for a family of comparisons (Holm 1979): adjusted p-values, in the order given.

    Raises:
        ValueError: a p-value is not between 0 and 1.
    """
    if any(not 0 <= p <= 1 for p in p_values.values()):
        raise ValueError(f"p-values must lie between 0 and 1, not {sorted(p_values.values())}")
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for position, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - position) * p))
        adjusted[key] = largest
    return {key: adjusted[key] for key in p_values}


def enough_resamples(family: int) -> int:
    """Resamples that a family of comparisons needs, so that the noise in an interval's end does not decide p-values.

    The end, a quantile of R draws, has a relative error of ``1.36 / sqrt(R)``. At the ``z`` that Holm's correction asks
    of the smallest p-value, that changes the logarithm of p by ``z²`` times as much, which must not exceed 1.
    """
    return int(np.ceil((1.36 * stats.norm.isf((1 - LEVEL) / 2 / family) ** 2) ** 2))


def enough_queries(family: int) -> int:
    """Independent queries without which not even a difference on every one of them is shown in a family of comparisons.

    The signs of G differences agree by chance in ``2^(1 - G)`` of cases.
    """
    return int(np.ceil(1 + np.log2(family / (1 - LEVEL))))


def seed_errors(family: int, seeds: int) -> float:
    """Standard errors that a difference needs to be shown in a family of comparisons, where seeds make up the error.

    Args:
        family: number of comparisons.
        seeds: of each of the two models, two or more.
    """
    return float(stats.t.isf((1 - LEVEL) / 2 / family, 2 * (seeds - 1)))
