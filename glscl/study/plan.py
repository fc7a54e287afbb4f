"""The plan of a study, from its configuration and its directory alone: its cells, checked, and a description."""

from __future__ import annotations

from collections.abc import Sequence

from glscl.runs.build import build_pretraining
from glscl.runs.cell import Cell
from glscl.runs.results import RESULT
from glscl.runs.sets import are_built, locate_sets
from glscl.study.families import check_families, describe_family
from glscl.study.grid import build_cells, check_sets
from glscl.study.options import StudyConfig
from glscl.system import storage
from glscl.training.driver.preflight import note_on_loss

CONFIG = "study.yaml"


def plan_study(study: StudyConfig) -> tuple[list[Cell], int]:
    """Build the cells and count the finished ones; makes and starts nothing.

    Shard sets are compared if all exist.

    Raises:
        UserError: the configuration is wrong, its comparisons can show nothing, or a set is tested and chosen on.
    """
    build_pretraining(study, make=False)
    sets = locate_sets(study)
    cells = build_cells(study, sets)
    if not storage.exists(storage.join(study.directory, CONFIG)):  # studies begun before this was refused go on
        check_families(study, sets)
    if are_built([uri for domain in sets.values() for uri in domain.uris]):
        check_sets(study, sets)
    return cells, sum(_is_finished(cell) for cell in cells)


def _is_finished(cell: Cell) -> bool:
    return storage.exists(storage.join(cell.directory, RESULT))


def describe(study: StudyConfig, cells: list[Cell], finished: int) -> dict[str, str]:
    """Describe the study for the start-up panel."""
    training = cells[-1].config.training
    notes = notes_on_losses(cells)
    return {
        "study": f"{study.directory}: {study.label}",
        "heads": ", ".join(study.variants),
        "trained on": ", ".join(dict.fromkeys(cell.training for cell in cells)),
        "tested on": ", ".join(name for name, domain in study.domains.items() if domain.is_tested),
        "conditions": ", ".join(study.conditions),
        "seeds": ", ".join(map(str, study.seeds)),
        "cells": f"{len(cells)}, {finished} finished",
        "workers": f"{training.most_workers} x {'GPU' if training.on_gpu else 'CPU'} per cell",
        "global batch": f"{training.global_batch} pairs",
        "comparisons": "; ".join(f"{a} with {b}" for a, b in study.pairs),
        "family": describe_family(study),
        **({"note": "; ".join(notes)} if notes else {}),
    }


def notes_on_losses(cells: Sequence[Cell]) -> list[str]:
    """Collect what to know of the cells' losses (`note_on_loss`), each note with the cells that it is true of."""
    concerned: dict[str, set[str]] = {}
    for cell in cells:
        if cell.domains and (note := note_on_loss(cell.config, cell.domains)):
            concerned.setdefault(note, set()).add(f"{cell.variant} on {cell.training}")
    return [f"{', '.join(sorted(names))}: {note}" for note, names in concerned.items()]
