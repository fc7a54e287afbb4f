"""Panels: the cells' ranks on one test set in one condition, resampled and paired, and the figures that they give."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from glscl.errors import UserError
from glscl.evaluation.metrics import (
    DIRECTIONS,
    MAIN_METRIC,
    MEDIAN_RANK,
    METRICS,
    OPTIMISTIC,
    PESSIMISTIC,
    RECALL_LEVELS,
    RELEVANT_SUMMARY,
    Direction,
    recall_name,
)
from glscl.evaluation.ranks import Ranks
from glscl.evaluation.results import RankBounds, RelevantQueries
from glscl.runs.cell import Cell, CellResult, CellTest
from glscl.runs.options import UNION, ZERO_SHOT
from glscl.study.options import StudyConfig
from glscl.study.results import Column, Estimate, Relation, Result, SeveralRelevant, WithoutLeaked
from glscl.study.statistics import Array, Interval, QueryBootstrap, System, over_seeds, per_query

Domains = Mapping[str, Sequence[str]]  # training -> the domains that it learns from
Finished = Sequence[tuple[Cell, CellResult]]
_SHARED = ("owners", "query_videos", "video_ids", "positions", "captions")


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One seed's result on a test set; ``seconds`` are of its whole cell."""

    test: CellTest
    seconds: float


@dataclass(slots=True)
class Panel:
    """Everything measured on one test set in one condition."""

    test: str  # domain of the test set
    seeds: dict[tuple[str, str], list[SeedResult]] = field(default_factory=dict)
    """Variant and training -> results of its seeds, in the order of the seeds."""
    bootstraps: dict[Direction, QueryBootstrap] = field(default_factory=dict)
    systems: dict[Direction, dict[tuple[str, str, str], System]] = field(default_factory=dict)
    """Direction -> (variant, training, metric) -> resampled values."""
    relevant: dict[tuple[str, str, str], System] = field(default_factory=dict)
    """Variant, training and metric -> text to video, every relevant video counted, where all cells kept that."""

    @property
    def first(self) -> CellTest:
        """One of the results, for what all have in common."""
        return next(iter(self.seeds.values()))[0].test


def share_texts(result: CellResult, known: dict[str, list[int] | list[str]]) -> CellResult:
    """Hold once what is the same in hundreds of cells, captions and names; ``known`` are those of cells before."""
    tests = []
    for test in result.tests:
        queries = test.per_query
        shared = {}
        for name in _SHARED:
            values = getattr(queries, name)
            first = known.setdefault(f"{test.fingerprint}/{name}", values)
            shared[name] = first if first == values else values
        tests.append(test.model_copy(update={"per_query": queries.model_copy(update=shared)}))
    return result.model_copy(update={"tests": tests})


def select_comparable(cells: Sequence[Cell], finished: Finished) -> list[tuple[Cell, CellResult]]:
    """Select the results to report, equally many seeds of each: those finished in a whole condition, else the first."""
    chosen = []
    for condition in dict.fromkeys(cell.condition for cell in cells):
        done = [(cell, result) for cell, result in finished if cell.condition == condition]
        seeds = _select_seeds([cell for cell in cells if cell.condition == condition], [cell for cell, _ in done])
        chosen += [(cell, result) for cell, result in done if cell.seed in seeds or not cell.domains]
    return chosen


def _select_seeds(cells: Sequence[Cell], finished: Sequence[Cell]) -> set[int]:
    """Select the seeds of which every cell is finished; without one, the first seed that has a trained cell."""
    labels = {cell.label for cell in finished}
    unfinished = {cell.seed for cell in cells if cell.label not in labels}
    whole = {cell.seed for cell in finished if cell.seed not in unfinished}
    return whole or {next((cell.seed for cell in finished if cell.domains), -1)}


def build_panels(study: StudyConfig, finished: Finished) -> dict[str, Panel]:
    """Build the panels of one condition, by test set. Raises `UserError`: cells were tested on different videos."""
    panels = _collect(finished)
    order = [ZERO_SHOT, *study.variants]
    known: dict[tuple[Direction, tuple[int, ...], tuple[str, ...]], QueryBootstrap] = {}
    for number, panel in enumerate(panels.values()):
        panel.seeds = dict(sorted(panel.seeds.items(), key=lambda item: order.index(item[0][0])))
        queries = panel.first.per_query
        for offset, direction in enumerate(DIRECTIONS):
            # Test sets of the same videos, with other captions or pictures, are not independent.
            scenes = direction, tuple(queries.owners), tuple(queries.video_ids)
            if scenes not in known:
                known[scenes] = _build_bootstrap(panel, direction, study.resamples, len(DIRECTIONS) * number + offset)
            _resample(panel, direction, known[scenes])
        _resample_relevant(panel, study.resamples, len(DIRECTIONS) * len(panels) + number)
    return panels


def _collect(finished: Finished) -> dict[str, Panel]:
    panels: dict[str, Panel] = {}
    for cell, result in sorted(finished, key=lambda item: item[0].seed):
        for test in result.tests:
            panel = panels.setdefault(test.domain, Panel(test.domain))
            if panel.seeds and panel.first.per_query.owners != test.per_query.owners:
                raise UserError(
                    f"{cell.directory}: tested on other videos of {test.domain} than the cells before it (some could "
                    f"not be decoded then or now); delete the folders of the cells that are out of step"
                )
            panel.seeds.setdefault((cell.variant, cell.training), []).append(SeedResult(test, result.seconds))
    return panels


def _build_bootstrap(panel: Panel, direction: Direction, resamples: int, seed: int) -> QueryBootstrap:
    queries = panel.first.per_query
    # Captions of one video are not independent: they are resampled together.
    groups = np.asarray(queries.owners) if direction == "text_to_video" else len(queries.query_videos)
    return QueryBootstrap(groups, resamples, seed)


def _resample(panel: Panel, direction: Direction, bootstrap: QueryBootstrap) -> None:
    tables = {}
    for (variant, training), seeds in panel.seeds.items():
        values = [per_query(as_ranks(getattr(one.test.per_query, direction))) for one in seeds]
        for metric in METRICS:
            tables[variant, training, metric] = (np.stack([one[metric] for one in values]), training != ZERO_SHOT)
    panel.bootstraps[direction] = bootstrap
    panel.systems[direction] = bootstrap.systems(tables)


def _resample_relevant(panel: Panel, resamples: int, seed: int) -> None:
    """Resample the figures that count all relevant videos; with the other figures where every caption has one."""
    kept = {key: queries for key, seeds in panel.seeds.items() if (queries := _relevant_queries(seeds))}
    if not kept:
        return
    owners = np.asarray(panel.first.per_query.owners)
    captions = next(iter(kept.values()))[0].captions
    if any(one.captions != captions for queries in kept.values() for one in queries):
        raise UserError(
            f"{panel.test}: cells were tested with different lists of relevant videos; give all of them that of today: "
            f"delete the folders of the cells that are out of step"
        )
    bootstrap = panel.bootstraps["text_to_video"]
    if len(captions) < len(owners):
        bootstrap = QueryBootstrap(owners[captions], resamples, seed)
    tables = {}
    for (variant, training), queries in kept.items():
        for metric in RELEVANT_SUMMARY:
            values = np.stack([one.values[metric] for one in queries])
            tables[variant, training, metric] = values, training != ZERO_SHOT
    panel.relevant = bootstrap.systems(tables)


def _relevant_queries(seeds: Sequence[SeedResult]) -> list[RelevantQueries]:
    """What the queries score where all relevant videos count, seed by seed; nothing where a cell did not keep it."""
    found = [one.test.several_relevant.per_query for one in seeds if one.test.several_relevant]
    kept = [queries for queries in found if queries]
    return kept if len(kept) == len(seeds) else []


def as_ranks(bounds: RankBounds) -> Ranks:
    """The ranks of queries as a cell's file holds them."""
    return Ranks(torch.from_numpy(bounds.optimistic).long(), torch.from_numpy(bounds.pessimistic).long())


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
        several_relevant=_several_relevant(panel, variant, training),
        seconds=_mean(one.seconds for one in seeds) if training != ZERO_SHOT else None,
    )


def _figures(panel: Panel, direction: Direction, variant: str, training: str) -> dict[str, Estimate]:
    """Every metric of one direction."""
    figures = {}
    for name, metric in METRICS.items():
        system = panel.systems[direction][variant, training, name]
        interval = panel.bootstraps[direction].mean(system, metric.bounds)
        figures[name] = as_estimate(interval, system.units.mean(1))
    return figures


def _retention(panel: Panel, variant: str, training: str) -> Estimate | None:
    """What is left of the main metric after training on another domain than the test's."""
    systems = panel.systems["text_to_video"]
    at_home = systems.get((variant, panel.test, MAIN_METRIC))
    if at_home is None:
        return None
    interval = panel.bootstraps["text_to_video"].retention(systems[variant, training, MAIN_METRIC], at_home)
    return as_estimate(interval) if interval is not None else None


def _lift(panel: Panel, variant: str, training: str) -> Estimate | None:
    """Difference in the main metric from the towers before any training."""
    systems = panel.systems["text_to_video"]
    zero_shot = systems.get((ZERO_SHOT, ZERO_SHOT, MAIN_METRIC))
    if zero_shot is None:
        return None
    return as_estimate(panel.bootstraps["text_to_video"].difference(systems[variant, training, MAIN_METRIC], zero_shot))


def as_estimate(interval: Interval, of_seeds: Array | None = None) -> Estimate:
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
    means = {d: _mean(getattr(one, d)[MAIN_METRIC] for one in leakless) for d in DIRECTIONS}
    return WithoutLeaked(note=leakless[0].note, videos=leakless[0].videos, **means)


def _several_relevant(panel: Panel, variant: str, training: str) -> SeveralRelevant | None:
    """Means over seeds of the figures that count every relevant video."""
    seeds = panel.seeds[variant, training]
    found = [one.test.several_relevant for one in seeds if one.test.several_relevant]
    if len(found) < len(seeds):
        return None
    figures = {
        name: _mean(one.text_to_video[name] for one in found)
        for name in RELEVANT_SUMMARY
        if all(name in one.text_to_video for one in found)
    }
    intervals = {
        name: as_estimate(system.owner.mean(system, (0.0, 100.0)), system.units.mean(1))
        for name in figures
        if (system := panel.relevant.get((variant, training, name)))
    }
    return SeveralRelevant(note=found[0].note, relevant=found[0].relevant, text_to_video=figures, intervals=intervals)


def _mean_metric(seeds: Sequence[SeedResult], direction: Direction, name: str) -> float:
    return _mean(one.test.metrics(direction)[name] for one in seeds)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
