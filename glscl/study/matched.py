"""Matched amounts of training data: two conditions that differ in nothing else, on the same queries.

Each has trainings of its own, so that seeds are independent between them, as between two variants.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from glscl.errors import UserError
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, Direction
from glscl.reporting.formats import signed
from glscl.runs.cell import Cell, CellTest
from glscl.runs.options import ZERO_SHOT
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished, as_estimate, relation_of, select_comparable
from glscl.study.results import Estimate, Matched, Relation, StudyResults
from glscl.study.retested import bootstrap_queries, shown_higher, shown_lower, stack_recall
from glscl.study.statistics import System, mean_difference

MATCHED_COLUMNS = (
    "condition", "of", "variant", "scope", "relation", "training", "test", "direction", "recall", "recall_of",
    "change", "change_low", "change_high", "seeds",
)  # fmt: skip
_Place = tuple[str, Relation, str, str]  # variant, relation, training and test; the last two empty for a mean
_Members = dict[tuple[str, str, str], list[CellTest]]  # variant, training and condition -> the seeds' tests


def find_matched(study: StudyConfig, cells: Sequence[Cell], finished: Finished) -> list[Matched]:
    """The cells that both conditions of a pair have finished, and their means, the means first."""
    comparable = select_comparable(cells, finished) if study.matched else []
    rows = []
    for condition, of in study.matched.items():
        members: dict[str, _Members] = {}
        domains = {}
        for cell, result in sorted(comparable, key=lambda item: item[0].seed):
            if cell.condition in (condition, of) and cell.training != ZERO_SHOT:
                domains[cell.training] = cell.domains
                for test in result.tests:
                    own = members.setdefault(test.domain, {})
                    own.setdefault((cell.variant, cell.training, cell.condition), []).append(test)
        pairs = {direction: _resample(study, members, condition, of, direction) for direction in DIRECTIONS}
        rows += _compare(condition, of, domains, pairs)
    return rows


_Pairs = dict[tuple[str, str, str], tuple[System, System]]  # variant, training, test -> both conditions' R@1


def _resample(
    study: StudyConfig, members: Mapping[str, _Members], condition: str, of: str, direction: Direction
) -> _Pairs:
    """Resample what both conditions have. Raises `UserError`: they were tested on different queries."""
    pairs: _Pairs = {}
    for test, own in members.items():
        both = [key[:2] for key in own if key[2] == condition and (*key[:2], of) in own]
        tests = {(*key, name): own[*key, name] for key in both for name in (condition, of)}
        if not tests:
            continue
        first = next(chain(*tests.values()))
        if any(one.per_query.owners != first.per_query.owners for one in chain(*tests.values())):
            raise UserError(
                f"matched: conditions '{condition}' and '{of}' were tested on different videos of {test} (some could "
                f"not be decoded then or now); delete the folders of the cells that are out of step"
            )
        tables = {
            key: (stack_recall([one.per_query for one in seeds], direction), True) for key, seeds in tests.items()
        }
        systems = bootstrap_queries(study, first, direction).systems(tables)
        for key in both:
            pairs[*key, test] = systems[*key, condition], systems[*key, of]
    return pairs


def _compare(
    condition: str, of: str, domains: Mapping[str, Sequence[str]], pairs: Mapping[Direction, _Pairs]
) -> list[Matched]:
    """Rows of the means, then of the cells."""
    groups: dict[_Place, list[tuple[str, str, str]]] = {}
    for key in pairs["text_to_video"]:
        variant, training, test = key
        groups.setdefault((variant, relation_of(training, domains, test), "", ""), []).append(key)
    for key in pairs["text_to_video"]:
        variant, training, test = key
        groups[variant, relation_of(training, domains, test), training, test] = [key]
    rows = []
    for (variant, relation, training, test), keys in groups.items():
        recall: dict[str, dict[Direction, float]] = {"first": {}, "second": {}}
        change: dict[Direction, Estimate] = {}
        for direction, of_direction in pairs.items():
            cells = [(key[1], *of_direction[key]) for key in keys]
            recall["first"][direction] = float(np.mean([first.mean for _, first, _ in cells]))
            recall["second"][direction] = float(np.mean([second.mean for _, _, second in cells]))
            change[direction] = as_estimate(mean_difference(cells))
        rows.append(
            Matched(
                condition=condition,
                of=of,
                variant=variant,
                relation=relation,
                training=training,
                test=test,
                recall=recall["first"],
                recall_of=recall["second"],
                change=change,
            )
        )
    return rows


def describe_matched(study: StudyResults) -> Iterator[str]:
    """Sentences: for each pair of conditions and relation, in how many heads the mean recall differs."""
    groups: dict[tuple[str, str, Relation], list[Estimate]] = {}
    for row in study.matched:
        if not row.test:
            groups.setdefault((row.condition, row.of, row.relation), []).append(row.change["text_to_video"])
    for (condition, of, relation), changes in groups.items():
        lower, higher = sum(map(shown_lower, changes)), sum(map(shown_higher, changes))
        least, most = (signed(end(one.estimate for one in changes)) for end in (min, max))
        yield (
            f"{condition} against {of} ({relation} mean): text-to-video {MAIN_METRIC} is shown lower for {lower} of "
            f"{len(changes)} heads, higher for {higher}; differences from {least} to {most} points."
        )


def matched_pairs(study: StudyResults) -> list[tuple[str, str, list[Matched], list[Matched]]]:
    """What the page shows: both conditions of a pair, its means, and its cells."""
    pairs = dict.fromkeys((row.condition, row.of) for row in study.matched)
    own = {pair: [row for row in study.matched if (row.condition, row.of) == pair] for pair in pairs}
    return [
        (*pair, [row for row in rows if not row.test], [row for row in rows if row.test]) for pair, rows in own.items()
    ]


def matched_rows(study: StudyResults) -> Iterator[dict[str, object]]:
    """Rows of ``matched.csv``."""
    for row in study.matched:
        for direction in DIRECTIONS:
            change = row.change[direction]
            yield {
                **row.model_dump(include={"condition", "of", "variant", "relation", "training", "test"}),
                "scope": f"{row.training} -> {row.test}" if row.test else f"{row.relation} mean",
                "direction": direction,
                "recall": row.recall[direction],
                "recall_of": row.recall_of[direction],
                "change": change.estimate,
                "change_low": change.low,
                "change_high": change.high,
                "seeds": change.seeds,
            }
