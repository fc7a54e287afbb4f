"""The driver of a sweep: data, towers, the search itself, the winner, its comparison with the default, the report."""

import csv
import io
from collections.abc import Mapping, Sequence

from glscl.data import apart
from glscl.errors import UserError
from glscl.runs.execution import pretrain
from glscl.runs.features import encode_sets
from glscl.runs.sets import Sets, check_domain_names, locate_sets, open_sets, sets_of_runs
from glscl.system import storage
from glscl.system.nodes import alive_nodes
from glscl.system.ownership import Fence, Owner
from glscl.training.driver.machines import with_machines
from glscl.training.driver.outputs import status_on_failure, write_status
from glscl.training.driver.preflight import preflight
from tune.analysis import analyse
from tune.objective import Setup, build_run_on_all, build_runs, make_setup, trials_folder
from tune.options import SweepConfig
from tune.plan import CONFIG, identifying_values, plan_sweep
from tune.report import render_sweep
from tune.search import concurrent_trials, search
from tune.trials import Trial, read_trials
from tune.winner import confirm, read_best, read_confirmation, write_best

RESULTS = "results.json"
TRIALS_CSV = "trials.csv"
REPORT = "report.html"


def run_sweep(sweep: SweepConfig, owner: Owner) -> str:
    """Do what is not finished, and write the report; returns the verdict. ``status.json`` follows what happens.

    Ray must be running. Raises `UserError`: bad input, or no trial could be finished.
    """
    default = plan_sweep(sweep)
    at_once = concurrent_trials(sweep, default)
    write_status(sweep.directory, state="running", verdict="")
    with status_on_failure(owner.fence):
        setup = prepare(sweep, owner.fence)
        best = search(setup, at_once, owner)
        write_best(setup, best, owner)
        confirm(setup, best.values, owner)
        owner.fence.check()
        verdict = report(sweep)
    write_status(sweep.directory, state="finished", verdict=verdict)
    return verdict


def prepare(sweep: SweepConfig, fence: Fence | None = None) -> Setup:
    """Make toy sets, towers and features, and check what can be before trials; a `UserError` says what to change."""
    storage.write_json(storage.join(sweep.directory, CONFIG), identifying_values(sweep))
    sets = locate_sets(sweep, make=True)
    check_held_out(sweep, sets)
    pretrain(sweep)
    encode_sets(sweep, sets, build_run_on_all(sweep, sets, trials_folder(sweep), "default", {}), fence)
    sets = sets_of_runs(sweep, sets)
    for fold, config in build_runs(sweep, sets, trials_folder(sweep), {}, sweep.seed).items():
        try:
            preflight(with_machines(config, alive_nodes, alone=False))
        except UserError as error:
            raise UserError(f"{fold}: {error}") from None
    return make_setup(sweep, sets)


def check_held_out(sweep: SweepConfig, sets: Mapping[str, Sets]) -> None:
    """Check that trials are scored on held-out parts of the training domains only; a `UserError` names the set."""
    opened = open_sets(sets)
    for note in apart.check_held_out(opened.held_out, opened.trained, opened.tested):
        print(f"sweep: {note}", flush=True)
    check_domain_names(opened.held_out, sweep.kind)


def report(sweep: SweepConfig) -> str:
    """Write what ended trials allow (results, CSV, page); returns the verdict. `UserError`: no trial has ended."""
    trials = read_trials(sweep)
    if not any(trial.has_ended for trial in trials):
        raise UserError(f"{sweep.directory}: no trial has ended; there is nothing to report")
    setup = make_setup(sweep, sets_of_runs(sweep, locate_sets(sweep)))
    results = analyse(setup, trials, read_confirmation(sweep), read_best(sweep))
    storage.write_json(storage.join(sweep.directory, RESULTS), results.model_dump())
    storage.write_bytes(storage.join(sweep.directory, TRIALS_CSV), trials_csv(sweep, trials).encode())
    where = storage.join(sweep.directory, REPORT)
    storage.write_bytes(where, render_sweep(results).encode())
    for sentence in results.claims:
        print(sentence)
    return f"{results.verdict} report={where}"


def trials_csv(sweep: SweepConfig, trials: Sequence[Trial]) -> str:
    """Format the trials as CSV, one row each."""
    text = io.StringIO()
    keys, domains = list(sweep.searched), list(sweep.domains)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "step", "objective", *domains, *keys, "cost", "seconds", "error"])
    for trial in trials:
        last = trial.last
        scores = [last.step, last.objective, *(last.domains[n] for n in domains)] if last else [""] * (2 + len(domains))
        values = [trial.values[key] for key in keys]
        writer.writerow([trial.name, trial.state, *scores, *values, trial.cost, trial.seconds, trial.error])
    return text.getvalue()
