"""The paired bootstrap over queries: one model's figure, a difference, retention, means of differences, contrasts."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from glscl.study.statistics.interval import Array, Interval, build_interval

Key = TypeVar("Key", bound=Hashable)

_CHUNK = 1 << 22  # resampled queries held at a time


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """One model's values on a test set, with its resampled means; made by `QueryBootstrap.systems`."""

    owner: "QueryBootstrap"  # only systems of one bootstrap are paired
    units: Array  # (S, G) values of the resampled units, whose mean over G is the seed's metric
    draws: Array  # (resamples,) the mean over seeds, of resampled queries
    trained: bool  # false for a model without training, which has no seed

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

    def systems(self, tables: Mapping[Key, tuple[Any, bool]]) -> dict[Key, System]:
        """Resample the values of several models in one pass; ``tables`` are values and whether they are trained.

        Values are (S, Q), per query of each seed, or (Q,) of one; of a model without training (zero-shot towers) one
        row is all there is to know. Raises `ValueError`: another shape, not finite, or several rows of an untrained
        model.
        """
        checked = {key: self._table(values, trained) for key, (values, trained) in tables.items()}
        sums = {key: np.stack([np.bincount(self._group, row, self.groups) for row in t]) for key, t in checked.items()}
        columns = np.stack([*(table.mean(0) for table in sums.values()), self._sizes], axis=1)
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
        linearised = [transferred.units / top, -in_domain.units / base]
        systems = [transferred, in_domain]
        return self._interval(systems, linearised, estimate, deviations - estimate, 0.0, lambda x: 100.0 * np.exp(x))

    def _interval(
        self,
        systems: Sequence[System],
        linearised: Sequence[Array],
        estimate: float,
        deviations: Array,
        null: float | None,
        scale: Callable[[Any], Any],
    ) -> Interval:
        if any(system.owner is not self for system in systems):
            raise ValueError("the systems belong to another bootstrap, so they are not paired over these queries")
        seeds = tuple(len(system.units) if system.trained else 0 for system in systems)
        return build_interval(linearised, estimate, deviations, null, scale, self.seed, self.queries, seeds)


Cells = Sequence[tuple[Hashable, System, System]]  # name of a training, and two models' values on a test set after it
Terms = Sequence[tuple[Hashable, float, System]]  # name of a trained model, its weight, its values on a test set


def mean_difference(cells: Cells) -> Interval:
    """Mean over several cells of ``first - second``: what a comparison says over all transfers, not over one.

    Queries of one test set are resampled together in all its cells; those of different sets independently, stratum by
    stratum. The cells of one training share its seeds, those of different trainings do not. Each of ``cells`` has the
    name of the training and two models' values on a test set after it, of one bootstrap.

    Raises `ValueError`: no cells, a pair of different bootstraps, or bootstraps that are not independent: different
    ones must have different seeds and equally many resamples.
    """
    if any(first.owner is not second.owner for _, first, second in cells):
        raise ValueError("a pair belongs to two bootstraps, so it is not paired over queries")
    weight = 1 / max(1, len(cells))
    terms = [
        ((training, sign), sign * weight, system)
        for training, first, second in cells
        for sign, system in ((1.0, first), (-1.0, second))
    ]
    owners = _check_terms(terms)
    estimate = weight * float(sum(first.mean - second.mean for _, first, second in cells))
    deviations = weight * np.sum([first.draws - second.draws for _, first, second in cells], axis=0) - estimate
    fewest = _fewest_seeds(terms)
    seeds = tuple(min(count for (_, side), count in fewest.items() if side == sign) for sign in (1.0, -1.0))
    return _build(terms, owners, estimate, deviations, seeds)


def contrast(terms: Terms) -> Interval:
    """Weighted sum of several models' values on several test sets, such as a difference of differences.

    Terms of one trained model share its seeds; systems of one bootstrap share their queries, so test sets whose videos
    are the same can be paired by one bootstrap. Errors are those of `mean_difference`.
    """
    owners = _check_terms(terms)
    estimate = float(sum(weight * system.mean for _, weight, system in terms))
    deviations = np.sum([weight * system.draws for _, weight, system in terms], axis=0) - estimate
    return _build(terms, owners, estimate, deviations, tuple(_fewest_seeds(terms).values()))


def _build(
    terms: Terms, owners: Sequence[QueryBootstrap], estimate: float, deviations: Array, seeds: tuple[int, ...]
) -> Interval:
    queries = sum(owner.queries for owner in owners)
    linearised = _linearise(terms, owners)
    return build_interval(linearised, estimate, deviations, 0.0, lambda x: x, owners[0].seed, queries, seeds)


def mean_of_cells(
    cells: Sequence[tuple[Hashable, System]], bounds: tuple[float, float] = (-np.inf, np.inf)
) -> Interval:
    """Mean over several cells of one model's values, resampled and raising as `mean_difference`; cut at ``bounds``."""
    weight = 1 / max(1, len(cells))
    interval = contrast([(training, weight, system) for training, system in cells])
    low, high = (float(np.clip(end, *bounds)) for end in (interval.low, interval.high))
    return replace(interval, low=low, high=high, seeds=(min(interval.seeds),))


def _check_terms(terms: Terms) -> list[QueryBootstrap]:
    """Check that terms can be added up; return their bootstraps, each once."""
    if not terms:
        raise ValueError("no cells to average")
    owners = list(dict.fromkeys(system.owner for _, _, system in terms))
    if len({owner.seed for owner in owners}) < len(owners) or len({owner.resamples for owner in owners}) > 1:
        raise ValueError("the bootstraps of different test sets need different seeds and equally many resamples")
    return owners


def _fewest_seeds(terms: Sequence[tuple[Key, float, System]]) -> dict[Key, int]:
    """Return the seeds of every trained model; 0 of one that is not trained."""
    return {model: len(system.units) if system.trained else 0 for model, _, system in terms}


def _linearise(terms: Terms, owners: Sequence[QueryBootstrap]) -> list[Array]:
    """Compute the shares of the sum, seed by seed: (S, G) per trained model, G the groups of all strata."""
    groups = sum(owner.groups for owner in owners)
    offsets = dict(zip(owners, np.cumsum([0, *(owner.groups for owner in owners)]), strict=False))
    shares: dict[Hashable, Array] = {}
    for model, weight, system in terms:
        # Units of a stratum deviate from its own mean; stretched so that their mean over all strata is the share of
        # the term in the sum, seed by seed.
        owner = system.owner
        share = shares.setdefault(model, np.zeros((len(system.units), groups)))
        if len(share) != len(system.units):
            raise ValueError(f"{model}: {len(share)} seeds on one test set, {len(system.units)} on another")
        stretch = weight * groups / owner.groups
        share[:, offsets[owner] : offsets[owner] + owner.groups] += stretch * (system.units - system.mean)
        share += weight * system.mean
    return list(shares.values())
