"""What a study is going to do, from its configuration and its directory alone."""

from __future__ import annotations

from collections.abc import Sequence

from glscl.data.shards import MANIFEST
from glscl.study.families import check_families, describe_family
from glscl.study.grid import RESULT, Cell, cells, check_sets, pretraining_run, shard_sets
from glscl.study.options import StudyConfig
from glscl.system import storage
from glscl.training.driver.preflight import note_on_loss

CONFIG = "study.yaml"


def plan(study: StudyConfig) -> tuple[list[Cell], int]:
    """The cells, and how many are finished; makes and starts nothing. Shard sets are compared if all are there.

    Raises:
        UserError: the configuration is wrong, its comparisons can show nothing, or a set is tested and chosen on.
    """
    pretraining_run(study, make=False)
    sets = shard_sets(study, make=False)
    found = cells(study, sets)
    if not storage.exists(storage.join(study.directory, CONFIG)):  # studies begun before this was refused go on
        check_families(study, sets)
    if all(storage.exists(storage.join(uri, MANIFEST)) for own in sets.values() for uri in own.uris):
        check_sets(study, sets)
    return found, sum(_is_finished(cell) for cell in found)


def _is_finished(cell: Cell) -> bool:
    return storage.exists(storage.join(cell.directory, RESULT))


def describe(study: StudyConfig, found: list[Cell], finished: int) -> dict[str, str]:
    """The study in words, for the start-up panel."""
    training = found[-1].config.training
    notes = notes_on_losses(found)
    return {
        "study": f"{study.directory}: {study.label}",
        "heads": ", ".join(study.variants),
        "trained on": ", ".join(dict.fromkeys(cell.training for cell in found)),
        "tested on": ", ".join(n for n, d in study.domains.items() if d.test or (d.toy and d.toy.test)),
        "conditions": ", ".join(study.conditions),
        "seeds": ", ".join(map(str, study.seeds)),
        "cells": f"{len(found)}, {finished} finished",
        "workers": f"{training.most_workers} x {'GPU' if training.on_gpu else 'CPU'} per cell",
        "global batch": f"{training.global_batch} pairs",
        "comparisons": "; ".join(f"{a} with {b}" for a, b in study.pairs),
        "family": describe_family(study),
        **({"note": "; ".join(notes)} if notes else {}),
    }


def notes_on_losses(found: Sequence[Cell]) -> list[str]:
    """What to know of the cells' losses before they start (`note_on_loss`), each with the cells that it is true of."""
    concerned: dict[str, set[str]] = {}
    for cell in found:
        if cell.domains and (note := note_on_loss(cell.config, cell.domains)):
            concerned.setdefault(note, set()).add(f"{cell.variant} on {cell.training}")
    return [f"{', '.join(sorted(cells))}: {note}" for note, cells in concerned.items()]
