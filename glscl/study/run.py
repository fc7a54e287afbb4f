"""The driver of a study: data, towers, every cell as a Ray task, costs, report."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch

from glscl.errors import UserError
from glscl.evaluation.cost import head_cost, paper_counts
from glscl.models.architectures import find_architecture
from glscl.models.options import ModelConfig
from glscl.options.strict_yaml import dump_yaml
from glscl.reporting.published import PACKAGED, read_published
from glscl.runs.cell import Cell, read_result
from glscl.runs.execution import pretrain
from glscl.runs.features import encode_sets
from glscl.runs.pool import run_cells
from glscl.runs.retests import without_untestable
from glscl.runs.sets import locate_sets
from glscl.runs.summary import describe_machine
from glscl.study.analysis import analyse
from glscl.study.beside import read_beside
from glscl.study.controls import describe_controls, find_controls
from glscl.study.decomposition import describe_decompositions, find_decompositions
from glscl.study.detectable import RESULTS
from glscl.study.examples import find_examples
from glscl.study.grid import build_cells, check_sets
from glscl.study.matched import describe_matched, find_matched
from glscl.study.options import StudyConfig
from glscl.study.orders import describe_order_changes, find_order_changes
from glscl.study.panels import share_texts
from glscl.study.plan import CONFIG, check_families, check_gallery, plan_detectable, tower_names
from glscl.study.preregistration import FILE, check_registration, register
from glscl.study.report import render_study
from glscl.study.results import Cost, MeasuredCosts, StudyResults
from glscl.study.tables import write_study_tables
from glscl.study.wise_ft import describe_wise_ft, find_wise_ft
from glscl.system import storage
from glscl.system.nodes import alive_nodes
from glscl.system.ownership import Fence, Owner
from glscl.training.driver.machines import with_machines
from glscl.training.driver.outputs import status_on_failure, write_status
from glscl.training.driver.preflight import preflight

REPORT = "report.html"
TABLES = "tables"
COSTS = "costs.json"


def run_study(study: StudyConfig, owner: Owner) -> str:
    """Do what is not finished, and report; Ray is running. Returns the verdict. Raises `UserError`: bad input."""
    write_status(study.directory, state="running", verdict="")
    with status_on_failure(owner.fence):
        cells = without_untestable(prepare(study, owner.fence), study.kind)
        run_cells(cells, owner, kind=study.kind, concurrent=study.concurrent, keep_models=study.keep_models)
        owner.fence.check()
        verdict = report(study, costs=True)
    write_status(study.directory, state="finished", verdict=verdict)
    return verdict


def prepare(study: StudyConfig, fence: Fence | None = None) -> list[Cell]:
    """Make toy sets, towers and features; check what can be before the first cell. Raises `UserError`: bad input."""
    begun = storage.exists(storage.join(study.directory, CONFIG))
    sets = locate_sets(study, make=True)
    if not begun:
        check_families(study, sets)
    check_gallery(study, sets)
    if (sha256 := register(study, plan_detectable(study, sets))) is not None:
        print(f"{study.kind}: pre-registered in {storage.join(study.directory, FILE)}, sha256 {sha256}", flush=True)
    storage.write_bytes(storage.join(study.directory, CONFIG), dump_yaml(study.model_dump(mode="json")).encode())
    for note in check_sets(study, sets):
        print(f"{study.kind}: {note}", flush=True)
    for clip in tower_names(study):
        pretrain(study, clip)
    cells = build_cells(study, sets)
    for condition in study.conditions:
        run = next(cell.config for cell in cells if cell.condition == condition)
        encode_sets(study, sets, run, fence, condition)
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
    """Write what the finished cells allow: ``study.json``, ``report.html`` and ``tables/``; returns the verdict.

    With ``costs``, what the heads cost is measured, unless that was done before (Ray must be running). Raises
    `UserError`: nothing is finished.
    """
    cells = build_cells(study, locate_sets(study))
    known_texts: dict[str, list[int] | list[str]] = {}
    finished = [(cell, share_texts(result, known_texts)) for cell in cells if (result := read_result(cell))]
    results = analyse(study, cells, finished)
    where = storage.join(study.directory, COSTS)
    if costs and not storage.exists(where):
        storage.write_json(where, _measure_costs(study, cells).model_dump())
    measured = MeasuredCosts.model_validate(storage.read_json(where)) if storage.exists(where) else MeasuredCosts()
    found = {
        "examples": find_examples(study, finished),
        "controls": find_controls(study, cells, finished),
        "wise_ft": find_wise_ft(study, cells, finished),
        "matched": find_matched(study, cells, finished),
        "decompositions": find_decompositions(study, cells, finished),
        "order_changes": find_order_changes(study, cells, finished),
        "preregistration": check_registration(study),
    }
    results = results.model_copy(update=dict(measured) | found)
    if study.beside:
        beside = read_beside(storage.join(study.beside_directory, RESULTS), results)
        results = results.model_copy(update={"beside": beside})
    unmeasured = set() if measured.costs else set(MeasuredCosts.model_fields)
    asked: dict[str, object] = {
        "controls": study.controls,
        "wise_ft": study.wise_ft,
        "matched": study.matched,
        "galleries": study.gallery,
        "decompositions": study.factors,
        "order_changes": len(study.conditions) > 1,
    }
    unmeasured |= {name for name, is_asked in asked.items() if not is_asked}
    storage.write_json(storage.join(study.directory, RESULTS), results.model_dump(exclude=unmeasured))
    page = storage.join(study.directory, REPORT)
    storage.write_bytes(page, render_study(results, read_published(PACKAGED)).encode())
    write_study_tables(results, storage.join(study.directory, TABLES))
    print("\n".join(_list_sentences(results)))
    return f"{results.verdict} report={page}"


def _list_sentences(results: StudyResults) -> Iterator[str]:
    """Everything that the study says, in the order of the page."""
    yield from results.claims
    for name in results.conditions:
        yield from describe_decompositions(results, name)
    yield from describe_order_changes(results)
    for name in results.conditions:
        yield from describe_controls(results, name)
        yield from describe_wise_ft(results, name)
    yield from describe_matched(results)


def _measure_costs(study: StudyConfig, cells: Sequence[Cell]) -> MeasuredCosts:
    """Measure every variant in every condition, all by one process, side by side. Ray must be running."""
    import ray

    first = {(cell.condition, cell.variant): cell.config for cell in reversed(cells) if cell.domains}
    training = with_machines(next(iter(first.values())), alive_nodes, alone=False).training
    task = ray.remote(num_cpus=training.cpus, num_gpus=int(training.on_gpu))(_measure_heads)
    models = [(condition, variant, config.model) for (condition, variant), config in first.items()]
    order = list(study.variants)
    costs, machine = ray.get(task.remote(models, training.on_gpu))
    costs.sort(key=lambda cost: (cost.condition, order.index(cost.variant)))
    return MeasuredCosts(costs=costs, cost_machine=machine, paper_counts=paper_counts())


def _measure_heads(models: Sequence[tuple[str, str, ModelConfig]], use_gpu: bool) -> tuple[list[Cost], str]:
    """Measure the models of conditions and variants in a process of the cluster; returns its machine, too."""
    costs = []
    for condition, variant, model in models:
        options = getattr(model.heads, model.head)
        device = "cuda" if use_gpu else "cpu"
        width = find_architecture(model.clip).width
        cost = head_cost(model.head, options, width, model.max_words, model.max_frames, device=device)
        costs.append(Cost(condition=condition, variant=variant, **asdict(cost)))
    return costs, f"{describe_machine(use_gpu)}, {torch.get_num_threads()} thread(s)"
