"""The 2 × 2 decomposition: how much of a cross-domain change of R@1 is caption style, visual style, their interaction.

After training on a domain, a variant is tested on it, on one with other captions, one with other pictures, and one with
both. With R@1 on the four as ``source``, ``captions``, ``pictures`` and ``both``::

    shift by captions  = captions - source
    shift by pictures  = pictures - source
    interaction        = both - captions - pictures + source
    total              = both - source, the sum of the three

The four are tests of the same trained models, so a seed's contrast is taken before the spread over seeds. Test sets
with the same video ids show the same scenes: their queries are resampled together, scene by scene, those of others
independently.
Holm's correction is over all effects of a condition and direction, and separately over all differences of effects.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, Direction
from glscl.reporting.formats import interval as between
from glscl.reporting.formats import signed
from glscl.runs.cell import Cell as StudyCell
from glscl.runs.cell import CellTest
from glscl.study.effects import Decomposition, Effect, Factor, correct
from glscl.study.factors import CELLS, Cell, cells_of
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished, as_ranks, select_comparable
from glscl.study.results import StudyResults
from glscl.study.statistics import Array, Interval, QueryBootstrap, System, contrast, per_query

Key = TypeVar("Key", bound=Hashable)
FACTORS: tuple[Factor, ...] = get_args(Factor)
PARTS: tuple[Factor, ...] = ("captions", "pictures", "interaction")
"""What the total is the sum of."""
WEIGHTS: Mapping[Factor, Mapping[Cell, int]] = {
    "captions": {"captions": 1, "source": -1},
    "pictures": {"pictures": 1, "source": -1},
    "interaction": {"both": 1, "captions": -1, "pictures": -1, "source": 1},
    "total": {"both": 1, "source": -1},
}
"""Weights of the four cells in every effect."""
WORDS: Mapping[Factor, str] = {
    "captions": "other captions",
    "pictures": "other pictures",
    "interaction": "their interaction",
    "total": "both together",
}
"""What each effect is called in a sentence and on the page."""
CSV_COLUMNS = (
    "condition", "source", "variant", "minus", "direction", "effect", "estimate", "low", "high", "p_value",
    "adjusted_p", "shown", "standard_error", "seeds", "videos", "paired",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scenes:
    """Values per independent video: (S, G) whose mean over G is the metric, and (G,) ids."""

    names: tuple[str, ...]
    units: Array


def by_scene(values: Array, owners: NDArray[np.int_], ids: Sequence[str]) -> Scenes:
    """Sum up values (S, Q) of queries per video, sorted by the videos' ids; ``owners`` (Q,) are places in ``ids``."""
    places, group, sizes = np.unique(owners, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(group, row, len(places)) for row in values])
    mean = values.mean()
    # Captions per video may differ: the mean over queries is a ratio of sums, here linearised.
    units = mean + (sums - mean * sizes) * (len(places) / values.shape[1])
    names = [ids[int(place)] for place in places]
    order = sorted(range(len(names)), key=names.__getitem__)
    return Scenes(tuple(names[place] for place in order), units[:, order])


def resample(tables: Mapping[Key, Scenes], resamples: int) -> dict[Key, System]:
    """Resampled values of all tables; those that show the same scenes are resampled together."""
    systems: dict[Key, System] = {}
    for number, names in enumerate(dict.fromkeys(one.names for one in tables.values())):
        bootstrap = QueryBootstrap(len(names), resamples, number)
        same = {key: (one.units, True) for key, one in tables.items() if one.names == names}
        systems |= bootstrap.systems(same)
    return systems


Model = dict[Cell, System]  # one model's values on the four cells


def effects_of(model: Model, minus: Model | None = None) -> dict[Factor, Interval]:
    """The intervals of all effects, of one model's values on the four cells; of two, those of the differences."""
    sides = [(1, model)] if minus is None else [(1, model), (-1, minus)]
    return {
        factor: contrast(
            [(sign, float(sign * weight), side[cell]) for sign, side in sides for cell, weight in weights.items()]
        )
        for factor, weights in WEIGHTS.items()
    }


class _Key(NamedTuple):
    source: str
    variant: str
    minus: str | None


def find_decompositions(study: StudyConfig, cells: Sequence[StudyCell], finished: Finished) -> list[Decomposition]:
    """Every decomposition that finished cells allow, in each condition and direction."""
    found: list[Decomposition] = []
    comparable = select_comparable(cells, finished) if study.factors else []
    for condition in study.conditions:
        of_condition = [(cell, result) for cell, result in comparable if cell.condition == condition]
        for direction in DIRECTIONS:
            tables = {
                (source, *key): table
                for source in study.factors
                for key, table in _read_tables(study, source, of_condition, direction).items()
            }
            found += _decompose(study, condition, direction, tables)
    return found


def _read_tables(
    study: StudyConfig, source: str, finished: Finished, direction: Direction
) -> dict[tuple[str, Cell], Scenes]:
    """Values of every variant after training on a domain, by cell of the 2 × 2; of variants that have all four."""
    tests: dict[tuple[str, Cell], list[CellTest]] = {}
    domains = {domain: cell for cell, domain in cells_of(source, study.factors[source]).items()}
    for cell, result in sorted(finished, key=lambda item: item[0].seed):
        for test in result.tests:
            if cell.training == source and test.domain in domains:
                tests.setdefault((cell.variant, domains[test.domain]), []).append(test)
    whole = [name for name in study.variants if all((name, cell) in tests for cell in domains.values())]
    return {key: scenes_of(seeds, direction) for key, seeds in tests.items() if key[0] in whole}


def scenes_of(seeds: Sequence[CellTest], direction: Direction) -> Scenes:
    """R@1 per video of one model's seeds on one test set."""
    queries = seeds[0].per_query
    values = np.stack([per_query(as_ranks(getattr(one.per_query, direction)))[MAIN_METRIC] for one in seeds])
    owners = queries.owners if direction == "text_to_video" else queries.query_videos
    return by_scene(values, np.asarray(owners), queries.video_ids)


def _decompose(
    study: StudyConfig, condition: str, direction: Direction, tables: Mapping[tuple[str, str, Cell], Scenes]
) -> Iterator[Decomposition]:
    """Yield the decompositions of one condition and direction: those of variants, then those of differences."""
    systems = resample(tables, study.resamples)
    models: dict[tuple[str, str], Model] = {}
    for source, variant, cell in tables:
        models.setdefault((source, variant), {})[cell] = systems[source, variant, cell]
    for family in _families(study, models):
        intervals = {key: effects_of(model, minus) for key, (model, minus) in family.items()}
        effects = correct({(key, factor): one for key, own in intervals.items() for factor, one in own.items()})
        for key, (model, minus) in family.items():
            names = {tables[key.source, key.variant, cell].names for cell in CELLS}
            yield Decomposition(
                **key._asdict(),
                condition=condition,
                direction=direction,
                domains=cells_of(key.source, study.factors[key.source]),
                recall={cell: model[cell].mean - (minus[cell].mean if minus else 0.0) for cell in CELLS},
                effects={factor: effects[key, factor] for factor in FACTORS},
                paired=len(names) == 1,
                videos=sum(map(len, names)),
                seeds=min(intervals[key]["total"].seeds),
            )


def _families(
    study: StudyConfig, models: Mapping[tuple[str, str], Model]
) -> Iterator[dict[_Key, tuple[Model, Model | None]]]:
    """Yield what is corrected together: the variants, then the pairs of which the study asks the difference."""
    yield {_Key(source, variant, None): (model, None) for (source, variant), model in models.items()}
    yield {
        _Key(source, first, second): (models[source, first], models[source, second])
        for source in study.factors
        for first, second in study.pairs
        if (source, first) in models and (source, second) in models
    }


def decompositions_of(study: StudyResults, condition: str, *, of_pairs: bool) -> list[Decomposition]:
    """Text-to-video decompositions of one condition: of variants, or of differences between two."""
    return [
        one
        for one in study.decompositions
        if (one.condition, one.direction, one.minus is not None) == (condition, "text_to_video", of_pairs)
    ]


def describe_decompositions(study: StudyResults, condition: str) -> Iterator[str]:
    """Sentences, from the intervals alone: what the shifts do to the variants, then whom they do more to."""
    by_source: dict[str, list[Decomposition]] = {}
    for one in decompositions_of(study, condition, of_pairs=False):
        by_source.setdefault(one.source, []).append(one)
    in_condition = f" ({condition})" if len(study.conditions) > 1 else ""
    for source, of_source in by_source.items():
        for factor in PARTS:
            yield _describe_shift(f"{source}{in_condition}", factor, of_source)
    for one in decompositions_of(study, condition, of_pairs=True):
        yield _describe_difference(one, f"{one.source}{in_condition}")


def _describe_shift(training: str, factor: Factor, of_source: Sequence[Decomposition]) -> str:
    """What one part of the change is, over the variants that were trained on a domain."""
    effects = [one.effects[factor] for one in of_source]
    lower = sum(one.shown and one.estimate < 0 for one in effects)
    higher = sum(one.shown and one.estimate > 0 for one in effects)
    found = [one.estimate for one in effects]
    what = "The interaction of both shifts" if factor == "interaction" else f"{WORDS[factor].capitalize()} alone"
    return (
        f"{what}, trained on {training}: text-to-video {MAIN_METRIC} is shown lower by it for {lower} of "
        f"{len(effects)} variants, higher for {higher}; from {signed(min(found))} to {signed(max(found))} points."
    )


def _describe_difference(one: Decomposition, training: str) -> str:
    """Which of two variants the shifts take less from."""
    parts: list[str] = []
    for factor in PARTS:
        effect = one.effects[factor]
        figures = f"{signed(effect.estimate)} points ({between(effect)})"
        if not effect.shown:
            parts.append(f"{WORDS[factor]}: no difference shown, {figures}")
        else:
            better = one.variant if effect.estimate > 0 else one.minus
            parts.append(f"{WORDS[factor]}: better for {better}, {figures}")
    return f"{one.variant} minus {one.minus}, trained on {training}: {'; '.join(parts)}."


def csv_table(study: StudyResults) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    """Columns and rows of ``decomposition.csv``: one row per decomposition and effect, in both directions."""
    rows: list[dict[str, object]] = []
    for one in study.decompositions:
        shared = one.model_dump(include={*CSV_COLUMNS})
        rows += [{**shared, "effect": factor, **effect.model_dump()} for factor, effect in one.effects.items()]
    return CSV_COLUMNS, rows


@dataclass(frozen=True)
class Row:
    """A row of the page's table: R@1 where it was trained, and all effects."""

    name: str
    at_source: float
    effects: list[Effect]


@dataclass(frozen=True)
class Table:
    """What the page shows of one training domain: variants, then differences between two."""

    source: str
    domains: Mapping[Cell, str]
    note: str
    variants: list[Row]
    pairs: list[Row]


def tables_of(study: StudyResults, condition: str) -> list[Table]:
    """The page's tables of one condition, one for each domain trained on."""
    everything = [decompositions_of(study, condition, of_pairs=of_pairs) for of_pairs in (False, True)]
    sources = dict.fromkeys(one.source for one in everything[0])
    tables = []
    for source in sources:
        variants, pairs = ([one for one in part if one.source == source] for part in everything)
        tables.append(
            Table(source, variants[0].domains, _note(variants[0]), list(map(_row, variants)), list(map(_row, pairs)))
        )
    return tables


def _row(one: Decomposition) -> Row:
    name = f"{one.variant} − {one.minus}" if one.minus else one.variant
    return Row(name, one.recall["source"], [one.effects[factor] for factor in FACTORS])


def _note(one: Decomposition) -> str:
    """What the intervals cover."""
    scenes = f"{one.videos:,} scenes that all four test sets show" if one.paired else f"{one.videos:,} videos, unpaired"
    if one.seeds == 1:
        return f"Over {scenes}, of one training: how another seed would have fared is not in the intervals."
    return f"Over {scenes}, and {one.seeds} seeds as a random effect (Student's t)."
