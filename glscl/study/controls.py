"""The controls of a study: what is left of every cell's recall when its frames come in another order, or one alone.

The same trained model is tested twice on the same queries, so the change is taken query by query and seed by seed: the
interval is that of a mean, with seeds as a random effect (`glscl.study.statistics`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from glscl.data.frame_changes import FrameOrder
from glscl.errors import UserError
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, METRICS, Direction
from glscl.reporting.formats import signed
from glscl.runs.cell import Cell, CellTest, ControlTest, read_controls
from glscl.runs.options import ZERO_SHOT
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished, as_estimate, as_ranks, relation_of, select_comparable
from glscl.study.results import Control, Estimate, StudyResults
from glscl.study.statistics import QueryBootstrap, over_seeds, per_query

WORDS: Mapping[str, str] = {
    "single": "The middle frame alone",
    "shuffled": "Shuffled frames",
    "reversed": "Reversed frames",
}
"""What each order is called in a sentence and on the page."""
Key = tuple[str, str, str, str]  # condition, variant, training, test


@dataclass(slots=True)
class _Pair:
    """One variant after one training on one test set: its seeds' results, and the controls of each."""

    domains: tuple[str, ...]
    plain: list[CellTest] = field(default_factory=list)
    controls: list[dict[FrameOrder, ControlTest]] = field(default_factory=list)


def find_controls(study: StudyConfig, cells: Sequence[Cell], finished: Finished) -> list[Control]:
    """Every control of the cells that are reported, where all their seeds have it."""
    if not study.controls:
        return []
    pairs: dict[Key, _Pair] = {}
    for cell, result in sorted(select_comparable(cells, finished), key=lambda item: item[0].seed):
        controls = read_controls(cell.directory)
        for test in result.tests:
            pair = pairs.setdefault((cell.condition, cell.variant, cell.training, test.domain), _Pair(cell.domains))
            own = {one.frames: one for one in controls if one.domain == test.domain}
            if any(one.fingerprint != test.fingerprint for one in own.values()):
                raise UserError(
                    f"{cell.directory}: its controls are of another {test.domain} than its result; delete the cell's "
                    f"folder to have it done again"
                )
            pair.plain.append(test)
            pair.controls.append(own)
    bootstraps: dict[tuple[str, str, Direction], QueryBootstrap] = {}
    return [
        _compare(study, key, pair, order, bootstraps)
        for key, pair in pairs.items()
        for order in study.controls
        if all(order in own for own in pair.controls)
    ]


def _compare(
    study: StudyConfig,
    key: Key,
    pair: _Pair,
    order: FrameOrder,
    bootstraps: dict[tuple[str, str, Direction], QueryBootstrap],
) -> Control:
    """Resample one control; ``bootstraps`` are those made before, by condition, test set and direction."""
    condition, variant, training, test = key
    seeds = [own[order] for own in pair.controls]
    recall: dict[Direction, Estimate] = {}
    change: dict[Direction, Estimate] = {}
    for number, direction in enumerate(DIRECTIONS):
        values, before = (
            np.stack([per_query(as_ranks(getattr(one, direction)))[MAIN_METRIC] for one in tests])
            for tests in (seeds, [plain.per_query for plain in pair.plain])
        )
        place = (condition, test, direction)
        if place not in bootstraps:
            queries = pair.plain[0].per_query
            groups = queries.owners if direction == "text_to_video" else len(queries.query_videos)
            bootstraps[place] = QueryBootstrap(groups, study.resamples, number)
        bootstrap = bootstraps[place]
        trained = training != ZERO_SHOT
        systems = bootstrap.systems({"recall": (values, trained), "change": (values - before, trained)})
        bounds = METRICS[MAIN_METRIC].bounds
        recall[direction] = as_estimate(bootstrap.mean(systems["recall"], bounds), values.mean(1))
        change[direction] = as_estimate(bootstrap.mean(systems["change"]), (values - before).mean(1))
    return Control(
        condition=condition,
        variant=variant,
        training=training,
        test=test,
        relation=relation_of(training, {training: pair.domains}, test),
        frames=order,
        recall=recall,
        change=change,
        hubness=over_seeds([one.hubness_skewness for one in seeds]).mean,
    )


def describe_controls(study: StudyResults, condition: str) -> Iterator[str]:
    """Sentences: for each control, test set and direction of training, in how many variants recall changes."""
    direction: Direction = "text_to_video"
    groups: dict[tuple[str, str, str], list[Estimate]] = {}
    for control in study.controls:
        if control.condition == condition and control.relation in ("in-domain", "cross-domain"):
            key = (control.frames, control.test, control.relation)
            groups.setdefault(key, []).append(control.change[direction])
    for (frames, test, relation), changes in groups.items():
        lower = sum(one.high is not None and one.high < 0 for one in changes)
        higher = sum(one.low is not None and one.low > 0 for one in changes)
        found = [one.estimate for one in changes]
        span = f"from {signed(min(found))} to {signed(max(found))} points"
        yield (
            f"{WORDS[frames]} on {test} ({relation}): text-to-video {MAIN_METRIC} is shown lower for {lower} of "
            f"{len(changes)} models, higher for {higher}; changes {span}."
        )


@dataclass(frozen=True)
class ControlRow:
    """What the page shows of one variant after one training on one test set."""

    variant: str
    training: str
    test: str
    relation: str
    plain: Estimate | None
    controls: list[Control | None]  # in the order of `control_orders`


def control_orders(study: StudyResults) -> list[FrameOrder]:
    """The orders of frames that a study has controls of."""
    return list(dict.fromkeys(control.frames for control in study.controls))


def control_rows(study: StudyResults, condition: str) -> list[ControlRow]:
    """Rows of the page's table of controls."""
    by_cell: dict[tuple[str, str, str], dict[FrameOrder, Control]] = {}
    for control in study.controls:
        if control.condition == condition:
            by_cell.setdefault((control.test, control.training, control.variant), {})[control.frames] = control
    plain = {
        (result.test, result.training, result.variant): result.text_to_video.get(MAIN_METRIC)
        for result in study.results
        if result.condition == condition
    }
    orders = control_orders(study)
    return [
        ControlRow(
            variant=variant,
            training=training,
            test=test,
            relation=next(iter(own.values())).relation,
            plain=plain.get((test, training, variant)),
            controls=[own.get(order) for order in orders],
        )
        for (test, training, variant), own in by_cell.items()
    ]
