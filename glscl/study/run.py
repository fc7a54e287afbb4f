"""The driver of a study: data, towers, every cell as a Ray task, costs, report."""

from __future__ import annotations

from glscl.errors import UserError
from glscl.options.strict_yaml import dump_yaml
from glscl.runs.cell import Cell, read_result
from glscl.runs.pool import run_cells
from glscl.runs.sets import locate_sets, make_sets
from glscl.runs.towers import pretrain
from glscl.study.analysis import analyse
from glscl.study.costs import MeasuredCosts, measure_costs
from glscl.study.examples import find_examples
from glscl.study.families import check_families
from glscl.study.grid import build_cells, check_sets
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished, share_texts
from glscl.study.plan import CONFIG
from glscl.study.report import write_study_report
from glscl.study.tables import write_study_tables
from glscl.system import storage
from glscl.system.nodes import alive_nodes
from glscl.system.ownership import Owner
from glscl.training.driver.machines import with_machines
from glscl.training.driver.outputs import status_on_failure, write_status
from glscl.training.driver.preflight import preflight

RESULTS = "study.json"
REPORT = "report.html"
TABLES = "tables"
COSTS = "costs.json"


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
        cells = prepare(study)
        run_cells(cells, owner, kind=study.kind, concurrent=study.concurrent, keep_models=study.keep_models)
        owner.fence.check()
        verdict = report(study, costs=True)
    write_status(study.directory, state="finished", verdict=verdict)
    return verdict


def prepare(study: StudyConfig) -> list[Cell]:
    """Make what is to be made (toy sets, towers) and check what can be checked before the first cell.

    Raises:
        UserError: naming what is wrong, where, and the option to change.
    """
    begun = storage.exists(storage.join(study.directory, CONFIG))
    sets = make_sets(study)
    if not begun:
        check_families(study, sets)
    storage.write_bytes(storage.join(study.directory, CONFIG), dump_yaml(study.model_dump(mode="json")).encode())
    for note in check_sets(study, sets):
        print(f"{study.kind}: {note}", flush=True)
    pretrain(study)
    cells = build_cells(study, sets)
    checked: set[tuple[str, ...]] = set()
    for cell in cells:
        # Data and batch arithmetic depend on what is trained on, the model on the variant: not on both.
        aspects = {(cell.condition, "training", cell.training), (cell.condition, "variant", cell.variant)}
        if cell.domains and not aspects <= checked and read_result(cell) is None:
            try:
                preflight(with_machines(cell.config, alive_nodes, alone=False), fetch=not checked)
            except UserError as error:
                raise UserError(f"{cell.label}: {error}") from None
        checked |= aspects
    return cells


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
    cells = build_cells(study, locate_sets(study))
    known_texts: dict[str, list[int] | list[str]] = {}
    finished: Finished = [
        (cell, share_texts(result, known_texts)) for cell in cells if (result := read_result(cell)) is not None
    ]
    results = analyse(study, cells, finished)
    where = storage.join(study.directory, COSTS)
    if costs and not storage.exists(where):
        storage.write_json(where, measure_costs(study, cells).model_dump())
    measured = MeasuredCosts.model_validate(storage.read_json(where)) if storage.exists(where) else MeasuredCosts()
    results = results.model_copy(update={**dict(measured), "examples": find_examples(study, finished)})
    unmeasured = set() if measured.costs else set(MeasuredCosts.model_fields)
    storage.write_json(storage.join(study.directory, RESULTS), results.model_dump(exclude=unmeasured))
    write_study_report(results, storage.join(study.directory, REPORT))
    write_study_tables(results, storage.join(study.directory, TABLES))
    for sentence in results.claims:
        print(sentence)
    return f"{results.verdict} report={storage.join(study.directory, REPORT)}"
