"""Panels: the cells' ranks on one test set in one condition, resampled so that all of them are paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from glscl.errors import UserError
from glscl.evaluation.metrics import DIRECTIONS, METRICS, Direction
from glscl.evaluation.ranks import Ranks
from glscl.evaluation.results import Metrics, QueryRanks, Test, WithoutLeaked
from glscl.runs.cell import Cell
from glscl.runs.options import ZERO_SHOT
from glscl.runs.results import CellResult, CellTest
from glscl.study.options import StudyConfig
from glscl.study.statistics import QueryBootstrap, System, per_query

Key = tuple[str, str]
"""Variant and training."""
Finished = Sequence[tuple[Cell, CellResult]]
_SHARED = ("owners", "query_videos", "video_ids", "positions", "captions")


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One seed's result on a test set; ``seconds`` are of its whole cell."""

    test: CellTest
    seconds: float


@dataclass(slots=True)
class Panel:
    """Everything measured on one test set in one condition.

    Attributes:
        test: domain.
        seeds: (variant, training) -> results of its seeds, in the order of the seeds.
        bootstraps: by direction.
        systems: direction -> (variant, training, metric) -> resampled values.
    """

    test: str
    seeds: dict[Key, list[SeedResult]] = field(default_factory=dict)
    bootstraps: dict[Direction, QueryBootstrap] = field(default_factory=dict)
    systems: dict[Direction, dict[tuple[str, str, str], System]] = field(default_factory=dict)


def share_texts(result: CellResult, known: dict[str, list[int] | list[str]]) -> CellResult:
    """Hold captions, names and owners that are the same in all cells only once.

    A large study has hundreds of cells with tens of thousands of queries each.

    Args:
        result: of a cell.
        known: lists of the cells before; updated.
    """
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
    """Select the results to report: of the seeds that are finished in a whole condition, else of its first seed.

    So every comparison is between equally many seeds, and a study that has weeks to go has a report.
    """
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
    """Build the panels of one condition, by test set.

    Raises:
        UserError: cells were tested on different videos.
    """
    panels = _collect(finished)
    order = [ZERO_SHOT, *study.variants]
    for number, panel in enumerate(panels.values()):
        panel.seeds = dict(sorted(panel.seeds.items(), key=lambda item: order.index(item[0][0])))
        for offset, direction in enumerate(DIRECTIONS):
            _resample(panel, direction, study.resamples, len(DIRECTIONS) * number + offset)
    return panels


def _collect(finished: Finished) -> dict[str, Panel]:
    """Sort the cells' results by test set."""
    panels: dict[str, Panel] = {}
    for cell, result in sorted(finished, key=lambda item: item[0].seed):
        for test in result.tests:
            panel = panels.setdefault(test.domain, Panel(test.domain))
            if panel.seeds and _first(panel).per_query.owners != test.per_query.owners:
                raise UserError(
                    f"{cell.directory}: tested on other videos of {test.domain} than the cells before it (some could "
                    f"not be decoded then or now); delete the folders of the cells that are out of step"
                )
            panel.seeds.setdefault((cell.variant, cell.training), []).append(SeedResult(test, result.seconds))
    return panels


def _resample(panel: Panel, direction: Direction, resamples: int, seed: int) -> None:
    """Resample the queries of one direction for every system of a panel."""
    queries = _first(panel).per_query
    # Captions of one video are not independent: they are resampled together.
    groups = np.asarray(queries.owners) if direction == "text_to_video" else len(queries.query_videos)
    bootstrap = QueryBootstrap(groups, resamples, seed)
    tables = {}
    for (variant, training), seeds in panel.seeds.items():
        values = [per_query(_ranks(one.test.per_query, direction)) for one in seeds]
        for metric in METRICS:
            tables[variant, training, metric] = (np.stack([one[metric] for one in values]), training != ZERO_SHOT)
    panel.bootstraps[direction] = bootstrap
    panel.systems[direction] = bootstrap.systems(tables)


def _ranks(queries: QueryRanks, direction: Direction) -> Ranks:
    bounds = queries.text_to_video if direction == "text_to_video" else queries.video_to_text
    return Ranks(torch.from_numpy(bounds.optimistic).long(), torch.from_numpy(bounds.pessimistic).long())


def _first(panel: Panel) -> CellTest:
    return next(iter(panel.seeds.values()))[0].test


def metrics_of(result: Test | WithoutLeaked, direction: Direction) -> Metrics:
    """Figures of one direction, by name."""
    return result.text_to_video if direction == "text_to_video" else result.video_to_text
