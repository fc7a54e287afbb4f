"""What a study is going to do, from its configuration and its directory alone."""

from __future__ import annotations

from glscl import storage
from glscl.study.grid import RESULT, Cell, cells, pretraining_run, shard_sets
from glscl.study.options import StudyConfig


def plan(study: StudyConfig) -> tuple[list[Cell], int]:
    """The cells, and how many are finished; makes and starts nothing.

    Raises:
        UserError: the configuration is wrong, or a finished cell is of another one.
    """
    pretraining_run(study, make=False)
    found = cells(study, shard_sets(study, make=False))
    return found, sum(_is_finished(cell) for cell in found)


def _is_finished(cell: Cell) -> bool:
    return storage.exists(storage.join(cell.directory, RESULT))


def describe(study: StudyConfig, found: list[Cell], finished: int) -> dict[str, str]:
    """The study in words, for the start-up panel."""
    training = found[-1].config.training
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
    }
