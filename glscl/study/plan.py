"""The plan of a study, from its configuration and its directory alone: its cells, checked, and a description.

All single cells of one condition and direction are one family under Holm's correction, all means another, which is
smaller. The more comparisons, the smaller the p-value that one of them needs, and the more seeds, queries and resamples
it takes to have such a p-value at all.
"""

from collections.abc import Mapping, Sequence

from scipy import stats

from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.evaluation.metrics import MAIN_METRIC
from glscl.runs.build import build_pretraining, other_clip
from glscl.runs.cell import RESULT, Cell
from glscl.runs.sets import Sets, are_built, locate_sets
from glscl.study.detectable import Planned, assume_deviations, describe_differences, plan_differences
from glscl.study.factors import describe_factors
from glscl.study.grid import build_cells, check_sets
from glscl.study.options import StudyConfig
from glscl.study.statistics import LEVEL, enough_queries, enough_resamples, seed_errors
from glscl.system import storage
from glscl.training.driver.preflight import note_on_loss

CONFIG = "study.yaml"
MOST_ERRORS = 100.0  # standard errors in 100 points, where the trainings of two seeds are a point apart


def plan_study(study: StudyConfig) -> tuple[list[Cell], int]:
    """Build the cells and count the finished ones; makes and starts nothing. Sets are compared if all exist.

    Raises `UserError`: the configuration is wrong, its comparisons can show nothing, or a set is tested and chosen on.
    """
    for clip in tower_names(study):
        build_pretraining(study, make=False, clip=clip)
    sets = locate_sets(study)
    cells = build_cells(study, sets)
    if not storage.exists(storage.join(study.directory, CONFIG)):  # studies begun before this was refused go on
        check_families(study, sets)
    check_gallery(study, sets)
    if are_built([uri for domain in sets.values() for uri in domain.uris]):
        check_sets(study, sets)
    return cells, sum(storage.exists(storage.join(cell.directory, RESULT)) for cell in cells)


def tower_names(study: StudyConfig) -> list[str]:
    """Architectures of towers that the conditions need, each once; the shared one is an empty name."""
    return list(dict.fromkeys(other_clip(study, changes) for changes in study.conditions.values()))


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
        **describe_claims(study),
        **describe_factors(study.factors),
        **({"note": "; ".join(notes)} if notes else {}),
    }


def describe_claims(study: StudyConfig) -> dict[str, str]:
    """Describe the margin of equivalence, and what differences the study will be able to show."""
    margin = study.equivalence_margin
    equal = f"within ±{margin:g} points of {MAIN_METRIC}, a claim of its own" if margin else "not asked (no margin)"
    assumed = assume_deviations(study)
    if assumed is None:
        found = "not known: state assumed_sd, or name an earlier study as pilot"
    else:
        found = describe_differences(assumed, plan_detectable(study, locate_sets(study)))
    return {"equivalence": equal, "detectable": found}


def plan_detectable(study: StudyConfig, sets: Mapping[str, Sets]) -> list[Planned]:
    """Say what every comparison can detect, in points, of test sets whose size is known; empty: nothing is assumed."""
    assumed = assume_deviations(study)
    return plan_differences(study, assumed, _tested_videos(study, sets)) if assumed else []


def notes_on_losses(cells: Sequence[Cell]) -> list[str]:
    """Collect what to know of the cells' losses (`note_on_loss`), each note with the cells that it is true of."""
    concerned: dict[str, set[str]] = {}
    for cell in cells:
        if cell.domains and (note := note_on_loss(cell.config, cell.domains)):
            concerned.setdefault(note, set()).add(f"{cell.variant} on {cell.training}")
    return [f"{', '.join(sorted(names))}: {note}" for note, names in concerned.items()]


def family_size(study: StudyConfig) -> int:
    """Comparisons of single cells in one condition and direction."""
    tests = sum(domain.is_tested for domain in study.domains.values())
    return len(study.pairs) * len(study.trainings) * tests


def describe_family(study: StudyConfig) -> str:
    """What a difference needs to be shown, in words."""
    size = family_size(study)
    if not size:
        return "none: no comparisons"
    queries = float(stats.norm.isf((1 - LEVEL) / 2 / size))
    text = f"{size} comparisons of single cells; shown from {queries:.1f} standard errors on where queries make them up"
    if len(study.seeds) < 2:
        return f"{text}; one seed: every claim is of one training"
    return f"{text}, {seed_errors(size, len(study.seeds)):.1f} where seeds do"


def check_families(study: StudyConfig, sets: Mapping[str, Sets]) -> None:
    """Refuse a family of comparisons that cannot show a difference, however large; sets not yet made are left out.

    Raises `UserError`: naming the family, what it lacks, and the knobs.
    """
    size = family_size(study)
    if not size:
        return
    family = f"{size} single cells are compared in each direction (comparisons x trainings x test sets)"
    fewer = "name fewer comparisons, or strike out domains"
    if study.resamples < (least := enough_resamples(size)):
        raise UserError(
            f"resamples: {family}, and {study.resamples} resamples are too few for the p-values that so many need: "
            f"give at least {least}, or {fewer}"
        )
    seeds = len(study.seeds)
    if seeds > 1 and (errors := seed_errors(size, seeds)) > MOST_ERRORS:
        raise UserError(
            f"seeds: {family}, so that with {seeds} seeds a difference needs {errors:.0f} standard errors and none can "
            f"be shown: give {seeds + 1} seeds or more, or {fewer}"
        )
    least = enough_queries(size)
    for name, videos in _tested_videos(study, sets).items():
        if videos < least:
            raise UserError(
                f"domains.{name}: {family}, and a test set of {videos} videos can show nothing among so many: it needs "
                f"{least} or more, or {fewer}"
            )


def check_gallery(study: StudyConfig, sets: Mapping[str, Sets]) -> None:
    """Refuse a gallery larger than a test set, with a `UserError`; sets not yet made are left out."""
    if isinstance(study.gallery, int):
        for name, videos in _tested_videos(study, sets).items():
            if videos < study.gallery:
                raise UserError(
                    f"gallery: {study.gallery} videos, but the test set of {name} has {videos}; give no more than the "
                    f"smallest test set has, or `smallest`"
                )


def _tested_videos(study: StudyConfig, sets: Mapping[str, Sets]) -> dict[str, int]:
    """Videos of the test sets whose size is known."""
    known = {}
    for name, domain in study.domains.items():
        uri = sets[name].test
        if domain.toy and domain.toy.test:
            known[name] = domain.toy.test
        elif uri and are_built([uri]):
            known[name] = open_shard_set(uri).manifest.videos
    return known
