"""The driver of a study: data, towers, every cell as a Ray task, costs, report."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from glscl.data.quarantine import describe_incomplete
from glscl.errors import UserError, one_line
from glscl.evaluation.saved import CARD, FOLDER
from glscl.options.strict_yaml import dump_yaml
from glscl.study.analysis import analyse, compact
from glscl.study.cell import PATIENCE_S, export_towers, read_result, remove_checkpoints, run_cell
from glscl.study.examples import examples
from glscl.study.families import check_families
from glscl.study.grid import TOWERS, Cell, cells, check_sets, pretraining_run, shard_sets
from glscl.study.measure import measure_costs
from glscl.study.options import RunsConfig, StudyConfig
from glscl.study.plan import CONFIG
from glscl.study.report import write_study_report
from glscl.study.tables import write_study_tables
from glscl.system import storage
from glscl.system.hardware import Share
from glscl.system.nodes import alive_nodes, check_resources, worker_capacity
from glscl.system.ownership import ANOTHER_NAME, Owner, owned
from glscl.system.progress import time_left
from glscl.training.driver.launch import train
from glscl.training.driver.machines import with_machines
from glscl.training.driver.outputs import status_on_failure, write_status
from glscl.training.driver.preflight import preflight
from glscl.training.options import TrainingConfig

RESULTS = "study.json"
REPORT = "report.html"
TABLES = "tables"
COSTS = "costs.json"
_POLL_S = 5.0
_SAY_EVERY_S = 60.0
_MOST_FAILURES = 5  # cells that may fail before no other is started


def run_study(study: StudyConfig, owner: Owner) -> str:
    """Do what is not finished, and write the report; Ray must be running. ``status.json`` follows what happens.

    Args:
        study: the study.
        owner: of its directory.

    Returns:
        the verdict.

    Raises:
        UserError: bad input, or cells that failed.
    """
    write_status(study.directory, state="running", verdict="")
    with status_on_failure(owner.fence):
        run_cells(prepare(study), owner, concurrent=study.concurrent, keep_models=study.keep_models)
        owner.fence.check()
        verdict = report(study, costs=True)
    write_status(study.directory, state="finished", verdict=verdict)
    return verdict


def prepare(study: StudyConfig) -> list[Cell]:
    """Make what is to be made (toy sets, towers) and check what can be checked before the first cell.

    Raises:
        UserError: naming what is wrong, where, and the knob.
    """
    begun = storage.exists(storage.join(study.directory, CONFIG))
    sets = shard_sets(study, make=True)
    if not begun:
        check_families(study, sets)
    storage.write_bytes(storage.join(study.directory, CONFIG), _yaml(study).encode())
    for note in check_sets(study, sets):
        _say(note, study.kind)
    pretrain(study)
    found = cells(study, sets)
    seen: set[tuple[str, ...]] = set()
    for cell in found:
        # Data and batch arithmetic depend on what is trained on, the model on the variant: not on both.
        aspects = {(cell.condition, "training", cell.training), (cell.condition, "variant", cell.variant)}
        if cell.domains and not aspects <= seen and read_result(cell) is None:
            try:
                preflight(with_machines(cell.config, alive_nodes, alone=False), fetch=not seen)
            except UserError as error:
                raise UserError(f"{cell.label}: {error}") from None
        seen |= aspects
    return found


def pretrain(study: RunsConfig) -> None:
    """Train the towers that all runs start from, unless that was done before.

    Raises:
        UserError: bad input, or another pretraining was done under this name.
    """
    config = pretraining_run(study, make=True)
    if config is None:
        return
    config = with_machines(config, alive_nodes)
    ready = preflight(config)  # also refuses another pretraining than the one that was done
    towers = storage.join(study.directory, TOWERS)
    if storage.exists(towers):
        return
    if not storage.exists(storage.join(config.run_directory, FOLDER, CARD)):
        began = time.monotonic()
        _say(f"pretraining the towers: {config.run_directory}", study.kind)
        with owned(config.run_directory, ANOTHER_NAME, patience_s=PATIENCE_S) as owner:
            train(config, ready, owner)
        _say(f"pretrained in {time.monotonic() - began:.0f} s", study.kind)
    export_towers(config.run_directory, towers)
    remove_checkpoints(config.run_directory)


def run_cells(
    found: Sequence[Cell],
    owner: Owner,
    *,
    concurrent: int | None = None,
    keep_models: bool = False,
    kind: str = StudyConfig.kind,
) -> None:
    """Do every cell that is not finished, as many at once as there is room for.

    Each is a Ray task that starts its own worker group. No more of them run than all their workers fit, so that none
    waits with half of its workers for another's to end. Nodes that join later are used from then on.

    Args:
        found: the cells, finished ones among them.
        owner: of the directory that they lie in; nothing is started once that has another.
        concurrent: most at once.
        keep_models: keep each cell's model.
        kind: what they are cells of; every line begins with it.

    Raises:
        UserError: cells failed of bad input; names the first and says how to go on.
        RuntimeError: cells failed of something else.
        TakenOverError: another command owns the directory now.
    """
    import ray

    pending = deque(cell for cell in found if read_result(cell) is None)
    before = finished = len(found) - len(pending)
    took = 0.0
    _say(f"{finished} of {len(found)} cells are finished, {len(pending)} to do", kind)
    if not pending:
        return
    config = with_machines(pending[0].config, alive_nodes, alone=False)
    training = config.training
    at_once = max(1, min(room_for(training), concurrent or len(found)))
    share = Share(training.most_workers, training.on_gpu, training.cpus, config.data.loaders)
    _say(f"workers of a cell: {share}; {at_once} cells at once", kind)
    check_resources(training.most_workers, training.cpus, training.on_gpu, training.wait_for_nodes_s)
    task = ray.remote(num_cpus=0, max_retries=2, scheduling_strategy="SPREAD")(_task)
    running: dict[Any, Cell] = {}
    began = said = time.monotonic()
    failures: list[tuple[Cell, BaseException]] = []
    while pending or running:
        owner.check()
        most = max(1, min(room_for(training), concurrent or len(found)))
        while pending and len(running) < most and len(failures) < _MOST_FAILURES:
            cell = pending.popleft()
            running[task.remote(cell.to_values(), keep_models)] = cell
        if not running:
            break
        done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
        if time.monotonic() - said >= _SAY_EVERY_S:
            said = time.monotonic()
            left = time_left(said - began, finished - before, len(found) - before)
            _say(f"{finished}/{len(found)} cells, {len(running)} running{left}", kind)
        for reference in done:
            cell = running.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                failures.append((cell, cause if isinstance(cause, BaseException) else error))
                _say(f"FAILED {cell.label}: {one_line(failures[-1][1])}", kind)
                continue
            finished += 1
            took += result["seconds"]
            left = took / (finished - before) * (len(pending) + len(running)) / most
            _say(
                f"{finished}/{len(found)} {cell.label}: {_scores(result)} "
                f"({result['seconds']:.0f} s, about {max(1, round(left / 60))} min left)",
                kind,
            )
    if failures:
        first, reason = failures[0]
        bad_input = all(isinstance(error, UserError) for _, error in failures)
        raise (UserError if bad_input else RuntimeError)(
            f"{len(failures)} cells failed and {len(pending)} were not started; the first was {first.label} "
            f"({first.directory}): {one_line(reason)}. The same command goes on with what is not finished"
        )


def _task(values: Mapping[str, Any], keep_model: bool) -> dict[str, Any]:
    """A cell in a process of the cluster; returns what the driver prints, the rest is in ``cell.json``."""
    result = run_cell(Cell.from_values(values), keep_model)
    kept = ("domain", "text_to_video")
    return {
        "seconds": result["seconds"],
        "validation": result["validation"],
        "incomplete": result.get("incomplete", []),
        "tests": [{key: test[key] for key in kept} for test in result["tests"]],
    }


def room_for(training: TrainingConfig) -> int:
    """Trainings whose workers all fit on the nodes there are."""
    return worker_capacity(training.cpus, training.on_gpu) // training.most_workers


def _yaml(study: StudyConfig) -> str:
    return dump_yaml(study.model_dump(mode="json"))


def _say(text: str, kind: str) -> None:
    print(f"{kind}: {text}", flush=True)


def _scores(result: Mapping[str, Any]) -> str:
    from glscl.training.checkpoint.format import SELECTION_METRIC

    tests = ", ".join(f"{test['domain']} R@1={test['text_to_video']['R@1']:.1f}" for test in result["tests"])
    scores = tests or f"held-out R@1={result['validation'][SELECTION_METRIC]:.1f}"
    missing = describe_incomplete(result["incomplete"])
    return f"{scores}; incomplete: {missing}" if missing else scores


def report(study: StudyConfig, *, costs: bool = False) -> str:
    """Write what the finished cells allow: ``study.json``, ``report.html`` and ``tables/``.

    Args:
        study: the study.
        costs: measure what the heads cost, unless that was done before (Ray must be running).

    Returns:
        the verdict.

    Raises:
        UserError: nothing is finished.
    """
    found = cells(study, shard_sets(study, make=False))
    same: dict[str, Any] = {}
    finished = [(cell, compact(result, same)) for cell in found if (result := read_result(cell)) is not None]
    results = analyse(study, found, finished)
    where = storage.join(study.directory, COSTS)
    if costs and not storage.exists(where):
        storage.write_json(where, measure_costs(study, found))
    if storage.exists(where):
        results |= storage.read_json(where)
    results["examples"] = examples(study, finished)
    storage.write_json(storage.join(study.directory, RESULTS), results)
    write_study_report(results, storage.join(study.directory, REPORT))
    write_study_tables(results, storage.join(study.directory, TABLES))
    for sentence in results["claims"]:
        print(sentence)
    return f"{results['verdict']} report={storage.join(study.directory, REPORT)}"
