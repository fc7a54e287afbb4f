"""Intervals on simulated models whose true figures are known, correction, and sentences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import stdtrit

from glscl.evaluation.metrics import METRICS, measure_ranks
from glscl.evaluation.ranks import Ranks
from glscl.study.statistics import (
    Interval,
    QueryBootstrap,
    System,
    claim,
    holm,
    mean_difference,
    mean_of_cells,
    over_seeds,
    per_query,
)
from glscl.study.statistics.interval import Tail, split_variance

torch.set_num_threads(1)

Array = NDArray[np.float64]

SIMULATIONS = 1000
COMMON, OWN, NOISE = 0.8, 0.5, 0.5  # deviation of a query for all models, for one model, for one training of it


def _system(bootstrap: QueryBootstrap, values: Any, *, trained: bool = True) -> System:
    """One model's values, resampled."""
    return bootstrap.systems({0: (values, trained)})[0]


def hits(strength: Array) -> Array:
    return 100.0 * (strength > 0)


def reciprocal(strength: Array) -> Array:
    return 100.0 / (1 + np.floor(np.exp(np.clip(0.5 - 2 * strength, -30, 7))))


class World:
    """Models whose strength on a query is a sum of normal parts, of which the deviation of a seed is one."""

    def __init__(
        self, queries: int, seeds: int, seed_effect: float, metric: Callable[[Array], Array], captions: int = 1
    ):
        self.queries, self.seeds, self.seed_effect = queries, seeds, seed_effect
        self.metric, self.captions = metric, captions
        self.deviation = math.sqrt(COMMON**2 + OWN**2 + NOISE**2 + seed_effect**2)
        self.random = np.random.default_rng(20)

    def truth(self, level: float) -> float:
        """The figure over all queries and seeds there could be."""
        z = np.linspace(-8, 8, 20001)
        density = np.exp(-(z**2) / 2)
        return float((density * self.metric(self.deviation * (level + z))).sum() / density.sum())

    def _per_query(self, deviation: float) -> Array:
        return deviation * np.repeat(self.random.standard_normal(self.queries // self.captions), self.captions)

    def draw(self, levels: tuple[float, ...]) -> list[Array]:
        """(S, Q) values of one model per level, on the same queries."""
        self.common = self._per_query(COMMON)
        return [self.metric(self._strength(level) + self._training()) for level in levels]

    def _strength(self, level: float) -> Array:
        return self.deviation * level + self.common + self._per_query(OWN)

    def _training(self) -> Array:
        seeds = self.seed_effect * self.random.standard_normal((self.seeds, 1))
        return seeds + NOISE * self.random.standard_normal((self.seeds, self.queries))

    def draw_untrained(self, level: float) -> Array:
        """(Q,) values of a model on the queries of the last draw; what seeds do for others is its queries' here."""
        rest = math.hypot(self.seed_effect, NOISE)
        return self.metric(self._strength(level) + rest * self.random.standard_normal(self.queries))


@pytest.mark.parametrize(
    ("queries", "seeds", "seed_effect", "levels", "metric", "captions"),
    [
        (200, 3, 0.0, (-0.5, -0.2), hits, 1),
        (200, 3, 0.03, (-1.5, -1.2), hits, 1),
        (1000, 3, 0.1, (-0.5, -0.2), hits, 1),
        (300, 5, 0.05, (-0.5, -0.2), reciprocal, 1),
        (400, 3, 0.03, (-0.5, -0.2), hits, 4),
    ],
)
def test_95_per_cent_intervals_hold_the_truth_in_93_to_97_per_cent(
    queries: int,
    seeds: int,
    seed_effect: float,
    levels: tuple[float, float],
    metric: Callable[[Array], Array],
    captions: int,
) -> None:
    """A seed's own deviation of R@1 is 0 to 3 points here; three trainings, and captions of one video as a group."""
    world = World(queries, seeds, seed_effect, metric, captions)
    transferred, in_domain = (world.truth(level) for level in levels)
    truths = [in_domain, transferred - in_domain, 100 * transferred / in_domain]
    # The same resamples serve all simulations: they know nothing of the values.
    bootstrap = QueryBootstrap(np.repeat(np.arange(queries // captions), captions), resamples=1000)
    held = np.zeros(3)
    for _ in range(SIMULATIONS):
        a, b = (_system(bootstrap, values) for values in world.draw(levels))
        retention = bootstrap.retention(a, b)
        assert retention is not None
        intervals = [bootstrap.mean(b), bootstrap.difference(a, b), retention]
        held += [interval.low <= truth <= interval.high for interval, truth in zip(intervals, truths, strict=True)]
    coverage = held / SIMULATIONS
    assert coverage.min() >= 0.93, coverage
    assert coverage.max() <= 0.97, coverage


def test_lift_over_an_untrained_model_covers() -> None:
    world = World(300, 3, 0.04, hits)
    bootstrap = QueryBootstrap(300, resamples=1000)
    truth = world.truth(-0.2) - world.truth(-0.5)
    held = 0
    for _ in range(SIMULATIONS):
        trained = _system(bootstrap, world.draw((-0.2,))[0])
        lift = bootstrap.difference(trained, _system(bootstrap, world.draw_untrained(-0.5), trained=False))
        held += lift.low <= truth <= lift.high
    assert 0.93 <= held / SIMULATIONS <= 0.97


@pytest.mark.parametrize("seed_effect", [0.0, 0.06])
@pytest.mark.parametrize("cells", [(("a", 0), ("b", 1)), (("a", 0), ("a", 1), ("b", 0))])
def test_a_mean_over_transfers_covers(cells: tuple[tuple[str, int], ...], seed_effect: float) -> None:
    """Some cells share the training, hence its seeds, and some the test set, hence its queries."""
    worlds = [World(200, 3, seed_effect, hits), World(300, 3, seed_effect, hits)]
    worlds[1].random = random = np.random.default_rng(21)
    bootstraps = [QueryBootstrap(world.queries, resamples=1000, seed=world.queries) for world in worlds]
    levels = (-0.2, -0.5)
    truth = worlds[0].truth(levels[0]) - worlds[0].truth(levels[1])
    held = 0
    for _ in range(SIMULATIONS):
        strengths = []
        for world in worlds:
            world.common = world._per_query(COMMON)
            strengths.append([world._strength(level) for level in levels])
        effects = {(t, i): seed_effect * random.standard_normal((3, 1)) for t in ("a", "b") for i in range(2)}
        paired = []
        for training, test in cells:
            pair = [
                _system(
                    bootstraps[test],
                    hits(
                        strengths[test][i]
                        + effects[training, i]
                        + NOISE * random.standard_normal((3, worlds[test].queries))
                    ),
                )
                for i in range(2)
            ]
            paired.append((training, pair[0], pair[1]))
        interval = mean_difference(paired)
        held += interval.low <= truth <= interval.high
    assert 0.93 <= held / SIMULATIONS <= 0.97, held / SIMULATIONS


def test_the_mean_over_one_cell_is_its_difference() -> None:
    world, bootstrap = World(200, 3, 0.04, hits), QueryBootstrap(200, resamples=500)
    first, second = (_system(bootstrap, values) for values in world.draw((-0.2, -0.5)))
    one, difference = mean_difference([("a", first, second)]), bootstrap.difference(first, second)
    for name in ("estimate", "low", "high", "standard_error", "null", "p_value"):
        assert getattr(one, name) == pytest.approx(getattr(difference, name))
    assert (one.queries, one.seeds) == (difference.queries, difference.seeds)


def test_the_mean_of_one_cell_is_its_mean() -> None:
    world, bootstrap = World(200, 3, 0.04, hits), QueryBootstrap(200, resamples=500)
    (values,) = world.draw((-0.2,))
    system = _system(bootstrap, values)
    one, mean = mean_of_cells([("a", system)], (0.0, 100.0)), bootstrap.mean(system, (0.0, 100.0))
    for name in ("estimate", "low", "high", "standard_error", "queries", "seeds"):
        assert getattr(one, name) == pytest.approx(getattr(mean, name))
    other = QueryBootstrap(200, resamples=500, seed=1)
    two = mean_of_cells([("a", system), ("b", _system(other, world.draw((0.4,))[0]))])
    assert two.standard_error < one.standard_error
    assert two.seeds == (3,)


def test_a_mean_needs_independent_test_sets_and_pairs() -> None:
    world = World(200, 3, 0.04, hits)
    one, same, other = (QueryBootstrap(200, resamples=50, seed=seed) for seed in (1, 1, 2))
    values = world.draw((-0.2, -0.5))
    with pytest.raises(ValueError, match="no cells"):
        mean_difference([])
    with pytest.raises(ValueError, match="not paired"):
        mean_difference([("a", _system(one, values[0]), _system(other, values[1]))])
    pairs = [(name, *(_system(b, one_row) for one_row in values)) for name, b in (("a", one), ("b", same))]
    with pytest.raises(ValueError, match="different seeds"):
        mean_difference(pairs)  # type: ignore[arg-type]


def test_p_values_are_uniform_when_there_is_no_difference() -> None:
    world = World(300, 3, 0.04, hits)
    bootstrap = QueryBootstrap(300, resamples=1000)
    pairs = ([_system(bootstrap, values) for values in world.draw((-0.3, -0.3))] for _ in range(SIMULATIONS))
    found = [bootstrap.difference(a, b) for a, b in pairs]
    p_values = np.array([interval.p_value for interval in found])
    for level in (0.05, 0.2, 0.5):
        assert abs((p_values <= level).mean() - level) < 0.035
    assert all(interval.excludes_null == (interval.p_value < 0.05) for interval in found if interval.p_value)


def test_p_value_and_interval_agree_for_differences_means_and_retention() -> None:
    world, bootstrap = World(60, 3, 0.1, hits), QueryBootstrap(60, resamples=200)
    found = []
    for gap in np.linspace(0, 1.5, 40):
        a, b = (_system(bootstrap, values) for values in world.draw((gap - 0.5, -0.5)))
        found += [bootstrap.difference(a, b), bootstrap.difference(b, a), mean_difference([("x", a, b)])]
        found += [kept for pair in ((a, b), (b, a)) if (kept := bootstrap.retention(*pair))]
    assert {interval.excludes_null for interval in found} == {True, False}
    for interval in found:
        assert interval.p_value is not None
        assert interval.excludes_null == (interval.p_value < 0.05), interval
        assert 0 < interval.p_value <= 1


def test_no_family_claims_falsely_in_more_than_5_per_cent() -> None:
    """Families of 30 comparisons of equal models whose seeds decide about half of the error."""
    world, families, size = World(120, 3, 0.12, hits), 100, 30
    bootstrap = QueryBootstrap(120, resamples=400)
    false = 0
    for _ in range(families):
        tables = {}
        for cell in range(size):
            tables |= {(cell, n): (values, True) for n, values in enumerate(world.draw((-0.3, -0.3)))}
        systems = bootstrap.systems(tables)
        cells = {cell: bootstrap.difference(systems[cell, 0], systems[cell, 1]) for cell in range(size)}
        adjusted = holm({cell: interval.p_value or 0.0 for cell, interval in cells.items()})
        false += any(p <= 0.05 and cells[cell].excludes_null for cell, p in adjusted.items())
    assert false / families <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / families)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_p_values_far_out_are_no_more_frequent_than_they_say(share: float) -> None:
    """The normal model of three seeds each: what a family of hundreds needs. One df for both parts gave too many."""
    random = np.random.default_rng(3)
    seeds = share * random.chisquare(2, (40_000, 2)) / 4
    estimates = np.abs(random.standard_normal(len(seeds)))
    wrong = np.zeros(2)
    levels = (0.01, 0.001)
    for (first, second), estimate in zip(seeds, estimates, strict=True):
        own = first + second
        variance = own + 1 - share
        penalty = (first**2 + second**2) / 2
        degrees = variance**2 / ((1 - share) ** 2 / 999 + penalty * (variance / own) ** 0.75)
        half = -stdtrit(degrees, 0.025) * math.sqrt(variance)
        tail = Tail(own / variance, own**2 / penalty, 1000)
        wrong += [estimate > half * tail.reach(level) / tail.reach(0.05) for level in levels]
    assert (wrong / len(seeds) <= np.array(levels) * 1.1).all(), wrong / len(seeds)


def test_p_values_are_tails_of_students_t() -> None:
    for groups, distance in ((2, 3.0), (30, 2.0), (1000, 7.0)):
        half = float(stats.t.isf(0.025, groups - 1))
        alone = Tail(0.0, 0.0, groups)
        assert alone.p_value(distance, half) == pytest.approx(2 * stats.t.sf(distance, groups - 1), rel=1e-6)
        seeds = Tail(1.0, 4.0, groups)
        half = float(stats.t.isf(0.025, 4))
        assert seeds.p_value(distance, half) == pytest.approx(2 * stats.t.sf(distance, 4), rel=1e-6)
    mixed = Tail(0.25, 3.0, 11)
    for alpha in (0.5, 0.05, 1e-4, 1e-60):
        expected = 0.25 * stats.t.isf(alpha / 2, 3) + 0.75 * stats.t.isf(alpha / 2, 10)
        assert mixed.reach(alpha) == pytest.approx(expected, rel=1e-6)
        assert mixed.p_value(expected, mixed.reach(0.05)) == pytest.approx(alpha, rel=1e-5)
    assert mixed.p_value(0.0, 1.0) == mixed.p_value(0.0, 0.0) == 1.0
    assert mixed.p_value(1.0, math.inf) == 1.0  # an interval without end on that side
    assert mixed.p_value(1e40, 1e-3) == pytest.approx(1e-100, abs=1e-50)
    assert mixed.p_value(1.0, 1.0) == pytest.approx(0.05)


def test_p_value_of_what_never_varies_is_that_of_signs() -> None:
    bootstrap = QueryBootstrap(8, resamples=50)
    all_, none = _system(bootstrap, np.full((3, 8), 100.0)), _system(bootstrap, np.zeros((3, 8)))
    certain = bootstrap.difference(all_, none)
    assert (certain.estimate, certain.low, certain.high) == (100.0, 100.0, 100.0)
    assert certain.p_value == 2**-7
    assert certain.excludes_null
    assert "no uncertainty" in certain.note


def test_variance_of_a_sum_of_means() -> None:
    """By hand: two systems, of two seeds and one, on three queries."""
    one, two = np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 4.0]]), np.array([[0.0, 1.0, 5.0]])
    variance, sampled, degrees, tail = split_variance([one, two])
    between = np.var([3.0, 3.0], ddof=1) / 2
    assert between == 0.0
    assert sampled == pytest.approx(np.var([2.0, 3.0, 10.0], ddof=1) / 3)
    residual = np.square(one - one.mean(0)).sum() / 2 / 6
    assert variance == pytest.approx(sampled - residual)
    assert (degrees, tail) == (2.0, Tail(0.0, 0.0, 3))
    three = one + np.array([[1.0], [-1.0]])
    four = two + np.array([[-1.0], [0.0], [4.0]])
    variance, sampled, degrees, tail = split_variance([three, four])
    first, second = np.var([4.0, 2.0], ddof=1) / 2, np.var([1.0, 2.0, 6.0], ddof=1) / 3
    seeds, penalty = first + second, first**2 + second**2 / 2
    rest = max(float(np.var([3.0, 4.0, 11.0], ddof=1)) / 3 - residual, 0.0)
    assert variance == pytest.approx(seeds + rest)
    assert tail.share == pytest.approx(seeds / variance)
    assert tail.seed_degrees == pytest.approx(seeds**2 / penalty)
    assert degrees == pytest.approx(variance**2 / (rest**2 / 2 + penalty * (variance / seeds) ** 0.75))


def test_groups_are_resampled_whole() -> None:
    """Captions that repeat one another add nothing: four of each make the interval of one of each."""
    values = World(100, 3, 0.02, hits).draw((-0.2,))[0]
    one = QueryBootstrap(100)
    four = QueryBootstrap(np.repeat(np.arange(100), 4))
    naive = QueryBootstrap(400)
    repeated = np.repeat(values, 4, axis=1)
    expected = one.mean(_system(one, values))
    found = four.mean(_system(four, repeated))
    assert found.low == pytest.approx(expected.low)
    assert found.high == pytest.approx(expected.high)
    assert found.degrees == pytest.approx(expected.degrees)
    wrong = naive.mean(_system(naive, repeated))
    assert wrong.standard_error < 0.85 * found.standard_error


def test_groups_of_unequal_size_keep_the_mean_over_queries() -> None:
    groups = np.array([0, 0, 0, 1, 2, 2])
    values = np.array([1.0, 2.0, 3.0, 10.0, 20.0, 0.0])
    bootstrap = QueryBootstrap(groups, resamples=50)
    system = _system(bootstrap, values)
    assert system.mean == pytest.approx(values.mean())
    counts = bootstrap._counts.astype(float)
    sums, sizes = np.array([6.0, 10.0, 20.0]), np.array([3.0, 1.0, 2.0])
    assert system.draws == pytest.approx(counts @ sums / (counts @ sizes))


def test_one_seed_is_the_percentile_bootstrap() -> None:
    """Without seeds to tell, the interval is that of resampled queries, and of Student's t with Q - 1 degrees."""
    random = np.random.default_rng(1)
    values = hits(random.standard_normal(400) - 0.4)
    bootstrap = QueryBootstrap(400)
    interval = bootstrap.mean(_system(bootstrap, values))
    means = values[random.integers(0, 400, (10_000, 400))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert interval.low == pytest.approx(low, abs=0.35)
    assert interval.high == pytest.approx(high, abs=0.35)
    assert interval.standard_error == pytest.approx(values.std(ddof=1) / 20)
    assert "another seed" in interval.note


def test_pairing_narrows_a_difference() -> None:
    world = World(500, 3, 0.0, hits)
    a, b = world.draw((-0.3, -0.2))
    bootstrap = QueryBootstrap(500)
    paired = bootstrap.difference(_system(bootstrap, a), _system(bootstrap, b))
    shuffled = bootstrap.difference(
        _system(bootstrap, a), _system(bootstrap, b[:, np.random.default_rng(0).permutation(500)])
    )
    assert paired.estimate == pytest.approx(shuffled.estimate)
    assert paired.standard_error < 0.9 * shuffled.standard_error


def test_seeds_that_disagree_widen_the_interval() -> None:
    values = World(500, 3, 0.0, hits).draw((-0.2,))[0]
    bootstrap = QueryBootstrap(500)
    alike = bootstrap.mean(_system(bootstrap, values))
    spread = bootstrap.mean(_system(bootstrap, values + np.array([[-5.0], [0.0], [5.0]])))
    assert spread.estimate == pytest.approx(alike.estimate)
    assert spread.high - spread.low > 2 * (alike.high - alike.low)
    assert spread.degrees < 4


def test_results_do_not_depend_on_the_order_of_calls() -> None:
    a, b = World(50, 3, 0.1, hits).draw((-0.2, 0.0))

    def compare(first: bool) -> Interval:
        bootstrap = QueryBootstrap(50, seed=3)
        if first:
            bootstrap.mean(_system(bootstrap, b))
        return bootstrap.difference(_system(bootstrap, a), _system(bootstrap, b))

    assert compare(True) == compare(False)
    other = QueryBootstrap(50, seed=4)
    assert other.difference(_system(other, a), _system(other, b)).low != compare(True).low


def test_retention_without_hits_is_none() -> None:
    bootstrap = QueryBootstrap(20)
    nothing, something = _system(bootstrap, np.zeros((3, 20))), _system(bootstrap, np.eye(3, 20))
    assert bootstrap.retention(nothing, something) is None
    assert bootstrap.retention(something, nothing) is None
    few = bootstrap.retention(something, something)
    assert few is not None
    assert few.estimate == pytest.approx(100)
    assert not math.isnan(few.low)
    assert not math.isnan(few.high)


def test_equal_models_show_nothing() -> None:
    bootstrap = QueryBootstrap(50)
    model = _system(bootstrap, World(50, 1, 0.0, hits).draw((0.0,))[0])
    same = bootstrap.difference(model, model)
    assert (same.estimate, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert claim(same, "a", "b", "R@1").startswith("No difference shown between a and b in R@1: 0 points")


def test_two_queries_are_enough() -> None:
    assert QueryBootstrap(2, resamples=1).groups == 2


def test_bounds_cut_a_mean() -> None:
    bootstrap = QueryBootstrap(30)
    values = np.full((2, 30), 100.0)
    values[0, :4] = 0
    system = _system(bootstrap, values)
    assert bootstrap.mean(system).high > 100
    assert bootstrap.mean(system, (0, 100)).high == 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QueryBootstrap(1), "at least 2"),
        (lambda: QueryBootstrap(np.zeros(5, dtype=int)), "at least 2"),
        (lambda: _system(QueryBootstrap(5), np.zeros((3, 4))), r"must be \(seeds, 5\)"),
        (lambda: _system(QueryBootstrap(5), [1, 2, 3, 4, math.nan]), "finite"),
        (lambda: _system(QueryBootstrap(5), np.zeros((2, 5)), trained=False), "no seeds"),
        (lambda: QueryBootstrap(5).mean(_system(QueryBootstrap(5), np.zeros(5))), "another bootstrap"),
    ],
)
def test_refuses_what_does_not_fit(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_means_of_values_are_the_metrics() -> None:
    optimistic = torch.tensor([1, 1, 2, 5, 7, 10, 11, 60], dtype=torch.int32)
    ranks = Ranks(optimistic, optimistic + torch.tensor([0, 1, 0, 1, 0, 0, 0, 3]))
    metrics = measure_ranks(ranks)
    values = per_query(ranks)
    assert values.keys() == METRICS.keys()
    for name in ("R@1", "R@5", "R@10", "MRR", "nDCG@10", "MnR"):
        assert values[name].mean() == pytest.approx(metrics[name])
    pairs = list(zip(ranks.optimistic.tolist(), ranks.pessimistic.tolist(), strict=True))
    reciprocal = [np.mean([100 / rank for rank in range(first, last + 1)]) for first, last in pairs]
    assert values["MRR"] == pytest.approx(reciprocal)
    discounted = [np.mean([100 / np.log2(1 + r) if r <= 10 else 0 for r in range(a, b + 1)]) for a, b in pairs]
    assert values["nDCG@10"] == pytest.approx(discounted)
    assert values["R@1"].tolist() == [100, 50, 0, 0, 0, 0, 0, 0]
    assert values["R@5"].tolist() == [100, 100, 100, 50, 0, 0, 0, 0]
    assert values["R@10"].tolist() == [100, 100, 100, 100, 100, 100, 0, 0]
    assert {name: (metric.unit, metric.higher_is_better) for name, metric in METRICS.items()} == {
        **dict.fromkeys(("R@1", "R@5", "R@10", "MRR", "nDCG@10"), ("points", True)),
        "MnR": ("ranks", False),
    }


def test_spread_over_seeds() -> None:
    spread = over_seeds([40.0, 42.0, 47.0])
    assert (spread.mean, spread.minimum, spread.maximum, spread.seeds) == (43, 40, 47, 3)
    assert spread.deviation == pytest.approx(math.sqrt(13))
    assert over_seeds([[0.0, 100.0]]) == over_seeds([50.0])
    assert over_seeds([50.0]).deviation is None


def test_holm_as_in_the_books() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert list(adjusted) == ["a", "b", "c", "d"]
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({}) == {}
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": 1.5})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_as_its_definition_says(p_values: list[float]) -> None:
    adjusted = holm(dict(enumerate(p_values)))
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for step, (p, key) in enumerate(sorted((p, key) for key, p in enumerate(p_values))):
            if p * (len(p_values) - step) > level:
                break
            rejected.add(key)
        assert {key for key, p in adjusted.items() if p <= level} == rejected


def interval(estimate: float, low: float, high: float, seeds: tuple[int, ...] = (3, 3)) -> Interval:
    return Interval(estimate, low, high, 0.01, 0.0, 1.0, 4.0, 1000, seeds, Tail(0.5, 4.0, 1000, 2, 3))


def test_claims_say_no_more_than_the_interval() -> None:
    shown = claim(interval(2.1, 0.5, 3.7), "glscl", "xpool", "R@1", "on activitynet")
    assert shown == (
        "glscl is better than xpool in R@1 on activitynet: +2.1 points (95 % interval +0.5 to +3.7). "
        "Over 1,000 queries and 3 seeds of each, as a random effect (Student's t)."
    )
    assert claim(interval(-2.1, -3.7, -0.5), "a", "b", "R@1").startswith("a is worse than b in R@1: −2.1 points")
    assert claim(interval(-2.1, -3.7, -0.5), "a", "b", "MnR").startswith("a is better than b in MnR: −2.1 ranks")
    hidden = claim(interval(0.4, -1.2, 2.0), "a", "b", "R@5", "on x")
    assert hidden.startswith(
        "No difference shown between a and b in R@5 on x: +0.4 points (95 % interval −1.2 to +2.0)."
    )
    assert claim(interval(1.0, 0.0, 2.0), "a", "b", "R@1").startswith("No difference shown")
    assert "to +2.00). " in claim(interval(1.0, 0.02, 2.0), "a", "b", "R@1")


def test_claims_heed_the_correction_and_single_trainings() -> None:
    difference = interval(2.1, 0.5, 3.7)
    assert claim(difference, "a", "b", "R@1", adjusted_p=0.04).startswith("a is better")
    corrected = claim(difference, "a", "b", "R@1", adjusted_p=0.2)
    assert corrected.startswith("No difference shown")
    assert "p = 0.2 after Holm's correction" in corrected
    assert "of one training" in claim(replace(difference, seeds=(1, 3)), "a", "b", "R@1")
    assert "of one training" not in claim(replace(difference, seeds=(3, 0)), "a", "zero-shot", "R@1")
    assert claim(replace(difference, seeds=(0, 0)), "a", "b", "R@1").endswith("nothing is trained.")


def test_a_mean_over_test_sets_of_other_levels_has_their_errors_and_not_their_distance() -> None:
    random = np.random.default_rng(5)
    one, two = QueryBootstrap(200, resamples=300, seed=1), QueryBootstrap(400, resamples=300, seed=2)
    high, low = 90 + random.standard_normal(200), 10 + random.standard_normal(400)
    found = mean_difference(
        [("a", _system(one, high), _system(one, np.zeros(200))), ("b", _system(two, low), _system(two, np.zeros(400)))]
    )
    assert found.estimate == pytest.approx((high.mean() + low.mean()) / 2)
    expected = math.sqrt(high.var(ddof=1) / 200 + low.var(ddof=1) / 400) / 2
    assert found.standard_error == pytest.approx(expected, rel=0.02)
    assert (found.queries, found.seeds) == (600, (1, 1))


def test_small_numbers_are_written_with_four_decimals_at_most() -> None:
    assert "+0.0004 points (95 % interval +0.0002 to +1.0000)" in claim(interval(0.0004, 0.0002, 1.0), "a", "b", "R@1")
    assert "0 points (95 % interval −1.0000 to 0)" in claim(interval(4e-6, -1.0, 1e-6), "a", "b", "R@1")


@pytest.mark.parametrize("values", [[], np.zeros((0, 3)), np.zeros((2, 2, 2)), 1.0])
def test_over_seeds_needs_seeds_by_queries(values: Any) -> None:
    with pytest.raises(ValueError, match=r"values must be \(S,\) or \(S, Q\) with at least one seed"):
        over_seeds(values)
