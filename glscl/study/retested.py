"""Cells' models that were tested again, beside their results: recall then, and its change from the result.

The same trained model is tested twice on the same queries, so the change is taken query by query and seed by seed: the
interval is that of a mean, with seeds as a random effect (`glscl.study.statistics`).
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from glscl.errors import UserError
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, METRICS, Direction
from glscl.runs.cell import Cell, CellTest, Retest
from glscl.runs.options import ZERO_SHOT
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished, as_estimate, as_ranks, relation_of, select_comparable
from glscl.study.results import Estimate, Relation
from glscl.study.statistics import Array, QueryBootstrap, System, per_query

AnyTest = TypeVar("AnyTest", bound=Retest)
Kind = TypeVar("Kind", bound=Hashable)  # tells the later tests of one test set apart


@dataclass(slots=True, eq=False)
class Retested(Generic[AnyTest, Kind]):
    """One variant after one training on one test set: its seeds' results, and the tests of each that came later."""

    condition: str
    variant: str
    training: str
    test: str
    relation: Relation
    plain: list[CellTest] = field(default_factory=list)
    again: list[dict[Kind, AnyTest]] = field(default_factory=list)

    def of(self, kind: Kind) -> list[AnyTest]:
        """Every seed's test of one kind; none unless all seeds have it."""
        return [own[kind] for own in self.again] if all(kind in own for own in self.again) else []


class Changed(NamedTuple):
    """R@1 of a test, and its change from the result, in points; resampled."""

    recall: System
    change: System


def collect_retested(
    cells: Sequence[Cell],
    finished: Finished,
    read: Callable[[str], Iterable[AnyTest]],
    kind_of: Callable[[AnyTest], Kind],
    what: str,
) -> list[Retested[AnyTest, Kind]]:
    """Sort the later tests of the cells that are reported; ``read`` reads them from a cell's directory.

    Raises `UserError`: some are of another test set than the result; ``what`` they are.
    """
    found: dict[tuple[str, ...], Retested[AnyTest, Kind]] = {}
    for cell, result in sorted(select_comparable(cells, finished), key=lambda item: item[0].seed):
        tests = list(read(cell.directory))
        for test in result.tests:
            key = (cell.condition, cell.variant, cell.training, test.domain)
            relation = relation_of(cell.training, {cell.training: cell.domains}, test.domain)
            entry = found.setdefault(key, Retested(*key, relation))
            own = {kind_of(one): one for one in tests if one.domain == test.domain}
            if any(one.fingerprint != test.fingerprint for one in own.values()):
                raise UserError(
                    f"{cell.directory}: its {what} are of another {test.domain} than its result; delete the cell's "
                    f"folder to have it done again"
                )
            entry.plain.append(test)
            entry.again.append(own)
    return list(found.values())


def resample_changes(
    study: StudyConfig, retested: Sequence[Retested[AnyTest, Kind]], kinds: Sequence[Kind], direction: Direction
) -> Iterator[tuple[Retested[AnyTest, Kind], Kind, QueryBootstrap, Changed]]:
    """Yield every kind of test that all seeds have, resampled test set by test set in each condition.

    Means over test sets may be taken: see `bootstrap_queries`.
    """
    places: dict[tuple[str, str], list[Retested[AnyTest, Kind]]] = {}
    for entry in retested:
        places.setdefault((entry.condition, entry.test), []).append(entry)
    for entries in places.values():
        tables = {}
        for index, entry in enumerate(entries):
            before = stack_recall([plain.per_query for plain in entry.plain], direction)
            for kind in kinds:
                if tests := entry.of(kind):
                    after, trained = stack_recall(tests, direction), entry.training != ZERO_SHOT
                    tables[index, kind, "recall"] = (after, trained)
                    tables[index, kind, "change"] = (after - before, trained)
        if not tables:
            continue
        bootstrap = bootstrap_queries(study, entries[0].plain[0], direction)
        systems = bootstrap.systems(tables)
        for index, kind, what in tables:
            if what == "recall":
                changed = Changed(systems[index, kind, "recall"], systems[index, kind, "change"])
                yield entries[index], kind, bootstrap, changed


def estimate_change(bootstrap: QueryBootstrap, changed: Changed) -> tuple[Estimate, Estimate]:
    """Recall and its change, with their intervals."""
    recall = bootstrap.mean(changed.recall, METRICS[MAIN_METRIC].bounds)
    change = bootstrap.mean(changed.change)
    return as_estimate(recall, changed.recall.units.mean(1)), as_estimate(change, changed.change.units.mean(1))


def bootstrap_queries(study: StudyConfig, test: CellTest, direction: Direction) -> QueryBootstrap:
    """The resamples that all figures of a test set have, which are independent of another set's."""
    queries = test.per_query
    groups = queries.owners if direction == "text_to_video" else len(queries.query_videos)
    number = len(DIRECTIONS) * study.tested.index(test.domain) + list(DIRECTIONS).index(direction)
    return QueryBootstrap(groups, study.resamples, number)


def stack_recall(tests: Iterable[object], direction: Direction) -> Array:
    """(S, Q) the main metric of every seed and query."""
    return np.stack([per_query(as_ranks(getattr(one, direction)))[MAIN_METRIC] for one in tests])


def shown_lower(change: Estimate) -> bool:
    """Whether the interval lies below 0."""
    return change.high is not None and change.high < 0


def shown_higher(change: Estimate) -> bool:
    """Whether the interval lies above 0."""
    return change.low is not None and change.low > 0
