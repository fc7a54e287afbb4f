"""The differences that a study will be able to show, from assumed deviations or an earlier study's, before it starts.

Two deviations decide it. *From seed to seed*: of one variant's R@1 after one training. *From video to video*: of the
difference between two variants, whose values are means over the captions of a video and over seeds. Means over cells
are planned with care: a training's seed is taken to act alike on all its test sets, and a video to differ alike after
all trainings.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

from glscl.errors import UserError
from glscl.evaluation.metrics import MAIN_METRIC
from glscl.runs.options import UNION
from glscl.study.factors import cells_of
from glscl.study.options import StudyConfig
from glscl.study.results import Comparison, StudyResults, parse_study
from glscl.study.statistics import LEVEL, Precision, detectable
from glscl.study.statistics.interval import EXPONENT
from glscl.system import storage

RESULTS = "study.json"


class Assumed(NamedTuple):
    """Deviations in points, and where they are from."""

    seed_sd: float
    query_sd: float
    source: str


class Planned(NamedTuple):
    """What each pair's comparison of a scope can detect with 80 % power at its family's smallest level, in points."""

    scope: str
    detectable: float


def assume_deviations(study: StudyConfig) -> Assumed | None:
    """Take the deviations from the pilot or the configuration; None if neither says anything.

    Raises `UserError`: the pilot has no results, or too few seeds.
    """
    if study.pilot:
        where = storage.join(study.pilot_directory, RESULTS)
        if not storage.exists(where):
            raise UserError(f"pilot: {where}: no such file; name a study that has a report, or state assumed_sd")
        return read_pilot(parse_study(storage.read_json(where)))
    if study.assumed_sd is None:
        return None
    return Assumed(study.assumed_sd, study.assumed_query_sd, "assumed_sd, assumed_query_sd")


def read_pilot(pilot: StudyResults) -> Assumed:
    """Pool the deviations of all text-to-video cells of a study. Raises `UserError`: one seed, or no single cells."""
    deviations = {
        (one.condition, one.variant, one.training, one.test): one.text_to_video[MAIN_METRIC].deviation
        for one in pilot.results
    }
    trained = [value**2 for value in deviations.values() if value is not None]
    from_queries = list(_query_variances(pilot, deviations))
    if not trained or not from_queries:
        raise UserError(f"pilot: {pilot.name} has no comparisons of single cells over several seeds; state assumed_sd")
    seed_sd, query_sd = (float(np.sqrt(np.mean(values))) for values in (trained, from_queries))
    return Assumed(seed_sd, query_sd, f"study {pilot.name}")


def _query_variances(
    pilot: StudyResults, deviations: Mapping[tuple[str, str, str, str], float | None]
) -> Iterator[float]:
    """Yield, for every single cell's comparison, the variance of a difference from test video to test video."""
    videos, count = {test.name: test.videos for test in pilot.tests}, len(pilot.seeds)
    for row in pilot.comparisons:
        training, _, test = row.scope.partition(" -> ")
        if test not in videos or row.direction != "text_to_video":
            continue
        pair = [deviations.get((row.condition, variant, training, test)) for variant in (row.first, row.second)]
        seeds = [value**2 / count for value in pair if value is not None]
        if len(seeds) == len(pair):
            yield max(0.0, _variance(row, seeds, count) - sum(seeds)) * videos[test]


def _variance(row: Comparison, seeds: Sequence[float], count: int) -> float:
    """Variance of a difference; from its interval where the file does not say it."""
    if row.standard_error is not None:
        return row.standard_error**2
    least, half = sum(seeds), (row.high - row.low) / 2
    penalty = sum(one**2 for one in seeds) / (count - 1)

    def excess(variance: float) -> float:
        degrees = least**2 / penalty * (variance / least) ** EXPONENT if penalty else 1e6
        return float(-stdtrit(degrees, (1 - LEVEL) / 2) * np.sqrt(variance) - half)

    low = max(least, 1e-12)
    return low if excess(low) >= 0 or half == 0 else float(brentq(excess, low, max(half**2, 2 * low)))


def plan_differences(study: StudyConfig, assumed: Assumed, videos: Mapping[str, int]) -> list[Planned]:
    """Say for every scope of a comparison what it can detect; ``videos`` are those of the test sets that are known."""
    cells = list(itertools.product(study.trainings, videos))
    means = {
        "in-domain mean": [(training, test) for training, test in cells if test == training],
        "cross-domain mean": [(training, test) for training, test in cells if test != training and training != UNION],
    }
    single = {f"{training} -> {test}": [(training, test)] for training, test in cells}
    planned = []
    for family in ({scope: of for scope, of in means.items() if of}, single):
        level = (1 - LEVEL) / max(1, len(family) * len(study.pairs))
        planned += [Planned(scope, _detect(study, assumed, of, videos, level)) for scope, of in family.items()]
    return planned


def _detect(
    study: StudyConfig,
    assumed: Assumed,
    cells: Sequence[tuple[str, str]],
    videos: Mapping[str, int],
    level: float,
) -> float:
    scenes = _name_scenes(study)
    of_training = _shares(training for training, _ in cells)
    of_test = _shares(scenes.get(test, test) for _, test in cells)
    several = len(study.seeds) > 1
    seeds = sum(2 * (share * assumed.seed_sd) ** 2 / len(study.seeds) for share in of_training.values())
    queries = sum((share * assumed.query_sd) ** 2 / videos[test] for test, share in of_test.items())
    precision = Precision(
        seed_variance=seeds if several else 0.0,
        trainings=2 * len(of_training) if several and seeds else 0,
        seeds=len(study.seeds),
        query_variance=queries,
        groups=sum(videos[test] for test in of_test),
    )
    return detectable(precision, level)


def _name_scenes(study: StudyConfig) -> dict[str, str]:
    """Test set that has the same videos, of each that is a cell of a 2 × 2: more of them are not more videos."""
    first: dict[str, str] = {}
    for source, others in study.factors.items():
        cells = cells_of(source, others).values()
        known = next((first[domain] for domain in cells if domain in first), source)
        first |= dict.fromkeys(cells, known)
    return first


def _shares(names: Iterable[str]) -> dict[str, float]:
    """Share of each name among all."""
    listed = list(names)
    return {name: listed.count(name) / len(listed) for name in dict.fromkeys(listed)}


def describe_differences(assumed: Assumed, planned: Sequence[Planned]) -> str:
    """All of it in words, for the start-up panel."""
    scopes = "; ".join(f"{scope} {value:.1f}" for scope, value in planned)
    return (
        f"{scopes} points with 80 % power, for each pair (from seed to seed {assumed.seed_sd:.2f}, from video to video "
        f"{assumed.query_sd:.1f} points: {assumed.source})"
    )
