"""The setup of a sweep: its shard sets and how long trainings are, which every trial is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.runs.sets import Sets
from glscl.training.schedule import RunLength, make_plan
from tune.objective import build_runs, trials_folder
from tune.options import SweepConfig


@dataclass(frozen=True, slots=True)
class Setup:
    """What every trial of a sweep is given.

    Attributes:
        sweep: the sweep.
        sets: shard sets of its domains.
        steps: length of a training.
        first: step of a training's first scoring.
    """

    sweep: SweepConfig
    sets: Mapping[str, Sets]
    steps: int
    first: int


def make_setup(sweep: SweepConfig, sets: Mapping[str, Sets]) -> Setup:
    """Open the training sets and count steps.

    Raises:
        UserError: trainings of a trial differ in length, or are over before the schedulers may act.
    """
    horizons = []
    for config in build_runs(sweep, sets, trials_folder(sweep), {}, sweep.seed).values():
        opened = [open_shard_set(uri) for uri in config.data.train]
        horizons.append(RunLength.of(config, make_plan(config, opened)))
    for what, counts, knob in (
        ("length", {h.total for h in horizons}, "run.training.max_steps to what all of them reach"),
        ("the steps of an epoch", {min(h.evaluate_every, h.total) for h in horizons}, "domains to equally many pairs"),
    ):
        if len(counts) > 1:
            raise UserError(
                f"the trainings that leave one domain out differ in {what} ({sorted(counts)} steps), and are not "
                f"scored at the same steps: set {knob}"
            )
    total, first = horizons[0].total, min(horizons[0].evaluate_every, horizons[0].total)
    if sweep.scheduler != "none" and max(first, sweep.grace_steps or 0) >= total:
        raise UserError(
            f"scheduler: nothing can be stopped early when the first scoring is at step {first} of {total} "
            f"(grace_steps {sweep.grace_steps}): train for more epochs, or set scheduler to none"
        )
    return Setup(sweep, sets, total, first)
