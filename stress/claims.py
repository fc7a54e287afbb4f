"""Simulate studies whose truth is known, and count how often their claims are right.

    python -m stress.claims [--simulations 1000] [--families 200] [--json FILE]

For every setting it prints: how often the 95 % interval of a difference holds the truth; how often, at a true
difference of exactly the margin, equality is not claimed (95 % if the test is exact, more if it is careful); the power
that the plan prints for its detectable difference, and how often a difference as large is shown. For families of 12 and
of 462 cells, in which all models are equal, or differ by the margin: the share of families with a false claim.
Margins are some four standard errors: where the 90 % interval is nearly as wide as the margins, two one-sided tests
claim less than they may.

A model finds a query if its strength there is positive. Strength is a sum of normal parts: of the query, of the model
there, of the training's seed, and of both, as in ``tests/study/test_statistics.py``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from glscl.study.statistics import (
    LEVEL,
    Interval,
    Precision,
    QueryBootstrap,
    detectable,
    equivalence_p,
    holm,
    power,
)

Array = NDArray[np.float64]
COMMON, OWN, NOISE = 0.8, 0.5, 0.5  # deviation of a query for all models, for one model, for one training of it
BASE = 0.5  # share of queries that the two models find, on average
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Setting:
    """A test set and how trainings differ."""

    queries: int
    seeds: int
    seed_sd: float  # points of R@1, from seed to seed
    margin: float  # points

    @property
    def seed_effect(self) -> float:
        """The seed's deviation of strength."""
        others = COMMON**2 + OWN**2 + NOISE**2
        share = (self.seed_sd / 100 / stats.norm.pdf(stats.norm.ppf(BASE))) ** 2
        return float(np.sqrt(share / (1 - share) * others))

    def draw(self, random: np.random.Generator, gap: float, pairs: int) -> list[tuple[Array, Array]]:
        """Values (S, Q) of pairs of models, the first ``gap`` points better, all on the same queries."""
        deviation = np.sqrt(COMMON**2 + OWN**2 + NOISE**2 + self.seed_effect**2)
        levels = deviation * stats.norm.ppf([BASE + gap / 200, BASE - gap / 200])
        common = COMMON * random.standard_normal(self.queries)

        def model(level: float) -> Array:
            own = OWN * random.standard_normal(self.queries)
            seed = self.seed_effect * random.standard_normal((self.seeds, 1))
            noise = NOISE * random.standard_normal((self.seeds, self.queries))
            return 100.0 * (level + common + own + seed + noise > 0)

        return [(model(levels[0]), model(levels[1])) for _ in range(pairs)]

    def differences(self, gap: float, families: int, size: int, seed: int) -> list[list[Interval]]:
        """The intervals of so many families of pairs; each family has queries of its own."""
        random = np.random.default_rng(seed)
        bootstrap = QueryBootstrap(self.queries, resamples=RESAMPLES)  # the same resamples know nothing of the values
        found = []
        for _ in range(families):
            pairs = self.draw(random, gap, size)
            tables = {(number, side): (pair[side], True) for number, pair in enumerate(pairs) for side in (0, 1)}
            systems = bootstrap.systems(tables)
            found.append([bootstrap.difference(systems[number, 0], systems[number, 1]) for number in range(size)])
        return found

    def deviations(self, gap: float, simulations: int) -> tuple[float, float]:
        """What a pilot would give: deviation from seed to seed, and of the difference from query to query."""
        random = np.random.default_rng(7)
        pairs = [self.draw(random, gap, 1)[0] for _ in range(simulations)]
        means = np.array([[one.mean(1), two.mean(1)] for one, two in pairs])  # (R, 2, S)
        seed_variance = float(means.var(axis=2, ddof=1).mean())
        by_query = np.mean([(one.mean(0) - two.mean(0)).var(ddof=1) for one, two in pairs])
        residual = np.mean([sum(_residual(table) for table in pair) for pair in pairs]) / self.seeds
        return float(np.sqrt(seed_variance)), float(np.sqrt(by_query - residual))


def _residual(table: Array) -> float:
    """Variance of what is neither of the seed nor of the query."""
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    return float(np.square(rest).sum() / ((len(table) - 1) * (table.shape[1] - 1)))


def rate_of_coverage(setting: Setting, gap: float, simulations: int) -> float:
    """Share of 95 % intervals that hold the true difference."""
    found = [family[0] for family in setting.differences(gap, simulations, 1, seed=1)]
    return float(np.mean([interval.low <= gap <= interval.high for interval in found]))


def rate_of_equivalence(setting: Setting, simulations: int) -> float:
    """Share of single tests that claim equality where the difference is exactly the margin."""
    found = [family[0] for family in setting.differences(setting.margin, simulations, 1, seed=2)]
    return float(np.mean([equivalence_p(interval, setting.margin) <= 1 - LEVEL for interval in found]))


def rate_of_power(setting: Setting, level: float, simulations: int) -> tuple[float, float]:
    """The power that is printed for the detectable difference, and how often one as large is shown.

    A large difference changes the deviations that it follows from: it is the one that follows from its own.
    """
    low, high = 0.0, 99.0
    while high - low > 0.1:
        gap = (low + high) / 2
        precision = _precision(setting, gap)
        low, high = (gap, high) if detectable(precision, level) > gap else (low, gap)
    found = [family[0] for family in setting.differences(gap, simulations, 1, seed=3)]
    return power(precision, gap, level), float(np.mean([_is_shown(interval, level) for interval in found]))


def _precision(setting: Setting, gap: float) -> Precision:
    """What a pilot of models that differ so much would give."""
    seed_sd, query_sd = setting.deviations(gap, 200)
    seeds = 2 * seed_sd**2 / setting.seeds
    return Precision(seeds, 2, setting.seeds, query_sd**2 / setting.queries, setting.queries)


def _is_shown(interval: Interval, level: float) -> bool:
    return interval.excludes_null and interval.p_value is not None and interval.p_value <= level


def rates_of_family(setting: Setting, size: int, families: int) -> tuple[float, float]:
    """Shares of families with a false claim: a difference among equals, equality where all differ by the margin."""
    wrong = np.zeros(2)
    for column, gap in enumerate((0.0, setting.margin)):
        for family in setting.differences(gap, families, size, seed=4 + column):
            p_values = [equivalence_p(one, setting.margin) if gap else one.p_value or 0.0 for one in family]
            adjusted = holm(dict(enumerate(p_values)))
            wrong[column] += any(
                p <= 1 - LEVEL and (gap > 0 or family[number].excludes_null) for number, p in adjusted.items()
            )
    return float(wrong[0] / families), float(wrong[1] / families)


SETTINGS = (
    Setting(queries=300, seeds=3, seed_sd=0.5, margin=10.0),
    Setting(queries=1000, seeds=3, seed_sd=1.0, margin=6.0),
    Setting(queries=2000, seeds=3, seed_sd=1.0, margin=5.0),
    Setting(queries=1000, seeds=5, seed_sd=2.0, margin=7.0),
    Setting(queries=2000, seeds=3, seed_sd=2.0, margin=12.0),
)
FAMILIES = (12, 462)


def main() -> None:
    """Print a table per setting, and write all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--families", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        row: dict[str, object] = asdict(setting)
        row["difference_held"] = rate_of_coverage(setting, setting.margin, options.simulations)
        row["equality_withheld_at_margin"] = 1 - rate_of_equivalence(setting, options.simulations)
        for size in (1, *FAMILIES):
            printed, found = rate_of_power(setting, (1 - LEVEL) / size, options.simulations)
            row[f"power_printed_{size}"], row[f"power_found_{size}"] = round(printed, 3), found
        for size in FAMILIES:
            rates = rates_of_family(setting, size, max(1, options.families))
            row[f"false_differences_{size}"], row[f"false_equalities_{size}"] = rates
        rows.append(row)
        print("\n".join(f"{name:30} {value}" for name, value in row.items()), "\n", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
