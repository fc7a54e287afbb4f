"""Tests of equivalence, and the differences that a comparison can detect: their rates where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from glscl.study.statistics import Equivalence, Precision, QueryBootstrap, claim, detectable, equivalence_p, power
from glscl.study.statistics.interval import Interval, Tail
from stress.claims import Setting, rate_of_equivalence, rate_of_power, rates_of_family


def normal(estimate: float, error: float, groups: int = 10_000) -> Interval:
    """The interval of an estimate whose error is of queries alone."""
    half = float(stats.t.isf(0.025, groups - 1)) * error
    tail = Tail(0.0, 0.0, groups)
    return Interval(estimate, estimate - half, estimate + half, 0.5, 0.0, error, groups - 1, groups, (1, 1), tail)


@pytest.mark.parametrize(("estimate", "error"), [(0.0, 1.0), (1.5, 0.8), (-1.5, 0.8), (2.5, 1.0), (-4.0, 1.0)])
def test_equivalence_is_two_one_sided_tests(estimate: float, error: float) -> None:
    """Schuirmann's: the larger of the one-sided p-values."""
    margin = 3.0
    one_sided = [stats.t.sf((margin - side * estimate) / error, 9999) for side in (1, -1)]
    assert equivalence_p(normal(estimate, error), margin) == pytest.approx(max(one_sided), rel=1e-5)


def test_queries_that_never_differ_show_no_more_than_their_number_allows() -> None:
    """None of 100 queries differs: a difference of one point leaves no trace in 0.99^100 of cases, of ten in 3e-5."""
    bootstrap = QueryBootstrap(100, resamples=50)
    same = np.tile([0.0, 100.0], 50)
    systems = bootstrap.systems({name: (np.stack([same] * 3), True) for name in "ab"})
    found = bootstrap.difference(systems["a"], systems["b"])
    assert (found.low, found.high) == (0.0, 0.0)
    assert equivalence_p(found, 1.0) > 0.1
    assert equivalence_p(found, 3.0) == pytest.approx(stats.t.sf(3 / math.sqrt(2.91), 99), rel=1e-4)
    assert equivalence_p(found, 10.0) < 0.01


@pytest.mark.parametrize("margin", [0.0, -1.0, 100.0])
def test_a_margin_is_in_points(margin: float) -> None:
    with pytest.raises(ValueError, match="margin between 0 and 100 points"):
        equivalence_p(normal(0.0, 1.0), margin)


def test_equality_is_a_claim_beside_that_of_a_difference() -> None:
    sentence = claim(normal(0.2, 0.5), "a", "b", "R@1", equivalence=Equivalence(3.0, 0.001), detectable=1.42)
    assert sentence.startswith("No difference shown between a and b in R@1: +0.2 points (95 % interval −0.8 to +1.2).")
    assert "Detectable with 80 % power: 1.4 points. They are equal within ±3 points (p = 0.001)." in sentence
    sentence = claim(normal(0.2, 0.5), "a", "b", "R@1", equivalence=Equivalence(1.0, 0.06))
    assert "That they are equal within ±1 points is not shown (p = 0.06)." in sentence
    sentence = claim(normal(2.0, 0.5), "a", "b", "R@1", equivalence=Equivalence(3.0, 0.02), detectable=1.4)
    assert sentence.startswith(
        "a is better than b in R@1: +2.0 points (95 % interval +1.0 to +3.0). They are equal within"
    )
    assert "Detectable" not in sentence


@pytest.mark.parametrize("level", [0.05, 0.05 / 462])
def test_power_of_queries_alone_is_that_of_a_t_test(level: float) -> None:
    precision = Precision(0.0, 0, 0, 4.0, 5000)
    least = detectable(precision, level)
    assert least == pytest.approx(2.0 * (stats.t.isf(level / 2, 4999) + stats.norm.ppf(0.8)), rel=1e-3)
    assert power(precision, least, level) == pytest.approx(0.8, abs=1e-6)


def test_precision_is_what_was_found() -> None:
    random = np.random.default_rng(2)
    bootstrap = QueryBootstrap(400, resamples=50)
    tables = {n: (random.choice([0.0, 100.0], (3, 400)) + random.normal(0, 2, (3, 1)), True) for n in "ab"}
    systems = bootstrap.systems(tables)
    precision = Precision.of(bootstrap.difference(systems["a"], systems["b"]))
    between = sum(systems[name].units.mean(1).var(ddof=1) / 3 for name in "ab")
    assert precision.seed_variance == pytest.approx(between)
    assert (precision.trainings, precision.seeds, precision.groups) == (2, 3, 400)
    difference = bootstrap.difference(systems["a"], systems["b"])
    assert precision.standard_error == pytest.approx(difference.standard_error)


def test_claims_hold_in_simulated_studies() -> None:
    """A small version of ``python -m stress.claims``."""
    setting = Setting(queries=300, seeds=3, seed_sd=1.5, margin=10.0)
    at_margin = rate_of_equivalence(setting, simulations=600)
    assert abs(at_margin - 0.05) <= 0.02 + 2 * math.sqrt(0.05 * 0.95 / 600)
    printed, found = rate_of_power(setting, level=0.05 / 6, simulations=300)
    assert printed == pytest.approx(0.8, abs=1e-2)  # the difference is found to a tenth of a point
    assert abs(found - printed) <= 0.05 + 2 * math.sqrt(0.16 / 300)
    differences, equivalences = rates_of_family(setting, size=12, families=60)
    for rate in (differences, equivalences):
        assert rate <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 60)
