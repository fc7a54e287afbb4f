"""The cells of a study: one run each, with its whole configuration."""

from collections.abc import Mapping, Sequence

from glscl.data.apart import NamedSet, check_held_out, check_not_trained
from glscl.errors import UserError
from glscl.evaluation.leakage import read_leakage_list
from glscl.evaluation.relevance import read_qrels
from glscl.runs.build import build_run, other_clip, pretrained_towers
from glscl.runs.cell import Cell
from glscl.runs.options import UNION, ZERO_SHOT, Values
from glscl.runs.sets import Sets, check_domain_names, open_sets, sets_of_runs
from glscl.study.options import StudyConfig
from glscl.system import storage
from glscl.training.config import RunConfig

CELLS = "cells"  # folder of the cells in the directory of the study
_UNTRAINED: Values = {"model": {"head": "mean_pool", "frame_context": "none", "position_std": None}}


def build_cells(study: StudyConfig, sets: Mapping[str, Sets]) -> list[Cell]:
    """Build every cell: zero-shot towers first, then seed by seed, so that early results already compare everything.

    Raises `UserError`: a variant, a condition or a domain makes a configuration that is wrong.
    """
    cells = []
    if study.zero_shot:
        for condition in study.conditions:
            config = _build_config(study, sets, condition, ZERO_SHOT, study.seeds[0], [_UNTRAINED], ())
            cells.append(Cell(condition, ZERO_SHOT, ZERO_SHOT, (), study.seeds[0], config, study.controls))
    trainings: dict[str, tuple[tuple[str, ...], Values]] = {n: ((n,), study.domains[n].run) for n in study.trained}
    if UNION in study.trainings:
        trainings[UNION] = (tuple(study.trained), study.union_run)
    for seed in study.seeds:
        for condition in study.conditions:
            for training, (domains, of_training) in trainings.items():
                for variant, options in study.variants.items():
                    name = f"{variant}.{training}.s{seed}"
                    changes = [of_training, options.run, _leave_out(study, domains)]
                    config = _build_config(study, sets, condition, name, seed, changes, domains)
                    shares = study.wise_ft if _has_towers_between(config) else ()
                    cells.append(Cell(condition, variant, training, domains, seed, config, study.controls, shares))
    _check_wise_ft(study, cells)
    return cells


def _check_wise_ft(study: StudyConfig, cells: Sequence[Cell]) -> None:
    """Refuse, with a `UserError`, towers between where no cell has such."""
    if study.wise_ft and not any(cell.wise_ft for cell in cells):
        raise UserError(
            "wise_ft: there is nothing between: no variant's towers are trained (model.freeze) and tested as they are "
            "(evaluation.towers_alpha, head_alpha)"
        )


def _has_towers_between(config: RunConfig) -> bool:
    """Whether a run's towers are trained, and its result is of the trained weights."""
    evaluation = config.evaluation
    return bool(config.model.trained_key) and evaluation.towers_alpha is None and evaluation.head_alpha is None


def _build_config(
    study: StudyConfig,
    sets: Mapping[str, Sets],
    condition: str,
    name: str,
    seed: int,
    changes: Sequence[Values],
    domains: tuple[str, ...],
) -> RunConfig:
    sets = sets_of_runs(study, sets, condition)
    data = {
        "train": [uri for domain in domains for uri in sets[domain].train],
        "validation": [uri for domain in domains for uri in sets[domain].validation],
        "test": [domain.test for domain in sets.values() if domain.test],
    }
    folder = storage.join(study.directory, CELLS, condition)
    of_condition = study.conditions[condition]
    layers = [_qrels(study), of_condition, pretrained_towers(study, other_clip(study, of_condition)), *changes]
    return build_run(study, folder, name, seed, layers, data)


def _leave_out(study: StudyConfig, domains: tuple[str, ...]) -> Values:
    """Return the lists of leaked videos that concern a training on ``domains``, one per tested domain."""
    lists: dict[str, str] = {}
    for item in study.leave_out:
        uri = study.address(item.list)
        if item.train in domains and lists.setdefault(item.test, uri) != uri:
            raise UserError(
                f"leave_out: two lists of {item.test} concern a training on {' and '.join(domains)} "
                f"({lists[item.test]}, {uri}); put them together in one file, or set union to false"
            )
    return {"evaluation": {"leave_out": [f"{test}={uri}" for test, uri in lists.items()]}} if lists else {}


def _qrels(study: StudyConfig) -> Values:
    """Return the lists of relevant videos, which all cells have."""
    lists = [f"{domain}={study.address(file)}" for domain, file in study.qrels.items()]
    return {"evaluation": {"qrels": lists}} if lists else {}


def check_sets(study: StudyConfig, sets: Mapping[str, Sets]) -> list[str]:
    """Open every shard set and every list of leaked videos, and check that no test set is trained or selected on.

    Returns notes on sets that could not be compared. Raises `UserError`: naming what is missing or shared.
    """
    opened = open_sets(sets)
    check_domain_names(opened.tested, study.kind)
    notes = check_held_out(opened.held_out, opened.trained, opened.tested)
    listed = {item.test for item in study.leave_out if item.train == item.test}
    notes += check_not_trained(
        [named for named in opened.tested if named.manifest.domain not in listed],
        opened.trained,
        "test on other videos, or list these under leave_out",
    )
    _check_amounts(study, opened.trained)
    for uri in study.leakage_lists:
        read_leakage_list(uri)
    for file in study.qrels.values():
        read_qrels(study.address(file))
    return notes


def _check_amounts(study: StudyConfig, trained: Sequence[NamedSet]) -> None:
    """Refuse, with a `UserError`, to match training sets to more than one of them has."""
    for name in study.matched:
        data = study.conditions[name].get("data", {})
        for named in trained:
            manifest = named.manifest
            for key, count in (("max_videos", manifest.videos), ("max_pairs", manifest.pairs)):
                if (limit := data.get(key)) and limit > count:
                    raise UserError(
                        f"conditions.{name}.data.{key}: {limit}, but {named} has {count}: training sets "
                        f"are matched to no more than the smallest has"
                    )
