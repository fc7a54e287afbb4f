"""Figures of another study of the same variants, to be shown beside those of this one: trained towers beside frozen."""

from __future__ import annotations

from glscl.evaluation.metrics import MAIN_METRIC
from glscl.runs.options import ZERO_SHOT
from glscl.study.results import Beside, BesideRow, Relation, StudyResults, parse_study
from glscl.system import storage

SCOPES: tuple[Relation, ...] = ("zero-shot", "in-domain", "cross-domain")


def read_beside(where: str, results: StudyResults) -> Beside | None:
    """Means of both studies by condition, variant and scope, from the other's ``study.json``; None if there is none."""
    if not storage.exists(where):
        print(f"beside: there is no {where}, so no figures of it are shown", flush=True)
        return None
    other = parse_study(storage.read_json(where))
    ours, theirs = _means(results), _means(other)
    pooling = _mean_pooling(results)

    def over_pooling(key: tuple[str, str, str]) -> tuple[float, float] | None:
        base = (key[0], pooling, key[2])
        if key == base or base not in ours or base not in theirs:
            return None
        return ours[key] - ours[base], theirs[key] - theirs[base]

    rows = [
        BesideRow(
            condition=condition,
            variant=variant.name,
            scope=scope,
            ours=ours[key],
            theirs=theirs[key],
            over_pooling=over_pooling(key),
        )
        for condition in results.conditions
        for variant in results.variants
        for scope in SCOPES
        if (key := (condition, variant.name, scope)) in ours and key in theirs
    ]
    return Beside(name=other.name, label=other.label, claims=other.claims, rows=rows)


def _mean_pooling(study: StudyResults) -> str:
    """The first variant that pools frames by their mean after training; empty if there is none."""
    return next((v.name for v in study.variants if v.head == "mean_pool" and v.name != ZERO_SHOT), "")


def _means(study: StudyResults) -> dict[tuple[str, str, str], float]:
    """Mean text-to-video R@1 over the cells of each condition, variant and scope."""
    cells: dict[tuple[str, str, str], list[float]] = {}
    for result in study.results:
        key = result.condition, result.variant, result.relation
        cells.setdefault(key, []).append(result.text_to_video[MAIN_METRIC].estimate)
    return {key: sum(values) / len(values) for key, values in cells.items()}
