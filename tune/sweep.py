"""The driver of a sweep: data, towers, the search itself, the winner, its comparison with the default, the report."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from glscl.data import apart
from glscl.errors import UserError
from glscl.evaluation.saved import FOLDER
from glscl.study.cell import remove_checkpoints
from glscl.study.grid import Sets, domain_of, named_sets, shard_sets
from glscl.study.run import pretrain, room_for
from glscl.system import storage
from glscl.system.nodes import alive_nodes, check_resources
from glscl.system.ownership import Owner
from glscl.training.config import RunConfig, to_yaml
from glscl.training.driver.machines import with_machines
from glscl.training.driver.outputs import status_on_failure, write_status
from glscl.training.driver.preflight import preflight
from tune.analysis import analyse
from tune.confirm import confirm, read_confirmation, train_on_all
from tune.live import SEARCH, Watch
from tune.objective import ALL, folds, run_on, runs, trials_folder
from tune.options import SweepConfig
from tune.plan import CONFIG, identity, make_setup, plan
from tune.trial import RESULT, Setup, read_trial, run_directories, run_trial, write_trial
from tune.trials import Trial, best_of, read_trials, write_trials

BEST = "best.yaml"
RESULTS = "results.json"
TRIALS_CSV = "trials.csv"
REPORT = "report.html"

_DRIVER_BYTES = 512 * 2**20
_RETRIES = 2
_BACK_S = 120.0


def places(sweep: SweepConfig, default: RunConfig) -> int:
    """Trials that fit on the cluster at once; Ray must be running.

    Raises:
        UserError: not even one does.
    """
    training, trainings = with_machines(default, alive_nodes, alone=False).training, len(folds(sweep))
    check_resources(training.most_workers * trainings, training.cpus, training.on_gpu, training.wait_for_nodes_s)
    found = room_for(training) // trainings
    if not found:
        raise UserError(
            f"a trial needs {trainings} x {training.most_workers} workers of {training.cpus:g} CPUs"
            f"{' and a GPU' if training.on_gpu else ''} at once, and the nodes hold {room_for(training)} such "
            f"groups of {training.most_workers}: lower training.num_workers or training.cpus_per_worker, or add nodes"
        )
    return min(found, max(1, sweep.concurrent or found))


def run_sweep(sweep: SweepConfig, owner: Owner) -> str:
    """Do what is not finished, and write the report; Ray must be running. ``status.json`` follows what happens.

    Args:
        sweep: the sweep.
        owner: of its directory.

    Returns:
        the verdict.

    Raises:
        UserError: bad input, or no trial could be finished.
    """
    default = plan(sweep)
    at_once = places(sweep, default)
    write_status(sweep.directory, state="running", verdict="")
    with status_on_failure(owner.fence):
        setup = prepare(sweep)
        best = search(setup, at_once, owner)
        write_best(setup, best, owner)
        confirm(setup, best.values, owner)
        owner.fence.check()
        verdict = report(sweep)
    write_status(sweep.directory, state="finished", verdict=verdict)
    return verdict


def prepare(sweep: SweepConfig) -> Setup:
    """Make what is to be made (toy sets, towers) and check what can be checked before the first trial.

    Raises:
        UserError: naming what is wrong, where, and the knob.
    """
    storage.write_json(storage.join(sweep.directory, CONFIG), identity(sweep))
    sets = shard_sets(sweep, make=True)
    check_held_out(sweep, sets)
    pretrain(sweep)
    for fold, config in runs(sweep, sets, trials_folder(sweep), {}, sweep.seed).items():
        try:
            preflight(with_machines(config, alive_nodes, alone=False))
        except UserError as error:
            raise UserError(f"{fold}: {error}") from None
    return make_setup(sweep, sets)


def check_held_out(sweep: SweepConfig, sets: Mapping[str, Sets]) -> None:
    """See that trials are scored on held-out parts of the training domains, and on nothing that is tested on.

    Raises:
        UserError: naming the shard set.
    """
    trained, held_out, tested = named_sets(sets)
    for note in apart.check_held_out(held_out, trained, tested):
        _say(note)
    for own in held_out:
        name = domain_of(own)
        if own.manifest.domain != name:
            raise UserError(
                f"{own} says that its domain is {own.manifest.domain}; name the domain so in the sweep, or build the "
                f"shards with --domain {name}"
            )


def search(setup: Setup, at_once: int, owner: Owner) -> Trial:
    """Let Ray Tune try values until all trials have ended; goes on where an interruption has left it.

    Args:
        setup: from `prepare`.
        at_once: trials side by side.
        owner: of the sweep's directory.

    Returns:
        the winner.

    Raises:
        UserError: no trial finished.
    """
    import ray
    from ray import tune
    from ray.tune import PlacementGroupFactory

    sweep = setup.sweep
    known = read_trials(sweep)
    best = best_of(known)
    if best is not None and len(known) >= sweep.trials and all(t.state in ("finished", "stopped") for t in known):
        return best
    for trial in known:  # what failed is tried again
        if trial.state == "failed":
            storage.remove(storage.join(trials_folder(sweep), trial.name, RESULT))
    before = ray.available_resources()
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # what Tune prints of itself
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    ended = [trial for trial in known if trial.state in ("finished", "stopped")]

    def keep(trials: list[Trial], last: bool = False) -> None:
        owner.fence.check()
        _keep(sweep, trials, last)

    watch = Watch(setup, ended, keep, owner.check)
    searcher, space = _searcher(sweep, at_once)
    path, filesystem = storage.ray_storage(sweep.directory)

    def do_trial(values: dict[str, Any]) -> None:
        run_trial(setup, tune.get_context().get_trial_id(), values, tune.report)

    _say(f"{sweep.trials} trials, {at_once} at once, {setup.steps} steps each; {len(ended)} of them ended before")
    try:
        analysis = tune.run(
            do_trial,
            name=SEARCH,
            config=space,
            num_samples=sweep.trials,
            search_alg=searcher,
            scheduler=_scheduler(setup, ended),
            resources_per_trial=PlacementGroupFactory([{"memory": _DRIVER_BYTES}]),
            storage_path=path,
            storage_filesystem=filesystem,
            resume="AUTO+ERRORED" if _was_begun(sweep) else None,
            max_failures=_RETRIES,
            raise_on_failed_trial=False,
            verbose=0,
            callbacks=[watch],
        )
    finally:
        watch.close()
    trials = watch.trials(analysis.trials)
    if any(item.state == "running" for item in trials):
        raise KeyboardInterrupt  # Ray Tune ends its loop by itself then, and has saved where it was
    wait_for_resources(before)
    keep(trials, last=True)
    best = best_of(trials)
    if best is None:
        reasons = "; ".join(dict.fromkeys(item.error for item in trials if item.error))
        raise UserError(f"{sweep.directory}: none of {len(trials)} trials finished: {reasons or 'all were stopped'}")
    return best


def _was_begun(sweep: SweepConfig) -> bool:
    """Whether Ray Tune has left a state to go on from."""
    names = storage.list_names(storage.join(sweep.directory, SEARCH))
    return any(name.startswith("experiment_state") for name in names)


def _searcher(sweep: SweepConfig, at_once: int) -> tuple[Any, dict[str, Any]]:
    """The searcher, and the space for those that are not told it themselves."""
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


def _scheduler(setup: Setup, ended: Sequence[Trial]) -> Any:
    """What stops trials, told how the trials went that ended before an interruption (Ray Tune does not keep it)."""
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
        told = _Told(trial.name)
        scheduler.on_trial_add(None, told)
        for score in trial.history:
            scheduler.on_trial_result(None, told, score.row())
    return scheduler


class _Told:
    """Stands for a trial of an earlier start of the driver, of which schedulers look at the name."""

    def __init__(self, name: str) -> None:
        self.trial_id = name


def _keep(sweep: SweepConfig, trials: list[Trial], last: bool = False) -> None:
    """Write what is known, and delete what no longer serves: losers' checkpoints and models.

    What was stopped is marked so in its folder, because Ray Tune may be interrupted before it writes it down.

    The trial that ended just now is left alone until another ends: its workers may still be writing.
    """
    fresh = {trial.name for trial in trials} - {trial.name for trial in read_trials(sweep) if trial.state != "running"}
    for trial in trials:
        if trial.name in fresh and trial.state == "stopped" and read_trial(sweep, trial.name) is None:
            write_trial(sweep, trial.name, trial.values, trial.history, None, "")
    write_trials(sweep, trials)
    best = best_of(trials)
    for trial in trials:
        if trial.state not in ("stopped", "failed", "finished") or (trial.name in fresh and not last):
            continue
        for directory in run_directories(sweep, trial.name):
            remove_checkpoints(directory)
            if trial is not best and not sweep.keep_models:
                storage.tidy(storage.join(directory, FOLDER))
    if last:  # trials that Ray Tune had begun and not yet written down when it was interrupted
        for name in set(storage.list_names(trials_folder(sweep))) - {trial.name for trial in trials}:
            storage.tidy(storage.join(trials_folder(sweep), name))


def wait_for_resources(before: Mapping[str, float]) -> None:
    """Wait until what stopped trials held is back, and say so, or that it is not.

    Args:
        before: what was available before the search.
    """
    import ray
    from ray.util import placement_group_table

    deadline = time.monotonic() + _BACK_S
    while True:
        left = sum(group["state"] not in ("REMOVED",) for group in placement_group_table().values())
        now = ray.available_resources()
        missing = {k: v for k in ("CPU", "GPU") if (v := before.get(k, 0.0) - now.get(k, 0.0)) > 1e-6}
        if not missing and not left:
            _say(f"resources are back: {now.get('CPU', 0):g} CPUs free, no placement group left")
            return
        if time.monotonic() > deadline:
            _say(f"after {_BACK_S:.0f} s resources are not back: {missing}, {left} placement groups left")
            return
        time.sleep(0.5)


def write_best(setup: Setup, best: Trial, owner: Owner) -> None:
    """The winner as a configuration file for `glscl train`, and its model."""
    sweep = setup.sweep
    assert best.last is not None
    config = best_run(setup, best.values)
    scores = ", ".join(f"{name} {score:.2f}" for name, score in best.last.domains.items())
    lines = [
        f"Winner of the sweep {sweep.name}: trial {best.name}, {sweep.objective.replace('_', ' ')} of {sweep.metric} "
        f"on held-out parts {best.last.objective:.2f} at step {best.last.step} ({scores})",
        *(f"  {key} = {value}" for key, value in best.values.items()),
        f"Start:   glscl train --config {storage.join(sweep.directory, BEST)}",
    ]
    text = "".join(f"# {line}\n" for line in lines) + to_yaml(config)
    storage.write_bytes(storage.join(sweep.directory, BEST), text.encode())
    if sweep.objective == "leave_one_domain_out":
        source = train_on_all(setup, best.values, owner)
    else:
        source = storage.join(trials_folder(sweep), best.name, ALL)
    for name in storage.list_names(storage.join(source, FOLDER)):
        data = storage.read_bytes(storage.join(source, FOLDER, name))
        storage.write_bytes(storage.join(sweep.directory, FOLDER, name), data)


def best_run(setup: Setup, values: Mapping[str, Any]) -> RunConfig:
    """The winner's values on all domains, as a run beside the sweep's directory."""
    sweep, every = setup.sweep, tuple(setup.sweep.domains)
    return run_on(
        sweep, setup.sets, storage.resolve(sweep.storage), f"{sweep.name}-best", values, sweep.seed, every, every
    )


def report(sweep: SweepConfig) -> str:
    """Write what the ended trials allow: ``results.json``, ``trials.csv`` and ``report.html``.

    Returns:
        the verdict.

    Raises:
        UserError: no trial has ended.
    """
    trials = read_trials(sweep)
    if not any(trial.state in ("finished", "stopped") for trial in trials):
        raise UserError(f"{sweep.directory}: no trial has ended; there is nothing to report")
    setup = make_setup(sweep, shard_sets(sweep, make=False))
    results = analyse(setup, trials, read_confirmation(sweep), _text(sweep, BEST))
    storage.write_json(storage.join(sweep.directory, RESULTS), results)
    storage.write_bytes(storage.join(sweep.directory, TRIALS_CSV), trials_csv(sweep, trials).encode())
    from tune.report import write_sweep_report

    write_sweep_report(results, storage.join(sweep.directory, REPORT))
    for sentence in results["claims"]:
        print(sentence)
    return f"{results['verdict']} report={storage.join(sweep.directory, REPORT)}"


def trials_csv(sweep: SweepConfig, trials: Sequence[Trial]) -> str:
    """One row per trial."""
    import csv
    import io

    out = io.StringIO()
    keys, domains = list(sweep.searched), list(sweep.domains)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "state", "step", "objective", *domains, *keys, "cost", "seconds", "error"])
    for trial in trials:
        last = trial.last
        scores = [last.step, last.objective, *(last.domains[n] for n in domains)] if last else [""] * (2 + len(domains))
        values = [trial.values[key] for key in keys]
        writer.writerow([trial.name, trial.state, *scores, *values, trial.cost, trial.seconds, trial.error])
    return out.getvalue()


def _text(sweep: SweepConfig, name: str) -> str:
    where = storage.join(sweep.directory, name)
    return storage.read_bytes(where).decode() if storage.exists(where) else ""


def _say(text: str) -> None:
    print(f"sweep: {text}", flush=True)
