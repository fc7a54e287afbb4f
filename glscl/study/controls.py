"""The controls of a study: what is left of every cell's recall when its frames come in another order, or one alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from glscl.data.frame_changes import FrameOrder
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, Direction
from glscl.reporting.formats import signed
from glscl.runs.cell import Cell, ControlTest, read_controls
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished
from glscl.study.results import Control, Estimate, StudyResults
from glscl.study.retested import (
    Retested,
    collect_retested,
    estimate_change,
    resample_changes,
    shown_higher,
    shown_lower,
)
from glscl.study.statistics import over_seeds

WORDS: Mapping[str, str] = {
    "single": "The middle frame alone",
    "shuffled": "Shuffled frames",
    "reversed": "Reversed frames",
}
"""What each order is called in a sentence and on the page."""


def find_controls(study: StudyConfig, cells: Sequence[Cell], finished: Finished) -> list[Control]:
    """Every control of the cells that are reported, where all their seeds have it."""
    if not study.controls:
        return []
    retested: list[Retested[ControlTest, FrameOrder]] = collect_retested(
        cells, finished, read_controls, lambda test: test.frames, "controls"
    )
    figures: dict[tuple[Retested[ControlTest, FrameOrder], FrameOrder], dict[Direction, tuple[Estimate, Estimate]]] = {}
    for direction in DIRECTIONS:
        for entry, order, bootstrap, changed in resample_changes(study, retested, study.controls, direction):
            own = figures.setdefault((entry, order), {})
            own[direction] = estimate_change(bootstrap, changed)
    return [
        Control(
            condition=entry.condition,
            variant=entry.variant,
            training=entry.training,
            test=entry.test,
            relation=entry.relation,
            frames=order,
            recall={direction: recall for direction, (recall, _) in own.items()},
            change={direction: change for direction, (_, change) in own.items()},
            hubness=over_seeds([one.hubness_skewness for one in entry.of(order)]).mean,
        )
        for (entry, order), own in figures.items()
    ]


def describe_controls(study: StudyResults, condition: str) -> Iterator[str]:
    """Sentences: for each control, test set and direction of training, in how many variants recall changes."""
    direction: Direction = "text_to_video"
    groups: dict[tuple[str, str, str], list[Estimate]] = {}
    for control in study.controls:
        if control.condition == condition and control.relation in ("in-domain", "cross-domain"):
            key = (control.frames, control.test, control.relation)
            groups.setdefault(key, []).append(control.change[direction])
    for (frames, test, relation), changes in groups.items():
        lower, higher = sum(map(shown_lower, changes)), sum(map(shown_higher, changes))
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
