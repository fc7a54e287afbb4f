"""Whether the order of variants depends on the condition: another tower, or other lengths.

A pair of variants is in the same order in two conditions where its difference is shown with the same sign in both, and
in opposite orders where the signs differ. Where too little is shown for either, the change of the difference from one
condition to the other still has an interval. Conditions share test videos, which are resampled together, and no
trainings. Holm's correction is over the pairs, for each condition and for the changes. Kendall's tau compares the
orders of the mean R@1; it has no interval, and no sentence rests on it alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence

from scipy import stats

from glscl.evaluation.metrics import MAIN_METRIC
from glscl.runs.cell import Cell, CellTest
from glscl.runs.options import Values
from glscl.study.comparisons import AVERAGED
from glscl.study.decomposition import resample, scenes_of
from glscl.study.effects import OrderChange, OrderOfPair, correct
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished, relation_of, select_comparable
from glscl.study.results import Relation, StudyResults
from glscl.study.statistics import Interval, System, contrast

Trained = tuple[str, str, str, str]  # condition, variant, training, test
Term = tuple[Hashable, float, System]


def find_order_changes(study: StudyConfig, cells: Sequence[Cell], finished: Finished) -> list[OrderChange]:
    """Compare the orders of variants in every two conditions, over the cells of each relation that both have."""
    if len(study.conditions) < 2 or len(study.variants) < 2:
        return []
    tests: dict[Trained, list[CellTest]] = {}
    domains = {cell.training: list(cell.domains) for cell in cells}
    for cell, result in sorted(select_comparable(cells, finished), key=lambda item: item[0].seed):
        for test in result.tests:
            if cell.domains and relation_of(cell.training, domains, test.domain) in AVERAGED:
                tests.setdefault((cell.condition, cell.variant, cell.training, test.domain), []).append(test)
    systems = resample({key: scenes_of(seeds, "text_to_video") for key, seeds in tests.items()}, study.resamples)
    found = []
    for one, other in itertools.combinations(study.conditions, 2):
        places: dict[Relation, list[tuple[str, str]]] = {}
        for place in _common_places(study, systems, one, other):
            places.setdefault(relation_of(place[0], domains, place[1]), []).append(place)
        found += [_compare_orders(study, systems, one, other, *item) for item in places.items()]
    return found


def _common_places(
    study: StudyConfig, systems: Mapping[Trained, System], one: str, other: str
) -> list[tuple[str, str]]:
    """Trainings and test sets that every variant has in both conditions, on the same videos."""
    places = dict.fromkeys((training, test) for _, _, training, test in systems)
    common = []
    for place in places:
        found = [systems.get((condition, name, *place)) for condition in (one, other) for name in study.variants]
        if all(found) and len({system.owner for system in found if system}) == 1:
            common.append(place)
    return common


def _compare_orders(
    study: StudyConfig,
    systems: Mapping[Trained, System],
    one: str,
    other: str,
    relation: Relation,
    places: Sequence[tuple[str, str]],
) -> OrderChange:
    weight = 1 / len(places)

    def mean(condition: str, variant: str, sign: float) -> list[Term]:
        return [
            ((condition, variant, place[0]), sign * weight, systems[(condition, variant, *place)]) for place in places
        ]

    recall = {
        name: (
            sum(part * system.mean for _, part, system in mean(one, name, 1.0)),
            sum(part * system.mean for _, part, system in mean(other, name, 1.0)),
        )
        for name in study.variants
    }
    pairs = list(itertools.combinations(study.variants, 2))
    families: list[dict[tuple[str, str], Interval]] = [{}, {}, {}]
    for first, second in pairs:
        here, there = (mean(name, first, 1.0) + mean(name, second, -1.0) for name in (one, other))
        change = there + [(model, -part, system) for model, part, system in here]
        for family, terms in zip(families, (here, there, change), strict=True):
            family[first, second] = contrast(terms)
    in_one, in_other, changes = map(correct, families)
    tau = stats.kendalltau(*zip(*recall.values(), strict=True)).statistic
    return OrderChange(
        one=one,
        other=other,
        relation=relation,
        what=_differing(study.run, study.conditions[one], study.conditions[other]),
        tau=None if tau != tau else float(tau),
        recall=recall,
        pairs=[
            OrderOfPair(first=pair[0], second=pair[1], one=in_one[pair], other=in_other[pair], change=changes[pair])
            for pair in pairs
        ],
    )


def _differing(run: Values, one: Values, other: Values) -> dict[str, str]:
    """Keys of the run that two conditions set otherwise, in words."""
    found: dict[str, str] = {}
    for key in sorted(one.keys() | other.keys()):
        shared, left, right = (values.get(key) for values in (run, one, other))
        if isinstance(left, dict) or isinstance(right, dict):
            inner = _differing(shared or {}, left or {}, right or {})
            found |= {f"{key}.{name}": text for name, text in inner.items()}
            continue
        left, right = (shared if value is None else value for value in (left, right))
        if left != right:
            found[key] = f"{left} → {right}"
    return found


def describe_order_changes(study: StudyResults) -> Iterator[str]:
    """Sentences, from the intervals alone."""
    for found in study.order_changes:
        same = sum(pair.one.shown and pair.other.shown and _sign(pair) > 0 for pair in found.pairs)
        opposite = sum(pair.one.shown and pair.other.shown and _sign(pair) < 0 for pair in found.pairs)
        changed = sum(pair.change.shown for pair in found.pairs)
        pairs = f"{len(found.pairs)} pairs" if len(found.pairs) > 1 else "1 pair"
        tau = "" if found.tau is None else f"; Kendall's tau of the mean {MAIN_METRIC} is {found.tau:.2f}"
        what = f" ({'; '.join(f'{key} {value}' for key, value in found.what.items())})" if found.what else ""
        yield (
            f"{found.one} and {found.other}{what}, {found.relation} mean: of {pairs} of variants, "
            f"{same} are shown in the same order in both, {opposite} in opposite orders, and for "
            f"{len(found.pairs) - same - opposite} no order is shown in one of the two; the difference is shown to "
            f"change for {changed}{tau}."
        )


def _sign(pair: OrderOfPair) -> float:
    """Positive where both differences have the same sign."""
    return pair.one.estimate * pair.other.estimate
