"""What a trial trains, and how it is scored across domains.

``mean`` and ``worst``: one training on all domains, scored on each one's held-out part. ``leave_one_domain_out``: one
training per domain on all the others, scored on the held-out part of the one left out. The trainings of a trial run
side by side, and a step counts once all have scored it: so an objective at a step is of that step in each of them, and
early stopping compares equals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glscl.models.heads.base import build_head
from glscl.study.grid import Cell, Sets, build_run, pretrained_towers
from glscl.study.options import Values
from glscl.system import storage
from glscl.training.config import RunConfig
from glscl.training.run_log import read_metrics
from tune.options import SweepConfig
from tune.space import nested

ALL = "all"
"""Name of the one training on all domains."""


@dataclass(frozen=True, slots=True)
class Score:
    """A trial's score at a step.

    Attributes:
        step: of every training.
        objective: across domains, in per cent.
        domains: each domain's held-out score.
    """

    step: int
    objective: float
    domains: dict[str, float]

    def row(self) -> dict[str, Any]:
        """As it is reported to Ray Tune and kept in files."""
        return {"step": self.step, "objective": self.objective, "domains": self.domains}


def folds(sweep: SweepConfig) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """By name, the domains that each training of a trial learns from and is scored on."""
    every = tuple(sweep.domains)
    if sweep.objective != "leave_one_domain_out":
        return {ALL: (every, every)}
    return {f"without_{name}": (tuple(other for other in every if other != name), (name,)) for name in every}


def runs(
    sweep: SweepConfig, sets: Mapping[str, Sets], folder: str, values: Mapping[str, Any], seed: int
) -> dict[str, RunConfig]:
    """The trainings of a trial, by the name of their fold.

    Args:
        sweep: the sweep.
        sets: shard sets of its domains.
        folder: in which their run directories are made.
        values: of the searched keys.
        seed: of the trainings.
    """
    return {
        fold: run_on(sweep, sets, folder, fold, values, seed, trained, scored)
        for fold, (trained, scored) in folds(sweep).items()
    }


def run_on(
    sweep: SweepConfig,
    sets: Mapping[str, Sets],
    folder: str,
    name: str,
    values: Mapping[str, Any],
    seed: int,
    trained: Sequence[str],
    scored: Sequence[str],
) -> RunConfig:
    """A run on some domains, scored on the held-out parts of others."""
    data = {
        "train": [uri for domain in trained for uri in sets[domain].train],
        "validation": [uri for domain in scored for uri in sets[domain].validation],
        "test": [],
    }
    parts: list[Values] = [pretrained_towers(sweep), nested(values)]
    return build_run(sweep, folder, name, seed, parts, data)


def cells(sweep: SweepConfig, configs: Mapping[str, RunConfig], variant: str, what: str, seed: int) -> list[Cell]:
    """Trainings as the study's cells, which know how to be done once and to go on after an interruption.

    Args:
        sweep: the sweep.
        configs: by the name of their fold.
        variant: whose trainings they are.
        what: they are for.
        seed: theirs.
    """
    trained = folds(sweep) | {ALL: (tuple(sweep.domains), ())}
    return [Cell(what, variant, fold, trained[fold][0], seed, config) for fold, config in configs.items()]


def across(sweep: SweepConfig, domains: Mapping[str, float]) -> float:
    """The objective of the domains' scores."""
    scores = list(domains.values())
    return min(scores) if sweep.objective == "worst" else sum(scores) / len(scores)


def history(sweep: SweepConfig, configs: Mapping[str, RunConfig]) -> list[Score]:
    """Scores of the steps that all trainings of a trial have reached, from their run directories' own logs."""
    by_fold = [_scored(sweep, config.run_directory) for config in configs.values()]
    common = set.intersection(*(set(steps) for steps in by_fold)) if by_fold else set()
    found = []
    for step in sorted(common):
        scores: dict[str, float] = {}
        for steps in by_fold:
            scores |= steps[step]
        domains = {name: scores[name] for name in sweep.domains}
        found.append(Score(step, across(sweep, domains), domains))
    return found


def _scored(sweep: SweepConfig, run_directory: str) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for row in read_metrics(run_directory):
        scores = {
            name: float(row[key]) for name in sweep.domains if (key := f"validation/{name}/{sweep.metric}") in row
        }
        if scores:
            found[row["step"]] = scores
    return found


def multiply_adds(config: RunConfig) -> int:
    """What a run's head costs per pair of a text and a video, with everything cached that depends on one of them."""
    model = config.model
    from glscl.models.towers import Towers

    width = Towers(model.clip, model.pretrained, load_weights=False).width
    lengths = (model.max_words, model.max_frames)
    head = build_head(model.head, width, getattr(model.heads, model.head), lengths)
    return int(head.implemented_multiply_adds(*lengths))


def trials_folder(sweep: SweepConfig) -> str:
    """Folder of the trials' own folders."""
    return storage.join(sweep.directory, "trials")
