"""Galleries of equal size: recall of test sets that differ in size, as if all had the same number of videos.

A query's gallery is its own video and others of its test set, drawn without replacement. The mean recall over all such
galleries follows exactly from the ranks in the whole set (`Ranks.within_gallery`), so nothing is drawn and no model is
run again. From video to text the candidates are the captioned videos, each by its best caption, and the same holds.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from glscl.errors import UserError
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, RECALL_LEVELS, Direction, recall_name
from glscl.runs.cell import CellTest
from glscl.runs.options import ZERO_SHOT
from glscl.study.options import StudyConfig
from glscl.study.panels import Domains, Finished, Panel, as_estimate, as_ranks, relation_of
from glscl.study.results import EqualGalleries, Estimate, GalleryFigures, Relation, Result, StudyResults
from glscl.study.statistics import System, mean_of_cells

BOUNDS = (0.0, 100.0)
GALLERY_COLUMNS = (
    "condition", "variant", "scope", "relation", "training", "test", "gallery", "direction", "metric", "estimate",
    "low", "high", "sd", "seeds",
)  # fmt: skip
Key = tuple[str, str, str]  # variant, training, metric


def gallery_size(study: StudyConfig, finished: Finished) -> int | None:
    """Videos of a gallery, None if none is asked for. Raises `UserError`: a test set has fewer that could be used."""
    if study.gallery is None:
        return None
    sizes = {test.domain: _videos(test) for _, result in finished for test in result.tests}
    smallest = min(sizes, key=lambda name: sizes[name])
    if study.gallery == "smallest":
        return sizes[smallest]
    if study.gallery > sizes[smallest]:
        raise UserError(
            f"gallery: {study.gallery} videos, but only {sizes[smallest]} of {smallest} were tested with; give no "
            f"more, or `smallest`"
        )
    return study.gallery


def _videos(test: CellTest) -> int:
    """Videos that every query's gallery can be drawn from, in either direction."""
    return len(test.per_query.query_videos)


def measure_galleries(
    condition: str, panels: Mapping[str, Panel], domains: Domains, size: int | None
) -> EqualGalleries | None:
    """Measure one condition's cells in galleries of ``size`` videos, on its panels' resamples; None without a size."""
    if size is None:
        return None
    systems = {
        name: {direction: _resample(panel, direction, size) for direction in DIRECTIONS}
        for name, panel in panels.items()
    }
    cells = []
    groups: dict[tuple[str, Relation], list[tuple[str, str]]] = {}  # -> trainings and tests
    for name, panel in panels.items():
        for variant, training in panel.seeds:
            relation = relation_of(training, domains, name)
            groups.setdefault((variant, relation), []).append((training, name))
            figures = {
                direction: _figures(panel, direction, systems[name][direction], variant, training)
                for direction in DIRECTIONS
            }
            retention = None
            at_home = systems[name]["text_to_video"].get((variant, name, MAIN_METRIC))
            if relation == "cross-domain" and at_home is not None:
                away = systems[name]["text_to_video"][variant, training, MAIN_METRIC]
                interval = panel.bootstraps["text_to_video"].retention(away, at_home)
                retention = as_estimate(interval) if interval is not None else None
            own = {"condition": condition, "variant": variant, "relation": relation}
            cells.append(GalleryFigures(**own, training=training, test=name, retention=retention, **figures))
    means = [
        GalleryFigures(
            condition=condition,
            variant=variant,
            relation=relation,
            text_to_video=_means(systems, "text_to_video", variant, places),
            video_to_text=_means(systems, "video_to_text", variant, places),
        )
        for (variant, relation), places in groups.items()
    ]
    return EqualGalleries(videos=size, cells=cells, means=means)


def _resample(panel: Panel, direction: Direction, size: int) -> dict[Key, System]:
    queries = panel.first.per_query
    candidates = len(queries.video_ids if direction == "text_to_video" else queries.query_videos)
    tables = {}
    for (variant, training), seeds in panel.seeds.items():
        ranks = [as_ranks(getattr(one.test.per_query, direction)) for one in seeds]
        for k in RECALL_LEVELS:
            values = np.stack([100.0 * one.within_gallery(k, candidates, size).numpy() for one in ranks])
            tables[variant, training, recall_name(k)] = (values, training != ZERO_SHOT)
    return panel.bootstraps[direction].systems(tables)


def _figures(
    panel: Panel, direction: Direction, systems: Mapping[Key, System], variant: str, training: str
) -> dict[str, Estimate]:
    figures = {}
    for name in map(recall_name, RECALL_LEVELS):
        system = systems[variant, training, name]
        figures[name] = as_estimate(panel.bootstraps[direction].mean(system, BOUNDS), system.units.mean(1))
    return figures


def _means(
    systems: Mapping[str, Mapping[Direction, Mapping[Key, System]]],
    direction: Direction,
    variant: str,
    places: Sequence[tuple[str, str]],
) -> dict[str, Estimate]:
    """Means over the cells of a variant, by recall."""
    means = {}
    for name in map(recall_name, RECALL_LEVELS):
        cells = [(training, systems[test][direction][variant, training, name]) for training, test in places]
        means[name] = as_estimate(mean_of_cells(cells, BOUNDS))
    return means


def join_galleries(conditions: Sequence[EqualGalleries | None]) -> EqualGalleries | None:
    """Join the figures of all conditions; None where there are none."""
    measured = [one for one in conditions if one is not None]
    if not measured:
        return None
    return EqualGalleries(
        videos=measured[0].videos,
        cells=[row for one in measured for row in one.cells],
        means=[row for one in measured for row in one.means],
    )


def gallery_rows(galleries: EqualGalleries) -> Iterator[dict[str, object]]:
    """Rows of ``galleries.csv``: the means, then the cells."""
    for row in (*galleries.means, *galleries.cells):
        shared = row.model_dump(include={"condition", "variant", "relation", "training", "test"})
        shared |= {
            "gallery": galleries.videos,
            "scope": f"{row.training} -> {row.test}" if row.test else f"{row.relation} mean",
        }
        figures = [(d, metric, value) for d in DIRECTIONS for metric, value in getattr(row, d).items()]
        if row.retention is not None:
            figures.append(("text_to_video", "retention", row.retention))
        for direction, metric, value in figures:
            bounded = value.model_dump(include={"estimate", "low", "high", "seeds"})
            yield {**shared, "direction": direction, "metric": metric, **bounded, "sd": value.deviation}


Means = list[tuple[str, dict[Relation, GalleryFigures]]]  # a variant's means by relation
Cells = list[tuple[GalleryFigures, Result | None]]  # a cell beside its result in the whole test set


def gallery_tables(study: StudyResults) -> dict[str, tuple[Means, Cells]]:
    """What the page shows, by condition."""
    if study.galleries is None:
        return {}
    whole = {(row.condition, row.variant, row.training, row.test): row for row in study.results}
    tables = {}
    for condition in study.conditions:
        means: dict[str, dict[Relation, GalleryFigures]] = {}
        for row in study.galleries.means:
            if row.condition == condition:
                means.setdefault(row.variant, {})[row.relation] = row
        cells = [
            (row, whole.get((condition, row.variant, row.training, row.test)))
            for row in study.galleries.cells
            if row.condition == condition
        ]
        tables[condition] = (list(means.items()), cells)
    return tables
