"""The comparisons of a study: differences between variants, corrected for their number, and the claims they allow."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, Direction
from glscl.study.options import StudyConfig
from glscl.study.panels import Domains, Panel, relation_of
from glscl.study.results import Comparison, Relation
from glscl.study.statistics import (
    LEVEL,
    Equivalence,
    Interval,
    Precision,
    System,
    claim,
    detectable,
    equivalence_p,
    holm,
    mean_difference,
)

AVERAGED: tuple[Relation, ...] = ("in-domain", "cross-domain")  # relations over whose cells a difference is averaged


class _Key(NamedTuple):
    first: str
    second: str
    scope: str
    relation: Relation


def compare_variants(
    study: StudyConfig, condition: str, panels: Mapping[str, Panel], domains: Domains
) -> list[Comparison]:
    """Compare every pair's main metric, on the average of each relation and cell by cell.

    Two families of each condition and direction are corrected each for itself: the means, and the single cells.
    """
    comparisons: list[Comparison] = []
    for direction in DIRECTIONS:
        means: dict[_Key, Interval] = {}
        single: dict[_Key, Interval] = {}
        for first, second in study.pairs:
            averaged: dict[Relation, list[tuple[str, System, System]]] = {relation: [] for relation in AVERAGED}
            for panel, training, one, two in _paired(panels, domains, direction, first, second):
                relation = relation_of(training, domains, panel.test)
                key = _Key(first, second, f"{training} -> {panel.test}", relation)
                single[key] = panel.bootstraps[direction].difference(one, two)
                if relation in averaged:
                    averaged[relation].append((training, one, two))
            for relation, cells in averaged.items():
                if cells:
                    means[_Key(first, second, f"{relation} mean", relation)] = mean_difference(cells)
        for family in (means, single):
            comparisons += _correct(study, condition, direction, family)
    return comparisons


def compare_relevant(
    study: StudyConfig, condition: str, panels: Mapping[str, Panel], domains: Domains
) -> list[Comparison]:
    """Compare every pair's R@1 with all relevant videos, cell by cell: one family of each condition, text to video."""
    family = {}
    for first, second in study.pairs:
        for panel in panels.values():
            for training in domains:
                one, two = (panel.relevant.get((variant, training, MAIN_METRIC)) for variant in (first, second))
                if one is not None and two is not None:
                    key = _Key(first, second, f"{training} -> {panel.test}", relation_of(training, domains, panel.test))
                    family[key] = one.owner.difference(one, two)
    return list(_correct(study, condition, "text_to_video", family, ", all relevant videos"))


def _paired(
    panels: Mapping[str, Panel], domains: Domains, direction: Direction, first: str, second: str
) -> Iterator[tuple[Panel, str, System, System]]:
    """Yield panel and training of every cell that both variants have, and their resampled values."""
    for panel in panels.values():
        systems = panel.systems[direction]
        for training in domains:
            one, two = (systems.get((variant, training, MAIN_METRIC)) for variant in (first, second))
            if one is not None and two is not None:
                yield panel, training, one, two


def _correct(
    study: StudyConfig, condition: str, direction: Direction, family: Mapping[_Key, Interval], counted: str = ""
) -> Iterator[Comparison]:
    """Yield the comparisons of one family with Holm's correction: of its differences, and of its equivalences.

    ``counted`` says in the sentences what is counted, where that is more than the caption's own video.
    """
    adjusted = holm({key: interval.p_value or 0.0 for key, interval in family.items()})
    equal = _test_equivalence(study, family)
    for key, interval in family.items():
        p_value, equivalence = adjusted[key], equal.get(key)
        in_condition = f", {condition}" if len(study.conditions) > 1 else ""
        where = f"({direction.replace('_', '-')}, {key.scope}{in_condition}{counted})"
        varies = interval.standard_error > 0
        least = detectable(Precision.of(interval), (1 - LEVEL) / len(family)) if varies else None
        yield Comparison(
            **key._asdict(),
            condition=condition,
            direction=direction,
            metric=MAIN_METRIC,
            estimate=interval.estimate,
            low=interval.low,
            high=interval.high,
            p_value=interval.p_value or 0.0,
            adjusted_p=p_value,
            shown=interval.excludes_null and p_value <= 1 - LEVEL,
            equivalence_p=equivalence.p_value if equivalence else None,
            equivalent=equivalence is not None and equivalence.shown,
            standard_error=interval.standard_error,
            detectable=least,
            sentence=claim(interval, key.first, key.second, MAIN_METRIC, where, p_value, equivalence, least),
        )


def _test_equivalence(study: StudyConfig, family: Mapping[_Key, Interval]) -> dict[_Key, Equivalence]:
    """Test whether the differences of a family are smaller than the study's margin; none without a margin."""
    if (margin := study.equivalence_margin) is None:
        return {}
    adjusted = holm({key: equivalence_p(interval, margin) for key, interval in family.items()})
    return {key: Equivalence(margin, p_value) for key, p_value in adjusted.items()}


def write_claims(study: StudyConfig, comparisons: Sequence[Comparison]) -> list[str]:
    """Write the claims of a study: per condition counts of the means, then the sentence of every mean."""
    counts: list[str] = []
    sentences: list[str] = []
    for condition in study.conditions:
        main = [c for c in comparisons if c.condition == condition and c.direction == "text_to_video"]
        for relation in reversed(AVERAGED):
            means = [c for c in main if c.scope == f"{relation} mean"]
            sentences += [c.sentence for c in means]
            counts += _count_consistency_against_attention(study, condition, relation, means)
        counts += _count_losses(study, condition, [c for c in main if c.scope.endswith(" mean")])
    return [*counts, *sentences]


def _count_consistency_against_attention(
    study: StudyConfig, condition: str, relation: Relation, means: Sequence[Comparison]
) -> list[str]:
    """Count what is shown between the two groups of heads, tuned ones apart; nothing without such a comparison."""
    groups = {name: variant.group for name, variant in study.variants.items()}
    asked = [c for c in means if (groups[c.first], groups[c.second]) == ("consistency", "attention")]
    where = "Across domains" if relation == "cross-domain" else "In the domain trained on"
    in_condition = f" ({condition})" if len(study.conditions) > 1 else ""
    sentences = []
    for tuned in (False, True):
        counted = [c for c in asked if bool(study.variants[c.first].tuned) is tuned]
        heads = ", every head tuned with the same budget" if tuned else ""
        if counted:
            sentences.append(
                f"{where}{in_condition}{heads}, global-local consistency against attention: {tally(counted)} "
                f"(mean text-to-video {MAIN_METRIC}, Holm's correction)."
            )
    return sentences


def _count_losses(study: StudyConfig, condition: str, means: Sequence[Comparison]) -> list[str]:
    """Count, in one sentence, what the consistency losses do to their own heads; none without such a comparison."""

    def head(name: str) -> object:
        return study.variants[name].run.get("model", {}).get("head")

    groups = {name: variant.group for name, variant in study.variants.items()}
    asked = [
        c
        for c in means
        if (groups[c.first], groups[c.second]) == ("consistency", "ablation") and head(c.first) == head(c.second)
    ]
    if not asked:
        return []
    in_condition = f" ({condition})" if len(study.conditions) > 1 else ""
    return [
        f"With and without its consistency losses, the same head{in_condition}: {tally(asked)} "
        f"(means in and across domains, text-to-video {MAIN_METRIC})."
    ]


def tally(comparisons: Sequence[Comparison]) -> str:
    """Count the differences that were shown, and which way, and those that were shown to be none."""
    better = sum(c.shown and c.estimate > 0 for c in comparisons)
    worse = sum(c.shown and c.estimate < 0 for c in comparisons)
    equal = sum(c.equivalent for c in comparisons)
    compared = f"{len(comparisons)} comparisons" if len(comparisons) > 1 else "1 comparison"
    within = f"; {equal} shown equal within the margin" if equal else ""
    if not better and not worse:
        return f"no difference shown in {'any of ' if len(comparisons) > 1 else ''}{compared}{within}"
    rest = len(comparisons) - better - worse
    return f"of {compared}, {better} shown better, {worse} shown worse, {rest} with no difference shown{within}"
