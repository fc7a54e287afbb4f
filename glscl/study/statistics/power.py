"""How small a difference a comparison can show: its power, before the study and after it.

The interval's own rule is applied to what it would see if the variances were these: seed variances are drawn (chi
square), degrees of freedom and p-value follow as in `interval`, and the estimate is normal. So the power is that of the
test as it is, not of a z-test.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, stdtrit

from glscl.study.statistics.interval import EXPONENT, LEVEL, Array, Interval

POWER = 0.8
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Precision:
    """The variances of a difference, in points²."""

    seed_variance: float  # of the seed means of all its trainings, added up
    trainings: int  # of equal share in that; 0: nothing is trained, or one seed
    seeds: int  # of each training
    query_variance: float  # of the mean over queries
    groups: int  # independent queries

    @classmethod
    def of(cls, difference: Interval) -> "Precision":
        """As a study has found them."""
        variance, tail = difference.standard_error**2, difference.tail
        seeds = tail.share * variance
        return cls(seeds, tail.trainings if seeds else 0, tail.seeds, variance - seeds, tail.groups)

    @property
    def standard_error(self) -> float:
        """Of the difference."""
        return float(np.sqrt(self.seed_variance + self.query_variance))


def power(precision: Precision, difference: float, level: float) -> float:
    """Chance that a true ``difference`` is shown where p must be ``level`` or less. Nothing must vary for certainty."""
    error = precision.standard_error
    if error == 0:
        return float(difference != 0)
    return _power(difference / error, _thresholds(*_shape(precision), level))


def detectable(precision: Precision, level: float) -> float:
    """The least difference that is shown with 80 % power where p must be ``level`` or less."""
    error = precision.standard_error
    return error * _detectable(*_shape(precision), level) if error else 0.0


def _shape(precision: Precision) -> tuple[float, int, int, int]:
    """All that the power depends on, in standard errors; the share is rounded, so that few are computed."""
    share = round(precision.seed_variance / precision.standard_error**2, 2) if precision.trainings else 0.0
    return share, precision.trainings, precision.seeds, precision.groups


def _power(difference: float, thresholds: Array) -> float:
    return float((ndtr(difference - thresholds) + ndtr(-difference - thresholds)).mean())


@functools.lru_cache(maxsize=1024)
def _detectable(share: float, trainings: int, seeds: int, groups: int, level: float) -> float:
    thresholds = _thresholds(share, trainings, seeds, groups, level)
    return float(brentq(lambda x: _power(x, thresholds) - POWER, 0.0, float(thresholds.max()) + 10.0))


@functools.lru_cache(maxsize=64)
def _thresholds(share: float, trainings: int, seeds: int, groups: int, level: float) -> Array:
    """Estimates, in true standard errors, from which a difference is shown, one per draw of the seed variances."""
    half = 1 - LEVEL
    if share == 0 or trainings == 0:
        return np.array([-stdtrit(groups - 1, min(level, half) / 2)])
    degrees = seeds - 1
    drawn = np.random.default_rng(0).chisquare(degrees, (_DRAWS, trainings)) / degrees * share / trainings
    found = drawn.sum(1)
    penalty = np.square(drawn).sum(1) / degrees
    variance = found + 1 - share
    doubt = (1 - share) ** 2 / (groups - 1) + penalty * (variance / found) ** (2 - EXPONENT)

    def reach(alpha: float) -> Array:
        seeds_reach = -stdtrit(found**2 / penalty, alpha / 2)
        reached: Array = (found * seeds_reach - (1 - share) * stdtrit(groups - 1, alpha / 2)) / variance
        return reached

    ends = -stdtrit(variance**2 / doubt, half / 2) * np.sqrt(variance)
    thresholds: Array = ends * np.maximum(1.0, reach(level) / reach(half))
    return thresholds
