"""The plan of a sweep, from its configuration and its directory alone: checked, and described."""

from typing import Any

from glscl.errors import UserError
from glscl.options.differences import differing_keys
from glscl.runs.build import build_pretraining
from glscl.runs.sets import are_built, locate_sets, sets_of_runs
from glscl.system import storage
from glscl.training.config import RunConfig
from glscl.training.driver.preflight import note_on_loss
from tune.objective import build_run_on_all, make_setup, training_folds, trials_folder
from tune.options import SweepConfig
from tune.space import check_space
from tune.trials import read_trials

CONFIG = "sweep.json"
FREE_KEYS = ("name", "storage", "label", "concurrent", "confirm_seeds", "keep_models")
"""Keys in which a continued sweep may differ from the one that began."""


def plan_sweep(sweep: SweepConfig) -> RunConfig:
    """Check what needs no data and no cluster; starts nothing. Returns a trial's training without the searched values.

    A `UserError` names what is wrong, where, and the option to change.
    """
    build_pretraining(sweep, make=False)
    default = build_run_on_all(sweep, sets_of_runs(sweep, locate_sets(sweep)), trials_folder(sweep), "default", {})
    check_space(sweep.searched, default)
    saved = storage.join(sweep.directory, CONFIG)
    if not storage.exists(saved):
        if sweep.confirm_seeds == 1:  # sweeps that were begun before this was refused go on
            raise UserError(
                "confirm_seeds: of one seed each there is no interval, so the winner could never be shown to be better "
                "than the default: give 3 (2 at least), or 0 to leave the comparison out"
            )
    elif different := differing_keys(storage.read_json(saved), identifying_values(sweep), ()):
        raise UserError(
            f"{sweep.directory} holds a sweep of another configuration: {'; '.join(different[:5])}. Choose "
            f"another --name, or restore these values"
        )
    return default


def describe(sweep: SweepConfig, default: RunConfig) -> dict[str, str]:
    """Describe the sweep for the start-up panel."""
    training = default.training
    trainings = len(training_folds(sweep))
    ended = sum(trial.state != "running" for trial in read_trials(sweep))
    sets = sets_of_runs(sweep, locate_sets(sweep))
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
    if are_built([uri for domain in sets.values() for uri in domain.train]):
        steps = make_setup(sweep, sets).steps
        most = steps * trainings * sweep.trials
        facts["budget"] = (
            f"{steps} steps a training, at most {most:,} in all; the confirmation adds "
            f"{2 * sweep.confirm_seeds * trainings} trainings"
        )
    else:
        facts["budget"] = f"{training.max_steps or f'{training.epochs} epochs'} a training; its data are not made yet"
    return facts


def identifying_values(sweep: SweepConfig) -> dict[str, Any]:
    """Return the values in which a continued sweep must be the one that began, as ``sweep.json`` holds them."""
    return {key: value for key, value in sweep.model_dump(mode="json").items() if key not in FREE_KEYS}
