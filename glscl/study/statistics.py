"""What a difference between two models is worth: intervals over queries and seeds, correction, and the sentence.

A figure of the study is the mean of a per-query value over Q queries and S trainings that differ in their seed. Both
are samples: other queries could have been written, other seeds drawn. Queries are resampled (10,000 times, the same
resamples for every model, so that comparisons are paired). Seeds are too few to be resampled: the bootstrap variance
of a mean of three is 2/3 of the true one, and its tails are those of a normal distribution. Measured on simulated
models with three seeds, 95 % intervals of the bootstrap that resamples queries and seeds hold the truth in 99 % of
cases where seeds hardly matter and in 87 % where they do.

So seeds are a random effect, as readers are in reader studies (Dorfman, Berbaum & Metz 1992; Obuchowski & Rockette
1995; Hillis 2007). With the two-way analysis of variance of the (S, Q) values::

    V       = seeds + max(queries - residual, 0)
    seeds   = variance of the S seed means / S         (holds the residual, with S - 1 degrees of freedom)
    queries = variance of the Q query means / Q        (holds the residual too, so it is taken off once)
    df      = (S - 1) (V / seeds)^(5/4)

Satterthwaite's and Hillis's df has the exponent 2. But of three seeds the ratio ``V / seeds`` is itself uncertain: when
they happen to be alike, V is too small and df too large at once, and 95 % intervals of one model's mean held the truth
in as few as 91 % of simulated cases. Exponent 1 errs a little on the other side for differences (96.6 %). The one
between was chosen by simulation of the normal model: 93.6 to 96.5 % for any share of seeds in V, with three seeds
(with two, as little as 90 % for one model's mean: take three).

Every resample of the queries is one draw of the figure; it gets normal noise for the variance that the queries do
not explain, and its deviation is multiplied by ``sqrt(df / chi²_df)``, which makes it Student's t. The 2.5 and 97.5 %
points of the draws are the interval. Differences and retention are linearised per query first, and the seed variances
of the two models add up (Welch: S - 1 above becomes ``ν = seeds² / Σ (seeds_i² / (S_i - 1))``).

p-values do not count draws: 10,000 of them end at 2/10,001, and a family of some hundred comparisons needs less. They
are tails of Student's t on the scale of the interval: the interval of level ``1 - α`` reaches from the estimate to its
95 % end times ``c(α) / c(0.05)``, and p is the α whose interval ends at the null value. So p < 0.05 exactly where the
95 % interval excludes the null value. ``c`` weights each part's own quantile by its variance (Cochran & Cox 1950)::

    c(α) = (seeds t_ν(α) + queries t_(G-1)(α)) / V

One df for both, as above, is right near 0.05 and wrong far out: where seeds make up most of V, p < 0.0001 came five
times as often as that in simulations of equal models with three seeds. So weighted it comes less often than it may,
whatever the share of the seeds (with two seeds, up to 1.7 times as often: take three). Where nothing varies there is no
t; p is then that of G signs that agree, ``2^(1 - G)``.

Assumed: seeds are exchangeable, and independent between the two models compared (if the same seed helps both, the
interval is too wide, not too narrow); seed effects are not far from normal; queries are independent, or grouped so
that the groups are (the captions of one video are not). With one seed nothing is known of the differences between
trainings: the interval then speaks of that one training, and says so. ``tests/study/test_statistics.py`` checks
the coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from scipy.special import stdtrit

from glscl.evaluation.metrics import METRICS
from glscl.evaluation.ranks import Ranks

Array = NDArray[np.floating[Any]]
Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.95
_EXPONENT = 5 / 4  # of V / seeds in the degrees of freedom
_CHUNK = 1 << 22  # resampled queries held at a time
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


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, its confidence interval, and what went into it.

    Attributes:
        estimate: of the data themselves.
        low: lower end; ``-inf`` is possible for retention.
        high: upper end.
        p_value: two-sided, of the null value (difference 0, retention 100 %), below 0.05 exactly where the interval
            excludes it; None for a mean, which has none.
        null: the null value.
        standard_error: of the estimate (of its logarithm, for retention).
        degrees: of freedom.
        queries: number of queries.
        seeds: number of trainings of each model; 0 for one that is not trained, and has no seed.
    """

    estimate: float
    low: float
    high: float
    p_value: float | None
    null: float | None
    standard_error: float
    degrees: float
    queries: int
    seeds: tuple[int, ...]

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

    def to_dict(self) -> dict[str, float | str | None]:
        """For ``results.json`` and tables."""
        return {
            "estimate": self.estimate,
            "low": self.low,
            "high": self.high,
            "p_value": self.p_value,
            "standard_error": self.standard_error,
            "degrees": self.degrees,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """One model's values on a test set, with its resampled means; made by `QueryBootstrap.system`.

    Attributes:
        owner: the bootstrap that made it: only systems of one bootstrap are paired.
        units: (S, G) values of the resampled units, whose mean over G is the seed's metric.
        draws: (resamples,) the mean over seeds, of resampled queries.
        trained: False for a model without training, which has no seed.
    """

    owner: QueryBootstrap
    units: Array
    draws: Array
    trained: bool

    @property
    def mean(self) -> float:
        """The metric, over all queries and seeds."""
        return float(self.units.mean())


class QueryBootstrap:
    """Paired bootstrap over the queries of one test set and direction.

    Args:
        queries: number of queries Q, or (Q,) integers that name each query's group, for queries that are not
            independent: the captions of one video. Groups are resampled whole.
        resamples: number of resamples; `enough_resamples` says how many a family of comparisons needs.
        seed: of the resampling. Results depend on nothing else, not even on the order of calls.

    Raises:
        ValueError: fewer than two queries or groups.
    """

    def __init__(self, queries: int | Any, resamples: int = 10_000, seed: int = 0) -> None:
        names = np.arange(queries) if isinstance(queries, int) else np.asarray(queries)
        if names.ndim != 1:
            raise ValueError(f"queries must be a number or (Q,) names of groups, not of shape {names.shape}")
        sizes: NDArray[np.intp]
        _, self._group, sizes = np.unique(names, return_inverse=True, return_counts=True)
        self.queries, self.groups = len(names), len(sizes)
        if self.groups < 2 or resamples < 1:
            raise ValueError(f"needs at least 2 independent queries and 1 resample, not {self.groups} and {resamples}")
        self.resamples, self.seed = resamples, seed
        self._sizes = sizes.astype(np.float64)
        self._counts = self._resample()

    def _resample(self) -> NDArray[np.uint8]:
        """(resamples, G) how often each resample holds each group."""
        generator = np.random.default_rng([self.seed, 0])
        counts = np.empty((self.resamples, self.groups), dtype=np.uint8)
        for rows in self._chunks():
            drawn = generator.integers(0, self.groups, (rows.stop - rows.start, self.groups))
            drawn += self.groups * np.arange(len(drawn))[:, None]
            counts[rows] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        return counts

    def _chunks(self) -> list[slice]:
        size = max(1, _CHUNK // self.groups)
        return [slice(start, min(start + size, self.resamples)) for start in range(0, self.resamples, size)]

    def system(self, values: Any, *, trained: bool = True) -> System:
        """One model's values, resampled.

        Args:
            values: (S, Q) per-query values of each seed, or (Q,) of one.
            trained: False for a model without training (zero-shot towers), whose one row is all there is to know.

        Raises:
            ValueError: of another shape, not finite, or several rows of an untrained model.
        """
        return self.systems({0: (values, trained)})[0]

    def systems(self, tables: Mapping[Key, tuple[Any, bool]]) -> dict[Key, System]:
        """Several models at once, in one pass over the resamples: ``(values, trained)`` of each as `system` takes them.

        Raises:
            ValueError: as `system`.
        """
        checked = {key: self._table(values, trained) for key, (values, trained) in tables.items()}
        sums = {key: np.stack([np.bincount(self._group, row, self.groups) for row in t]) for key, t in checked.items()}
        columns = np.stack([*(part.mean(0) for part in sums.values()), self._sizes], axis=1)
        totals = np.concatenate([self._counts[rows].astype(np.float64) @ columns for rows in self._chunks()])
        systems = {}
        for column, (key, table) in enumerate(checked.items()):
            mean = table.mean()
            # Groups of unequal size: the mean is a ratio of sums, here linearised. Single queries stay what they are.
            units = mean + (sums[key] - mean * self._sizes) * (self.groups / self.queries)
            systems[key] = System(self, units, totals[:, column] / totals[:, -1], tables[key][1])
        return systems

    def _table(self, values: Any, trained: bool) -> Array:
        """Checked values (S, Q)."""
        table: Array = np.atleast_2d(np.asarray(values, dtype=np.float64))
        if table.ndim != 2 or table.shape[1] != self.queries or not len(table):
            raise ValueError(f"values must be (seeds, {self.queries}), not {np.shape(values)}")
        if not np.isfinite(table).all():
            raise ValueError("values must be finite")
        if not trained and len(table) != 1:
            raise ValueError(f"a model that is not trained has no seeds, but there are {len(table)} rows")
        return table

    def mean(self, system: System, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Interval:
        """The metric itself. Its interval is cut at ``bounds``, what the metric can be at all."""
        deviations = system.draws - system.mean
        return self._interval([system], [system.units], system.mean, deviations, None, lambda x: np.clip(x, *bounds))

    def difference(self, first: System, second: System) -> Interval:
        """``first - second``, paired over queries. Lift is the difference from a system that is not trained."""
        estimate = first.mean - second.mean
        deviations = first.draws - second.draws - estimate
        return self._interval([first, second], [first.units, -second.units], estimate, deviations, 0.0, lambda x: x)

    def retention(self, transferred: System, in_domain: System) -> Interval | None:
        """What is left of ``in_domain`` after training elsewhere: ``100 * transferred / in_domain``, in per cent.

        Both are tested on the same queries; the interval is that of the logarithm, for values that are not negative.

        Returns:
            None if either figure is 0: then there is no ratio, or none with an interval.
        """
        top, base = transferred.mean, in_domain.mean
        if top <= 0 or base <= 0:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold no hit: retention 0 or infinite
            deviations = np.nan_to_num(
                np.log(transferred.draws / in_domain.draws), nan=0.0, posinf=np.inf, neginf=-np.inf
            )
        estimate = float(np.log(top / base))
        parts = [transferred.units / top, -in_domain.units / base]
        systems = [transferred, in_domain]
        return self._interval(systems, parts, estimate, deviations - estimate, 0.0, lambda x: 100.0 * np.exp(x))

    def _interval(
        self,
        systems: Sequence[System],
        parts: Sequence[Array],
        estimate: float,
        deviations: Array,
        null: float | None,
        scale: Callable[[Any], Any],
    ) -> Interval:
        if any(system.owner is not self for system in systems):
            raise ValueError("the systems belong to another bootstrap, so they are not paired over these queries")
        seeds = tuple(len(system.units) if system.trained else 0 for system in systems)
        return _interval(parts, estimate, deviations, null, scale, self.seed, self.queries, seeds)


def mean_difference(cells: Sequence[tuple[Hashable, System, System]]) -> Interval:
    """Mean over several cells of ``first - second``: what a comparison says over all transfers, not over one.

    Queries of one test set are resampled together in all its cells; those of different sets independently, stratum by
    stratum. The cells of one training share its seeds, those of different trainings do not.

    Args:
        cells: name of the training, and the two models' values on a test set after it. Each pair belongs to one
            bootstrap; different bootstraps must have different seeds and equally many resamples.

    Raises:
        ValueError: no cells, a pair of different bootstraps, or bootstraps that are not independent.
    """
    if not cells:
        raise ValueError("no cells to average")
    owners = list(dict.fromkeys(first.owner for _, first, _ in cells))
    if any(first.owner is not second.owner for _, first, second in cells):
        raise ValueError("a pair belongs to two bootstraps, so it is not paired over queries")
    if len({owner.seed for owner in owners}) < len(owners) or len({owner.resamples for owner in owners}) > 1:
        raise ValueError("the bootstraps of different test sets need different seeds and equally many resamples")
    weight, groups = 1 / len(cells), sum(owner.groups for owner in owners)
    estimate = weight * float(sum(first.mean - second.mean for _, first, second in cells))
    deviations = weight * np.sum([first.draws - second.draws for _, first, second in cells], axis=0) - estimate
    offsets = dict(zip(owners, np.cumsum([0, *(owner.groups for owner in owners)]), strict=False))
    parts: dict[tuple[Hashable, float], Array] = {}
    trained: dict[tuple[Hashable, float], int] = {}
    for training, first, second in cells:
        for sign, system in ((1.0, first), (-1.0, second)):
            # Units of a stratum deviate from its own mean; stretched so that their mean over all strata is the share
            # of the cell in the average, seed by seed.
            owner = system.owner
            stretch = sign * weight * groups / owner.groups
            part = parts.setdefault((training, sign), np.zeros((len(system.units), groups)))
            if len(part) != len(system.units):
                raise ValueError(
                    f"training {training}: {len(part)} seeds on one test set, {len(system.units)} on another"
                )
            part[:, offsets[owner] : offsets[owner] + owner.groups] += stretch * (system.units - system.mean)
            part += sign * weight * system.mean
            trained[training, sign] = len(system.units) if system.trained else 0
    queries = sum(owner.queries for owner in owners)
    smallest = tuple(min(n for (_, s), n in trained.items() if s == sign) for sign in (1.0, -1.0))
    return _interval(list(parts.values()), estimate, deviations, 0.0, lambda x: x, owners[0].seed, queries, smallest)


def _interval(
    parts: Sequence[Array],
    estimate: float,
    deviations: Array,
    null: float | None,
    scale: Callable[[Any], Any],
    seed: int,
    queries: int,
    seeds: tuple[int, ...],
) -> Interval:
    """The interval of a sum of seed means: ``parts`` (S, G) are each training's linearised share of it.

    ``deviations`` (resamples,) are the statistic's under resampled queries; ``scale``, increasing, takes estimate,
    null value and ends to the unit that they are told in.
    """
    resamples = len(deviations)
    variance, sampled, degrees, tail = _variance(parts)
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
    )


@dataclass(frozen=True, slots=True)
class _Tail:
    """How intervals widen as their level rises: each part of the variance by its own Student's t.

    Attributes:
        share: of the variance that is the seeds'.
        seed_degrees: of the seeds' part.
        groups: independent queries.
    """

    share: float
    seed_degrees: float
    groups: int

    def reach(self, alpha: float) -> float:
        """Half the width of the interval of level ``1 - alpha``, in standard errors."""
        queries = -stdtrit(self.groups - 1, alpha / 2)
        seeds = -stdtrit(self.seed_degrees, alpha / 2) if self.share else 0.0
        return float(self.share * seeds + (1 - self.share) * queries)

    def p_value(self, distance: float, half_width: float) -> float:
        """The alpha of the interval that ends at the null value.

        Args:
            distance: from the estimate to the null value.
            half_width: of the 95 % interval, on the null value's side; 0 where nothing varies.
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


def _variance(parts: Sequence[Array]) -> tuple[float, float, float, _Tail]:
    """Variance of a sum of means over independent seeds and common queries.

    Args:
        parts: (S, G) linearised values per system; the number of seeds may differ.

    Returns:
        the variance, its part that resampling the queries shows (both with the residual), degrees of freedom, and what
        p-values need.
    """
    groups = parts[0].shape[1]
    queries = float(np.sum([part.mean(0) for part in parts], axis=0).var(ddof=1)) / groups
    seeds = residual = penalty = 0.0
    for part in parts:
        count = len(part)
        if count > 1:
            between = float(part.mean(1).var(ddof=1)) / count
            rest = part - part.mean(0) - part.mean(1, keepdims=True) + part.mean()
            residual += float(np.square(rest).sum()) / ((count - 1) * (groups - 1)) / (count * groups)
            penalty += between**2 / (count - 1)
            seeds += between
    sampled = max(queries - residual, 0.0)
    variance = seeds + sampled
    # Satterthwaite's rule would take `penalty` for what it is: see the module's docstring.
    doubt = sampled**2 / (groups - 1)
    if seeds > 0:
        doubt += penalty * (variance / seeds) ** (2 - _EXPONENT)
    degrees = variance**2 / doubt if doubt > 0 else float(groups - 1)
    tail = _Tail(seeds / variance, seeds**2 / penalty, groups) if seeds > 0 else _Tail(0.0, 0.0, groups)
    return variance, queries, degrees, tail


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


def claim(
    difference: Interval, first: str, second: str, metric: str, where: str = "", adjusted_p: float | None = None
) -> str:
    """The sentence that a difference allows, and no more.

    Args:
        difference: `QueryBootstrap.difference` of ``first`` and ``second``.
        first: name of the first model.
        second: name of the second.
        metric: key of `METRICS`.
        where: test set or condition, as in ``"on activitynet"``.
        adjusted_p: of `holm`; a difference that does not survive the correction is not shown either.
    """
    kind = METRICS[metric]
    place = f" {where}" if where else ""
    numbers = _signed(difference.estimate, difference.low, difference.high)
    figures = f"{numbers[0]} {kind.unit} (95 % interval {numbers[1]} to {numbers[2]})"
    if not difference.excludes_null:
        verdict = f"No difference shown between {first} and {second} in {metric}{place}: {figures}."
    elif adjusted_p is not None and adjusted_p > 1 - LEVEL:
        verdict = (
            f"No difference shown between {first} and {second} in {metric}{place}: {figures}, "
            f"but p = {adjusted_p:.2g} after Holm's correction for the other comparisons."
        )
    else:
        better = (difference.estimate > 0) == kind.higher_is_better
        verdict = f"{first} is {'better' if better else 'worse'} than {second} in {metric}{place}: {figures}."
    return f"{verdict} {difference.note}"


def _signed(*values: float) -> list[str]:
    """Numbers with sign, all to the same decimals: one, or as many as keep a number that is not 0 from reading 0."""
    decimals = 1
    while decimals < 4 and any(value != 0 and round(abs(value), decimals) == 0 for value in values):
        decimals += 1
    return [f"{value:+.{decimals}f}".replace("-", "−") if round(value, decimals) else "0" for value in values]
