"""What intervals allow to be said: Holm's correction, what a family of comparisons needs, and the sentence of one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
from scipy import stats

from glscl.evaluation.metrics import METRICS
from glscl.study.statistics.interval import LEVEL, Interval

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

    Each of the two models has so many seeds, two or more.
    """
    return float(stats.t.isf((1 - LEVEL) / 2 / family, 2 * (seeds - 1)))


def claim(
    difference: Interval, first: str, second: str, metric: str, where: str = "", adjusted_p: float | None = None
) -> str:
    """The sentence that a difference allows, and no more.

    Args:
        difference: `QueryBootstrap.difference` of the models with the names ``first`` and ``second``.
        metric: key of `METRICS`.
        where: test set or condition, as in ``"on activitynet"``.
        adjusted_p: of `holm`; a difference that does not survive the correction is not shown either.
    """
    kind = METRICS[metric]
    place = f" {where}" if where else ""
    estimate, low, high = _signed(difference.estimate, difference.low, difference.high)
    figures = f"in {metric}{place}: {estimate} {kind.unit} (95 % interval {low} to {high})"
    if not difference.excludes_null:
        verdict = f"No difference shown between {first} and {second} {figures}."
    elif adjusted_p is not None and adjusted_p > 1 - LEVEL:
        verdict = (
            f"No difference shown between {first} and {second} {figures}, "
            f"but p = {adjusted_p:.2g} after Holm's correction for the other comparisons."
        )
    else:
        better = (difference.estimate > 0) == kind.higher_is_better
        verdict = f"{first} is {'better' if better else 'worse'} than {second} {figures}."
    return f"{verdict} {difference.note}"


def _signed(*values: float) -> list[str]:
    """Numbers with sign, all to the same decimals: one, or as many as keep a number that is not 0 from reading 0."""
    decimals = 1
    while decimals < 4 and any(value != 0 and round(abs(value), decimals) == 0 for value in values):
        decimals += 1
    return [f"{value:+.{decimals}f}".replace("-", "−") if round(value, decimals) else "0" for value in values]
