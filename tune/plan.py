"""What a sweep is going to do, from its configuration and its directory alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glscl.data.shards import MANIFEST, open_shard_set
from glscl.errors import UserError
from glscl.options.differences import differing_keys
from glscl.study.grid import Sets, pretraining_run, shard_sets
from glscl.system import storage
from glscl.training.config import RunConfig
from glscl.training.driver.preflight import note_on_loss
from glscl.training.schedule import RunLength, make_plan
from tune.objective import folds, run_on, runs, trials_folder
from tune.options import SweepConfig
from tune.space import check_space
from tune.trial import Setup
from tune.trials import read_trials

CONFIG = "sweep.json"
FREE_KEYS = ("name", "storage", "label", "concurrent", "confirm_seeds", "keep_models")
"""Keys in which a continued sweep may differ from the one that began."""


def plan(sweep: SweepConfig) -> RunConfig:
    """Check what can be checked without data and without a cluster; makes and starts nothing.

    Returns:
        the default configuration: a trial's training without the searched values.

    Raises:
        UserError: naming what is wrong, where, and the knob.
    """
    pretraining_run(sweep, make=False)
    sets = shard_sets(sweep, make=False)
    default = _default(sweep, sets)
    check_space(sweep.searched, default)
    saved = storage.join(sweep.directory, CONFIG)
    if not storage.exists(saved):
        if sweep.confirm_seeds == 1:  # sweeps that were begun before this was refused go on
            raise UserError(
                "confirm_seeds: of one seed each there is no interval, so the winner could never be shown to be better "
                "than the default: give 3 (2 at least), or 0 to leave the comparison out"
            )
    else:
        different = differing_keys(storage.read_json(saved), identity(sweep), ())
        if different:
            raise UserError(
                f"{sweep.directory} holds a sweep of another configuration: {'; '.join(different[:5])}. Choose "
                f"another --name, or restore these values"
            )
    return default


def describe(sweep: SweepConfig, default: RunConfig) -> dict[str, str]:
    """The sweep in words, for the start-up panel."""
    training = default.training
    trainings = len(folds(sweep))
    known = read_trials(sweep)
    ended = sum(trial.state != "running" for trial in known)
    sets = shard_sets(sweep, make=False)
    made = all(storage.exists(storage.join(uri, MANIFEST)) for own in sets.values() for uri in own.train)
    facts = {
        "sweep": f"{sweep.directory}: {sweep.label}",
        "searched": "; ".join(f"{key}: {draw.describe()}" for key, draw in sweep.searched.items()),
        "objective": f"{sweep.objective.replace('_', ' ')} of {sweep.metric} on the held-out parts of "
        + ", ".join(sweep.domains),
        "searcher": f"{sweep.searcher}, seed {sweep.seed}",
        "scheduler": sweep.scheduler,
        "trials": f"{sweep.trials}, {ended} of them ended",
        "workers per trial": f"{trainings} training(s) at once x {training.most_workers} worker(s) x "
        f"{training.cpus:g} CPU{', 1 GPU' if training.on_gpu else ''}",
    }
    if note := note_on_loss(default, tuple(sweep.domains)):
        facts["note"] = note
    if made:
        steps = make_setup(sweep, sets).steps
        most = steps * trainings * sweep.trials
        facts["budget"] = (
            f"{steps} steps a training, at most {most:,} in all; the confirmation adds "
            f"{2 * sweep.confirm_seeds * trainings} trainings"
        )
    else:
        facts["budget"] = f"{training.max_steps or f'{training.epochs} epochs'} a training; its data are not made yet"
    return facts


def _default(sweep: SweepConfig, sets: Mapping[str, Sets]) -> RunConfig:
    every = tuple(sweep.domains)
    return run_on(sweep, sets, trials_folder(sweep), "default", {}, sweep.seed, every, every)


def make_setup(sweep: SweepConfig, sets: Mapping[str, Sets]) -> Setup:
    """Open the training sets and count steps.

    Raises:
        UserError: trainings of a trial differ in length, or are over before the schedulers may act.
    """
    horizons = []
    for config in runs(sweep, sets, trials_folder(sweep), {}, sweep.seed).values():
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


def identity(sweep: SweepConfig) -> dict[str, Any]:
    return {k: v for k, v in sweep.model_dump(mode="json").items() if k not in FREE_KEYS}
