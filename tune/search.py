"""The search: Ray Tune tries values, as many trials at once as fit on the cluster, and resumes when interrupted."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from glscl.errors import UserError
from glscl.evaluation.saved import FOLDER
from glscl.runs.execution import remove_checkpoints
from glscl.runs.pool import concurrent_runs
from glscl.system import storage
from glscl.system.nodes import alive_nodes, check_resources
from glscl.system.ownership import Owner
from glscl.training.config import RunConfig
from glscl.training.driver.machines import with_machines
from tune.live import SEARCH, SweepCallback
from tune.objective import Setup, run_directories, training_folds, trials_folder
from tune.options import SweepConfig
from tune.trial import run_trial
from tune.trials import RECORD, Trial, best_of, read_record, read_trials, write_record, write_trials

if TYPE_CHECKING:
    from ray.tune import ExperimentAnalysis
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import SearchAlgorithm, Searcher

_DRIVER_BYTES = 512 * 2**20
_RETRIES = 2
_PATIENCE_S = 120.0


def concurrent_trials(sweep: SweepConfig, default: RunConfig) -> int:
    """Trials that fit on the cluster at once; Ray must be running. ``default`` is a training without searched values.

    Raises:
        UserError: not even one fits.
    """
    training, trainings = with_machines(default, alive_nodes, alone=False).training, len(training_folds(sweep))
    check_resources(training.most_workers * trainings, training.cpus, training.on_gpu, training.wait_for_nodes_s)
    groups = concurrent_runs(training)
    fitting = groups // trainings
    if not fitting:
        raise UserError(
            f"a trial needs {trainings} x {training.most_workers} workers of {training.cpus:g} CPUs"
            f"{' and a GPU' if training.on_gpu else ''} at once, and the nodes hold {groups} such "
            f"groups of {training.most_workers}: lower training.num_workers or training.cpus_per_worker, or add nodes"
        )
    return min(fitting, max(1, sweep.concurrent or fitting))


def search(setup: Setup, at_once: int, owner: Owner) -> Trial:
    """Let Ray Tune try values, ``at_once`` trials side by side, until all have ended; returns the winner.

    Ray must be running.

    Raises:
        UserError: no trial finished.
    """
    import ray

    sweep = setup.sweep
    known = read_trials(sweep)
    best = best_of(known)
    if best is not None and len(known) >= sweep.trials and all(trial.has_ended for trial in known):
        return best
    _forget_failures(sweep, known)
    before = ray.available_resources()
    ended = [trial for trial in known if trial.has_ended]

    def keep(trials: list[Trial], last: bool = False) -> None:
        owner.fence.check()
        keep_trials(sweep, trials, last)

    callback = SweepCallback(setup, ended, keep, owner.check)
    print(
        f"sweep: {sweep.trials} trials, {at_once} at once, {setup.steps} steps each; {len(ended)} of them ended before",
        flush=True,
    )
    try:
        analysis = _run_tune(setup, at_once, ended, callback)
    finally:
        callback.close()
    trials = callback.trials(analysis.trials)
    if any(trial.state == "running" for trial in trials):
        raise KeyboardInterrupt  # Ray Tune ends its loop by itself then, and has saved where it was
    _wait_for_resources(before)
    keep(trials, last=True)
    best = best_of(trials)
    if best is None:
        reasons = "; ".join(dict.fromkeys(trial.error for trial in trials if trial.error))
        raise UserError(f"{sweep.directory}: none of {len(trials)} trials finished: {reasons or 'all were stopped'}")
    return best


def _forget_failures(sweep: SweepConfig, trials: Sequence[Trial]) -> None:
    """Remove the records of failed trials, which are tried again."""
    for trial in trials:
        if trial.state == "failed":
            storage.remove(storage.join(trials_folder(sweep), trial.name, RECORD))


def _wait_for_resources(before: Mapping[str, float]) -> None:
    """Wait until what was available before the search is so again, and print so, or that it is not."""
    import ray
    from ray.util import placement_group_table

    deadline = time.monotonic() + _PATIENCE_S
    while True:
        groups = sum(group["state"] != "REMOVED" for group in placement_group_table().values())
        now = ray.available_resources()
        missing = {k: v for k in ("CPU", "GPU") if (v := before.get(k, 0.0) - now.get(k, 0.0)) > 1e-6}
        if not missing and not groups:
            print(f"sweep: resources are back: {now.get('CPU', 0):g} CPUs free, no placement group left", flush=True)
            return
        if time.monotonic() > deadline:
            print(
                f"sweep: after {_PATIENCE_S:.0f} s resources are not back: {missing}, {groups} placement groups left",
                flush=True,
            )
            return
        time.sleep(0.5)


def _run_tune(setup: Setup, at_once: int, ended: Sequence[Trial], callback: SweepCallback) -> ExperimentAnalysis:
    """Start Ray Tune, or restore it from its state in the sweep's directory.

    That state holds the names `do_trial` and `Limiter`: they must stay what they are.
    """
    from ray import tune
    from ray.tune import PlacementGroupFactory

    sweep = setup.sweep
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # what Tune prints of itself
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    searcher, space = build_searcher(sweep, at_once)
    left = storage.list_names(storage.join(sweep.directory, SEARCH))
    begun = any(name.startswith("experiment_state") for name in left)
    path, filesystem = storage.ray_storage(sweep.directory)

    def do_trial(values: dict[str, Any]) -> None:
        run_trial(setup, tune.get_context().get_trial_id(), values, tune.report)

    return tune.run(
        do_trial,
        name=SEARCH,
        config=space,
        num_samples=sweep.trials,
        search_alg=searcher,
        scheduler=build_scheduler(setup, ended),
        resources_per_trial=PlacementGroupFactory([{"memory": _DRIVER_BYTES}]),
        storage_path=path,
        storage_filesystem=filesystem,
        resume="AUTO+ERRORED" if begun else None,
        max_failures=_RETRIES,
        raise_on_failed_trial=False,
        verbose=0,
        callbacks=[callback],
    )


def build_searcher(sweep: SweepConfig, at_once: int) -> tuple[Searcher | SearchAlgorithm, dict[str, Any]]:
    """Build the searcher, and the space for one that is not given it itself."""
    if sweep.searcher == "random":
        from ray.tune.search import BasicVariantGenerator

        space = {key: draw.domain() for key, draw in sweep.searched.items()}
        return BasicVariantGenerator(max_concurrent=at_once, random_state=sweep.seed), space
    import optuna
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    class Limiter(ConcurrencyLimiter):
        """Keeps to the cluster as it is now when the state of an earlier start is restored."""

        def set_state(self, state: dict[str, Any]) -> None:
            super().set_state({**state, "max_concurrent": at_once})

    both = sweep.cost != "none"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Of trials that go on after a restart; only Optuna's own pruners look at these values, and none is used.
    warnings.filterwarnings("ignore", message="The reported value is ignored")
    tpe = OptunaSearch(
        {key: draw.distribution() for key, draw in sweep.searched.items()},
        metric=["objective", "cost"] if both else "objective",
        mode=["max", "min"] if both else "max",
        seed=sweep.seed,
    )
    return Limiter(tpe, max_concurrent=at_once), {}


def build_scheduler(setup: Setup, ended: Sequence[Trial]) -> TrialScheduler:
    """Build what stops trials, and replay the trials that ended before an interruption: Ray Tune keeps no scheduler."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    sweep = setup.sweep
    if sweep.scheduler == "none":
        return FIFOScheduler()
    metric: dict[str, Any] = {"time_attr": "step", "metric": "objective", "mode": "max"}
    grace = sweep.grace_steps or setup.first
    if sweep.scheduler == "asha":
        scheduler = ASHAScheduler(
            max_t=setup.steps, grace_period=grace, reduction_factor=sweep.reduction_factor, **metric
        )
    else:
        # An infinite time slice: never pause a trial that there is nothing to compare with yet.
        scheduler = MedianStoppingRule(grace_period=grace, min_time_slice=float("inf"), **metric)
    for trial in ended:
        earlier = EarlierTrial(trial.name)
        scheduler.on_trial_add(None, earlier)
        for score in trial.history:
            scheduler.on_trial_result(None, earlier, asdict(score))
    return scheduler


class EarlierTrial:
    """A trial of an earlier start of the driver, of which schedulers look at the name only."""

    def __init__(self, name: str) -> None:
        self.trial_id = name


def keep_trials(sweep: SweepConfig, trials: list[Trial], last: bool = False) -> None:
    """Write what is known, and delete what no longer serves: losers' checkpoints and models.

    What was stopped is marked so in its folder, because Ray Tune may be interrupted before it writes it down. The trial
    that ended just now is left alone until another ends, or until none runs any more (``last``): its workers may still
    be writing.
    """
    names = {trial.name for trial in trials}
    fresh = names - {trial.name for trial in read_trials(sweep) if trial.state != "running"}
    _record_stopped(sweep, [trial for trial in trials if trial.name in fresh])
    write_trials(sweep, trials)
    best = best_of(trials)
    for trial in trials:
        if trial.state != "running" and (last or trial.name not in fresh):
            _tidy_runs(sweep, trial, keep_models=trial is best or sweep.keep_models)
    if last:
        _remove_unlisted(sweep, names)


def _record_stopped(sweep: SweepConfig, trials: Sequence[Trial]) -> None:
    """Mark in their folders the trials that the scheduler stopped."""
    for trial in trials:
        if trial.state == "stopped" and read_record(sweep, trial.name) is None:
            write_record(sweep, trial.name, trial.values, trial.history, None, "")


def _remove_unlisted(sweep: SweepConfig, names: Set[str]) -> None:
    """Delete trials that Ray Tune had begun and not yet written down when it was interrupted."""
    for name in set(storage.list_names(trials_folder(sweep))) - names:
        storage.tidy(storage.join(trials_folder(sweep), name))


def _tidy_runs(sweep: SweepConfig, trial: Trial, *, keep_models: bool) -> None:
    """Delete the checkpoints of a trial's trainings, and their models unless those are kept."""
    for directory in run_directories(sweep, trial.name):
        remove_checkpoints(directory)
        if not keep_models:
            storage.tidy(storage.join(directory, FOLDER))
