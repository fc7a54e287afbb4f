"""The figures of a study: one variant after one training on one test set, over seeds, with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from glscl.evaluation.metrics import (
    DIRECTIONS,
    MAIN_METRIC,
    MEDIAN_RANK,
    METRICS,
    OPTIMISTIC,
    PESSIMISTIC,
    RECALL_LEVELS,
    Direction,
    recall_name,
)
from glscl.runs.options import UNION, ZERO_SHOT
from glscl.study.panels import Panel, SeedResult, metrics_of
from glscl.study.results import Column, Estimate, Relation, Result, WithoutLeaked
from glscl.study.statistics import Array, Interval, over_seeds

Domains = Mapping[str, Sequence[str]]
"""Training -> the domains that it learns from."""


def relation_of(training: str, domains: Domains, test: str) -> Relation:
    """Relation of a test set to a training."""
    if training == ZERO_SHOT:
        return "zero-shot"
    if training == UNION:
        return "union"
    return "in-domain" if test in domains[training] else "cross-domain"


def build_result(condition: str, panel: Panel, variant: str, training: str, domains: Domains) -> Result:
    """Compute everything that the study says of one variant after one training on one test set."""
    seeds = panel.seeds[variant, training]
    relation = relation_of(training, domains, panel.test)
    return Result(
        condition=condition,
        variant=variant,
        training=training,
        test=panel.test,
        relation=relation,
        text_to_video=_figures(panel, "text_to_video", variant, training),
        video_to_text=_figures(panel, "video_to_text", variant, training),
        median_rank={d: _mean_metric(seeds, d, MEDIAN_RANK) for d in DIRECTIONS},
        ties={d: (_mean_metric(seeds, d, PESSIMISTIC), _mean_metric(seeds, d, OPTIMISTIC)) for d in DIRECTIONS},
        hubness=_hubness(seeds),
        retention=_retention(panel, variant, training) if relation == "cross-domain" else None,
        lift=_lift(panel, variant, training) if training != ZERO_SHOT else None,
        columns=_columns(seeds),
        without_leaked=_without_leaked(seeds),
        seconds=_mean(one.seconds for one in seeds) if training != ZERO_SHOT else None,
    )


def _figures(panel: Panel, direction: Direction, variant: str, training: str) -> dict[str, Estimate]:
    """Every metric of one direction."""
    figures = {}
    for name, metric in METRICS.items():
        system = panel.systems[direction][variant, training, name]
        interval = panel.bootstraps[direction].mean(system, metric.bounds)
        figures[name] = _estimate(interval, system.units.mean(1))
    return figures


def _retention(panel: Panel, variant: str, training: str) -> Estimate | None:
    """What is left of the main metric after training on another domain than the test's."""
    systems = panel.systems["text_to_video"]
    at_home = systems.get((variant, panel.test, MAIN_METRIC))
    if at_home is None:
        return None
    interval = panel.bootstraps["text_to_video"].retention(systems[variant, training, MAIN_METRIC], at_home)
    return _estimate(interval) if interval is not None else None


def _lift(panel: Panel, variant: str, training: str) -> Estimate | None:
    """Difference in the main metric from the towers before any training."""
    systems = panel.systems["text_to_video"]
    zero_shot = systems.get((ZERO_SHOT, ZERO_SHOT, MAIN_METRIC))
    if zero_shot is None:
        return None
    return _estimate(panel.bootstraps["text_to_video"].difference(systems[variant, training, MAIN_METRIC], zero_shot))


def _estimate(interval: Interval, of_seeds: Array | None = None) -> Estimate:
    """Convert an interval; ``of_seeds`` (S,) are the seeds' figures."""
    low, high = (float(end) if np.isfinite(end) else None for end in (interval.low, interval.high))
    return Estimate(
        estimate=interval.estimate,
        low=low,
        high=high,
        deviation=over_seeds(of_seeds).deviation if of_seeds is not None else None,
        seeds=min(interval.seeds),
        note=interval.note,
    )


def _hubness(seeds: Sequence[SeedResult]) -> Estimate:
    skewness = over_seeds([one.test.hubness_skewness for one in seeds])
    return Estimate(
        estimate=skewness.mean,
        low=skewness.minimum,
        high=skewness.maximum,
        deviation=skewness.deviation,
        seeds=skewness.seeds,
        note="range over seeds",
    )


def _columns(seeds: Sequence[SeedResult]) -> list[Column]:
    """Means over seeds of the normalised figures, for every level that all seeds measured."""
    columns = []
    for number, column in enumerate(seeds[0].test.normalised):
        metrics = [one.test.normalised[number].metrics for one in seeds]
        recalls = {
            f"recall_at_{k}": _mean(of_seed[name] for of_seed in metrics)
            for k in RECALL_LEVELS
            if all((name := recall_name(k)) in of_seed for of_seed in metrics)
        }
        columns.append(Column(label=column.label, saw=column.saw, direction=column.direction, **recalls))
    return columns


def _without_leaked(seeds: Sequence[SeedResult]) -> WithoutLeaked | None:
    leakless = [one.test.without_leaked for one in seeds if one.test.without_leaked]
    if len(leakless) < len(seeds):
        return None
    means = {d: _mean(metrics_of(one, d)[MAIN_METRIC] for one in leakless) for d in DIRECTIONS}
    return WithoutLeaked(note=leakless[0].note, videos=leakless[0].videos, **means)


def _mean_metric(seeds: Sequence[SeedResult], direction: Direction, name: str) -> float:
    return _mean(metrics_of(one.test, direction)[name] for one in seeds)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
