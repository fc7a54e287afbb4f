"""Values of queries, their spread over seeds, and intervals and p-values with seeds as a random effect."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit

from glscl.evaluation.metrics import METRICS
from glscl.evaluation.ranks import Ranks

Array = NDArray[np.floating[Any]]

LEVEL = 0.95
EXPONENT = 5 / 4  # of V / seeds in the degrees of freedom
_LEAST = 1e-100  # p-value; quantiles further out overflow


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
    """Mean and spread of a metric over seeds: (S,) the metric of each, or (S, Q) the values of each seed and query."""
    means = np.asarray(values, dtype=np.float64)
    if means.ndim == 2:
        means = means.mean(1)
    if means.ndim != 1 or not len(means):
        raise ValueError(f"values must be (S,) or (S, Q) with at least one seed, not {means.shape}")
    deviation = float(means.std(ddof=1)) if len(means) > 1 else None
    return Spread(float(means.mean()), deviation, float(means.min()), float(means.max()), len(means))


@dataclass(frozen=True, slots=True)
class Tail:
    """Tails of an interval: how it widens as its level rises, each share of the variance by its own Student's t."""

    share: float  # of the variance that is the seeds'
    seed_degrees: float
    groups: int  # independent queries
    trainings: int = 0  # models whose seeds have a share
    seeds: int = 0  # fewest of any of these

    def reach(self, alpha: float) -> float:
        """Half the width of the interval of level ``1 - alpha``, in standard errors."""
        queries = -stdtrit(self.groups - 1, alpha / 2)
        seeds = -stdtrit(self.seed_degrees, alpha / 2) if self.share else 0.0
        return float(self.share * seeds + (1 - self.share) * queries)

    def p_value(self, distance: float, half_width: float) -> float:
        """The alpha of the interval that ends at the null value, which is ``distance`` from the estimate.

        ``half_width`` is of the 95 % interval, on the null value's side; 0 where nothing varies.
        """
        if distance == 0 or np.isinf(half_width):
            return 1.0
        if half_width <= 0:
            return float(2.0 ** (1 - self.groups))
        wanted = distance / half_width * self.reach(1 - LEVEL)
        if self.reach(_LEAST) <= wanted:
            return _LEAST
        log_alpha = brentq(lambda log: wanted / (self.reach(np.exp(log)) + wanted) - 0.5, np.log(_LEAST), 0.0)
        return float(np.exp(log_alpha))


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, its confidence interval, and what went into it."""

    estimate: float
    low: float  # ``-inf`` is possible for retention
    high: float
    p_value: float | None
    """Two-sided, of the null value (difference 0, retention 100 %), below 0.05 exactly where the interval excludes it;
    None for a mean, which has none."""
    null: float | None
    standard_error: float  # of the estimate (of its logarithm, for retention)
    degrees: float
    queries: int
    seeds: tuple[int, ...]  # trainings of each model; 0 for one that is not trained, and has no seed
    tail: Tail  # how it widens

    @property
    def excludes_null(self) -> bool:
        """True if the null value lies outside the interval."""
        return self.null is not None and not self.low <= self.null <= self.high

    @property
    def note(self) -> str:
        """What the interval covers, as a sentence."""
        if self.low == self.high:
            return "Every resample gives the same value: these queries show no uncertainty, but there may be some."
        covered = f"Over {self.queries:,} queries"
        trained = [seeds for seeds in self.seeds if seeds]
        if not trained:
            return f"{covered}; nothing is trained."
        if min(trained) == 1:
            return f"{covered} of one training: how another seed would have fared is not in the interval."
        seeds = f"{trained[0]} seeds" if len(set(trained)) == 1 else f"{' and '.join(map(str, trained))} seeds"
        return f"{covered} and {seeds}{' of each' if len(trained) > 1 else ''}, as a random effect (Student's t)."


def build_interval(
    linearised: Sequence[Array],
    estimate: float,
    deviations: Array,
    null: float | None,
    scale: Callable[[Any], Any],
    seed: int,
    queries: int,
    seeds: tuple[int, ...],
) -> Interval:
    """Build the interval of a sum of seed means.

    ``linearised`` are (S, G) each training's share of the sum, ``deviations`` (resamples,) of the sum under resampled
    queries. ``scale`` increases, and takes estimate, null value and ends to the interval's unit; ``seed`` is of the
    noise.
    """
    resamples = len(deviations)
    variance, sampled, degrees, tail = split_variance(linearised)
    generator = np.random.default_rng([seed, 1])
    draws = deviations * min(1.0, np.sqrt(variance / sampled)) if sampled > 0 else deviations
    draws = draws + generator.standard_normal(resamples) * np.sqrt(max(0.0, variance - sampled))
    draws = draws * np.sqrt(degrees / generator.chisquare(degrees, resamples)) + estimate
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")  # may be infinite
    p_value = None
    if null is not None:
        p_value = tail.p_value(abs(estimate - null), estimate - low if null < estimate else high - estimate)
    return Interval(
        estimate=float(scale(estimate)),
        low=float(scale(low)),
        high=float(scale(high)),
        p_value=p_value,
        null=None if null is None else float(scale(null)),
        standard_error=float(np.sqrt(variance)),
        degrees=degrees,
        queries=queries,
        seeds=seeds,
        tail=tail,
    )


def split_variance(linearised: Sequence[Array]) -> tuple[float, float, float, Tail]:
    """Compute the variance of a sum of means over independent seeds and common queries, (S, G) values per system.

    Returns the variance, its share that resampling the queries shows (both with the residual), degrees of freedom, and
    what p-values need.
    """
    groups = linearised[0].shape[1]
    queries = float(np.sum([table.mean(0) for table in linearised], axis=0).var(ddof=1)) / groups
    seeds = residual = penalty = 0.0
    for table in linearised:
        count = len(table)
        if count > 1:
            between = float(table.mean(1).var(ddof=1)) / count
            rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
            residual += float(np.square(rest).sum()) / ((count - 1) * (groups - 1)) / (count * groups)
            penalty += between**2 / (count - 1)
            seeds += between
    sampled = max(queries - residual, 0.0)
    variance = seeds + sampled
    # Satterthwaite's rule would take `penalty` for what it is: see the module's docstring.
    doubt = sampled**2 / (groups - 1)
    if seeds > 0:
        doubt += penalty * (variance / seeds) ** (2 - EXPONENT)
    degrees = variance**2 / doubt if doubt > 0 else float(groups - 1)
    if seeds == 0:
        return variance, queries, degrees, Tail(0.0, 0.0, groups)
    counts = [len(table) for table in linearised if len(table) > 1]
    tail = Tail(seeds / variance, seeds**2 / penalty, groups, len(counts), min(counts))
    return variance, queries, degrees, tail
