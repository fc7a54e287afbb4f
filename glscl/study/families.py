"""Check, before training, that a study has enough resamples, queries and seeds for its comparisons.

All single cells of one condition and direction are one family under Holm's correction, all means another, which is
smaller. The more comparisons, the smaller the p-value that one of them needs, and the more seeds, queries and resamples
it takes to have such a p-value at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from scipy import stats

from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.runs.sets import Sets, are_built
from glscl.study.options import StudyConfig
from glscl.study.statistics import LEVEL, enough_queries, enough_resamples, seed_errors

MOST_ERRORS = 100.0
"""A difference of all 100 points is this many standard errors where two seeds' trainings are a point apart."""


def family_size(study: StudyConfig) -> int:
    """Comparisons of single cells in one condition and direction."""
    tests = sum(domain.is_tested for domain in study.domains.values())
    trainings = len(study.domains) + (study.union and len(study.domains) > 1)
    return len(study.pairs) * trainings * tests


def describe_family(study: StudyConfig) -> str:
    """What a difference needs to be shown, in words."""
    size = family_size(study)
    if not size:
        return "none: no comparisons"
    queries = float(stats.norm.isf((1 - LEVEL) / 2 / size))
    text = f"{size} comparisons of single cells; shown from {queries:.1f} standard errors on where queries make them up"
    if len(study.seeds) < 2:
        return f"{text}; one seed: every claim is of one training"
    return f"{text}, {seed_errors(size, len(study.seeds)):.1f} where seeds do"


def check_families(study: StudyConfig, sets: Mapping[str, Sets]) -> None:
    """Refuse a family of comparisons that cannot show a difference, however large.

    Args:
        study: the study.
        sets: its shard sets; test sets that do not exist yet are checked once they do.

    Raises:
        UserError: naming the family, what it lacks, and the knobs.
    """
    size = family_size(study)
    if not size:
        return
    family = f"{size} single cells are compared in each direction (comparisons x trainings x test sets)"
    fewer = "name fewer comparisons, or strike out domains"
    if study.resamples < (least := enough_resamples(size)):
        raise UserError(
            f"resamples: {family}, and {study.resamples} resamples are too few for the p-values that so many need: "
            f"give at least {least}, or {fewer}"
        )
    seeds = len(study.seeds)
    if seeds > 1 and (errors := seed_errors(size, seeds)) > MOST_ERRORS:
        raise UserError(
            f"seeds: {family}, so that with {seeds} seeds a difference needs {errors:.0f} standard errors and none can "
            f"be shown: give {seeds + 1} seeds or more, or {fewer}"
        )
    least = enough_queries(size)
    for name, videos in _tested_videos(study, sets).items():
        if videos < least:
            raise UserError(
                f"domains.{name}: {family}, and a test set of {videos} videos can show nothing among so many: it needs "
                f"{least} or more, or {fewer}"
            )


def _tested_videos(study: StudyConfig, sets: Mapping[str, Sets]) -> dict[str, int]:
    """Videos of the test sets whose size is known."""
    known = {}
    for name, domain in study.domains.items():
        uri = sets[name].test
        if domain.toy and domain.toy.test:
            known[name] = domain.toy.test
        elif uri and are_built([uri]):
            known[name] = open_shard_set(uri).manifest.videos
    return known
