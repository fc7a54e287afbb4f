"""Compute the typed results of a study from its cells' ranks: figures, comparisons and claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from glscl.data.quarantine import describe_incomplete, merge_incomplete
from glscl.errors import UserError
from glscl.evaluation.results import Incomplete, Test
from glscl.runs.cell import Cell
from glscl.runs.options import UNION, ZERO_SHOT
from glscl.runs.provenance import record_provenance
from glscl.study.comparisons import compare_variants, write_claims
from glscl.study.figures import Domains, build_result
from glscl.study.options import StudyConfig
from glscl.study.panels import Finished, build_panels, select_comparable
from glscl.study.protocol import describe_protocol, describe_test_set, list_variants
from glscl.study.results import Comparison, Result, StudyResults, Training


def analyse(study: StudyConfig, cells: Sequence[Cell], finished: Finished) -> StudyResults:
    """Compute everything of `StudyResults` that follows from the cells' results; costs and examples are not in it.

    While the study is unfinished, the seeds that are: see `select_comparable`.

    Args:
        study: the study.
        cells: all its cells.
        finished: those that are finished, with their results.

    Raises:
        UserError: nothing is finished, or cells were tested on different queries.
    """
    comparable = select_comparable(cells, finished)
    if not comparable:
        raise UserError(f"{study.directory}: no cell is finished; there is nothing to report")
    domains = {cell.training: list(cell.domains) for cell in cells}
    results: list[Result] = []
    comparisons: list[Comparison] = []
    tested: dict[str, dict[str, Test]] = {}
    for condition in study.conditions:  # one after the other: the resamples of a large study fill memory
        panels = build_panels(study, [(cell, result) for cell, result in comparable if cell.condition == condition])
        results += [
            build_result(condition, panel, variant, training, domains)
            for panel in panels.values()
            for variant, training in panel.seeds
        ]
        comparisons += compare_variants(study, condition, panels, domains)
        for name, panel in panels.items():
            tested.setdefault(name, {})[condition] = next(iter(panel.seeds.values()))[0].test
    claims = write_claims(study, comparisons)
    incomplete = _merge_incomplete(comparable)
    verdict = f"study={study.name} cells={len(finished)}/{len(cells)} {' '.join(claims[:1])} [{study.label}]"
    return StudyResults(
        name=study.name,
        label=study.label,
        verdict=verdict + _describe_incomplete(incomplete),
        incomplete=incomplete,
        **asdict(record_provenance(comparable[0][0].config.training.use_gpu is not False)),
        finished_cells=len(finished),
        cells=len(cells),
        seeds=list(study.seeds),
        conditions=list(study.conditions),
        claims=claims,
        protocol=describe_protocol(study, cells),
        variants=list_variants(study),
        trainings=_list_trainings(domains),
        tests=[describe_test_set(name, tested[name]) for name in study.domains if name in tested],
        results=results,
        comparisons=comparisons,
    )


def _merge_incomplete(finished: Finished) -> list[Incomplete]:
    """Merge what the cells say of shard sets that lack videos."""
    merged = merge_incomplete([entry.model_dump() for entry in result.incomplete] for _, result in finished)
    return [Incomplete.model_validate(entry) for entry in merged]


def _describe_incomplete(incomplete: Sequence[Incomplete]) -> str:
    """Describe shard sets that lack videos, for the end of the verdict; empty if none does."""
    if not incomplete:
        return ""
    return f"; incomplete: {describe_incomplete([entry.model_dump() for entry in incomplete])}"


def _list_trainings(domains: Domains) -> list[Training]:
    """List the trainings, zero-shot first and the union last."""
    ordered = sorted(domains.items(), key=lambda item: (item[0] != ZERO_SHOT, item[0] == UNION))
    return [Training(name=name, domains=list(of_training)) for name, of_training in ordered]
