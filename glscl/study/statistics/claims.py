"""What intervals allow to be said: Holm's correction, what a family of comparisons needs, and the sentence of one."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

from glscl.evaluation.metrics import METRICS
from glscl.study.statistics.interval import LEVEL, Interval

Key = TypeVar("Key", bound=Hashable)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's step-down correction (1979): adjusted p-values, in the order given. Raises `ValueError`: not in 0 to 1."""
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
    """Fewest independent queries that can show any difference: G signs agree by chance in ``2^(1 - G)`` of cases."""
    return int(np.ceil(1 + np.log2(family / (1 - LEVEL))))


def seed_errors(family: int, seeds: int) -> float:
    """Standard errors a difference needs to be shown, where the error is that of each model's two or more seeds."""
    return float(stats.t.isf((1 - LEVEL) / 2 / family, 2 * (seeds - 1)))


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether a difference is shown to be smaller than a margin."""

    margin: float  # points
    p_value: float  # after Holm's correction for the other equivalences of its family

    @property
    def shown(self) -> bool:
        """True if both one-sided tests refute a difference as large as the margin."""
        return self.p_value <= 1 - LEVEL


def claim(
    difference: Interval,
    first: str,
    second: str,
    metric: str,
    where: str = "",
    adjusted_p: float | None = None,
    equivalence: Equivalence | None = None,
    detectable: float | None = None,
) -> str:
    """The sentence that a difference of the models ``first`` and ``second`` allows, and no more.

    ``metric`` is a key of `METRICS`, ``where`` a test set or condition, as in ``"on activitynet"``. A difference that
    does not survive Holm's correction, by its ``adjusted_p``, is not shown either: then the sentence says what
    difference was ``detectable``. An ``equivalence`` that is shown is a claim of its own, beside either.
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
        return _with_equivalence(
            f"{first} is {'better' if better else 'worse'} than {second} {figures}.", equivalence, difference
        )
    if detectable is not None:
        verdict += f" Detectable with 80 % power: {detectable:.1f} {kind.unit}."
    return _with_equivalence(verdict, equivalence, difference)


def _with_equivalence(verdict: str, equivalence: Equivalence | None, difference: Interval) -> str:
    if equivalence is not None and equivalence.shown:
        verdict += f" They are equal within ±{equivalence.margin:g} points (p = {equivalence.p_value:.2g})."
    elif equivalence is not None:
        verdict += (
            f" That they are equal within ±{equivalence.margin:g} points is not shown (p = {equivalence.p_value:.2g})."
        )
    return f"{verdict} {difference.note}"


def _signed(*values: float) -> list[str]:
    """Numbers with sign, all to the same decimals: one, or as many as keep a number that is not 0 from reading 0."""
    decimals = 1
    while decimals < 4 and any(value != 0 and round(abs(value), decimals) == 0 for value in values):
        decimals += 1
    return [f"{value:+.{decimals}f}".replace("-", "−") if round(value, decimals) else "0" for value in values]
