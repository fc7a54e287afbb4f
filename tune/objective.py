"""The objective of a trial: what it trains, and its score across domains.

The trainings of a trial run side by side, and a step counts once all have scored it: so an objective at a step is of
that step in each of them, and early stopping compares equals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.models.heads.base import build_head
from glscl.runs.build import build_run, pretrained_towers
from glscl.runs.cell import Cell
from glscl.runs.sets import Sets
from glscl.system import storage
from glscl.training.config import RunConfig
from glscl.training.run_log import read_metrics
from glscl.training.schedule import RunLength, make_plan
from tune.options import SweepConfig
from tune.space import Values, nest

ALL = "all"
"""Name of the one training on all domains."""


@dataclass(frozen=True, slots=True)
class Score:
    """A trial's score at a step, the same step of every training: the objective, and each domain's, in per cent."""

    step: int
    objective: float
    domains: dict[str, float]


@dataclass(frozen=True, slots=True)
class Setup:
    """What every trial of a sweep is given."""

    sweep: SweepConfig
    sets: Mapping[str, Sets]
    steps: int
    """Length of a training."""
    first: int
    """Step of a training's first scoring."""


def make_setup(sweep: SweepConfig, sets: Mapping[str, Sets]) -> Setup:
    """Open the training sets and count steps; a `UserError` if trainings differ in length or none can be stopped."""
    lengths = []
    for config in build_runs(sweep, sets, trials_folder(sweep), {}, sweep.seed).values():
        opened = [open_shard_set(uri) for uri in config.data.train]
        lengths.append(RunLength.of(config, make_plan(config, opened)))
    totals = {length.total for length in lengths}
    firsts = {min(length.evaluate_every, length.total) for length in lengths}
    for what, counts, knob in (
        ("length", totals, "run.training.max_steps to what all of them reach"),
        ("the steps of an epoch", firsts, "domains to equally many pairs"),
    ):
        if len(counts) > 1:
            raise UserError(
                f"the trainings that leave one domain out differ in {what} ({sorted(counts)} steps), and are not "
                f"scored at the same steps: set {knob}"
            )
    total, first = totals.pop(), firsts.pop()
    if sweep.scheduler != "none" and max(first, sweep.grace_steps or 0) >= total:
        raise UserError(
            f"scheduler: nothing can be stopped early when the first scoring is at step {first} of {total} "
            f"(grace_steps {sweep.grace_steps}): train for more epochs, or set scheduler to none"
        )
    return Setup(sweep, sets, total, first)


def training_folds(sweep: SweepConfig) -> dict[str, tuple[str, ...]]:
    """List the trainings of a trial, by name, with the domains that each learns from."""
    domains = tuple(sweep.domains)
    if sweep.objective != "leave_one_domain_out":
        return {ALL: domains}
    return {f"without_{name}": tuple(other for other in domains if other != name) for name in domains}


def build_runs(
    sweep: SweepConfig, sets: Mapping[str, Sets], folder: str, values: Values, seed: int
) -> dict[str, RunConfig]:
    """Build the trainings of a trial, by the name of their fold; their run directories are made in ``folder``."""
    folds = training_folds(sweep)
    return {name: _build_fold(sweep, sets, folder, name, values, seed, trained) for name, trained in folds.items()}


def build_run_on_all(sweep: SweepConfig, sets: Mapping[str, Sets], folder: str, name: str, values: Values) -> RunConfig:
    """Build a run on all domains, scored on the held-out parts of all, with the sweep's seed."""
    return _build_fold(sweep, sets, folder, name, values, sweep.seed, tuple(sweep.domains))


def _build_fold(
    sweep: SweepConfig, sets: Mapping[str, Sets], folder: str, name: str, values: Values, seed: int, fold: Sequence[str]
) -> RunConfig:
    """A training on the domains of a fold, scored on the one left out, or on all where none is."""
    scored = [domain for domain in sweep.domains if domain not in fold] or fold
    data: dict[str, list[str]] = {
        "train": [uri for domain in fold for uri in sets[domain].train],
        "validation": [uri for domain in scored for uri in sets[domain].validation],
        "test": [],
    }
    return build_run(sweep, folder, name, seed, [pretrained_towers(sweep), nest(values)], data)


def build_cells(
    sweep: SweepConfig, configs: Mapping[str, RunConfig], variant: str, purpose: str, seed: int
) -> list[Cell]:
    """Build cells of trainings, ``configs`` by their fold: cells are done once, and go on after an interruption."""
    trained = training_folds(sweep) | {ALL: tuple(sweep.domains)}
    return [Cell(purpose, variant, fold, trained[fold], seed, config) for fold, config in configs.items()]


def compute_objective(sweep: SweepConfig, domains: Mapping[str, float]) -> float:
    """Compute the objective from the domains' scores."""
    scores = list(domains.values())
    return min(scores) if sweep.objective == "worst" else sum(scores) / len(scores)


def read_history(sweep: SweepConfig, configs: Mapping[str, RunConfig]) -> list[Score]:
    """Read the scores of the steps that all trainings of a trial have reached, from the logs of their runs."""
    by_fold = [_read_scores(sweep, config.run_directory) for config in configs.values()]
    common = set.intersection(*(set(steps) for steps in by_fold)) if by_fold else set()
    history = []
    for step in sorted(common):
        scores = {name: score for steps in by_fold for name, score in steps[step].items()}
        domains = {name: scores[name] for name in sweep.domains}
        history.append(Score(step, compute_objective(sweep, domains), domains))
    return history


def _read_scores(sweep: SweepConfig, run_directory: str) -> dict[int, dict[str, float]]:
    """Read a run's held-out scores by step and domain."""
    keys = {name: f"validation/{name}/{sweep.metric}" for name in sweep.domains}
    by_step: dict[int, dict[str, float]] = {}
    for row in read_metrics(run_directory):
        if scores := {name: float(row[key]) for name, key in keys.items() if key in row}:
            by_step[row["step"]] = scores
    return by_step


def count_multiply_adds(config: RunConfig) -> int:
    """Multiply-adds of a run's head per pair of a text and a video, with everything cached that depends on only one."""
    from glscl.models.architectures import (
        find_architecture,  # brings open_clip, which describing a sweep need not wait for
    )

    model = config.model
    width = find_architecture(model.clip).width
    lengths = (model.max_words, model.max_frames)
    head = build_head(model.head, width, getattr(model.heads, model.head), lengths)
    return int(head.implemented_multiply_adds(*lengths))


def trials_folder(sweep: SweepConfig) -> str:
    """Folder that holds one folder per trial."""
    return storage.join(sweep.directory, "trials")


def run_directories(sweep: SweepConfig, trial: str) -> list[str]:
    """Run directories of a trial's trainings."""
    return [storage.join(trials_folder(sweep), trial, fold) for fold in training_folds(sweep)]
