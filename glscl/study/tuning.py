"""Variants with settings that a sweep has found: read from its directory, and held to equal budgets."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from glscl.errors import UserError
from glscl.runs.options import Values, merge
from glscl.study.options import StudyConfig, VariantOptions
from glscl.system import storage
from glscl.training.config import read_yaml


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the settings of a variant were found."""

    trials: int
    steps: int  # of one training
    metric: str  # on held-out parts
    objective: str  # how the domains' metrics make one number
    domains: tuple[str, ...]
    values: Mapping[str, object]  # dotted keys of the winner

    @property
    def budget(self) -> str:
        """What has to be equal between heads, in words."""
        on = ", ".join(self.domains)
        return f"{self.trials} trials of {self.steps} steps for {self.objective} of {self.metric} held out of {on}"


class _Trial(BaseModel):
    name: str
    values: dict[str, object]


class _Budget(BaseModel):
    ended: int


class _Sweep(BaseModel):
    """What is read of a sweep's ``results.json``."""

    planned: int
    steps: int
    metric: str
    objective: str
    domains: tuple[str, ...]
    best: str | None
    trials: list[_Trial]
    budget: _Budget


def with_tuned_settings(study: StudyConfig) -> StudyConfig:
    """The study with the settings of its sweeps' winners in every variant that is `tuned`.

    Raises `UserError`: a sweep is missing, unfinished or of another head, or two were given different budgets.
    """
    tunings = read_tunings(study)
    changed = {
        name: variant.model_copy(update={"run": merge(variant.run, _nest(tunings[name].values))})
        for name, variant in study.variants.items()
        if name in tunings
    }
    return study.model_copy(update={"variants": study.variants | changed})


def read_tunings(study: StudyConfig) -> dict[str, Tuning]:
    """Read the sweeps of all tuned variants; raises as `with_tuned_settings` does."""
    tunings = {name: _read(study, name, variant) for name, variant in study.variants.items() if variant.tuned}
    budgets: dict[str, str] = {}
    for name, tuning in tunings.items():
        budgets.setdefault(tuning.budget, name)
    if len(budgets) > 1:
        found = "; ".join(f"{name}: {budget}" for budget, name in budgets.items())
        raise UserError(f"variants: tuned heads need equal budgets, so that none has an advantage, but have {found}")
    return tunings


def _read(study: StudyConfig, name: str, variant: VariantOptions) -> Tuning:
    where = f"variants.{name}.tuned"
    folder = study.other_directory(variant.tuned or "")
    address = storage.join(folder, "results.json")
    if not storage.exists(address):
        raise UserError(f"{where}: {address}: no such file; finish the sweep first (`glscl sweep`)")
    try:
        sweep = _Sweep.model_validate(storage.read_json(address))
    except (ValidationError, ValueError):
        raise UserError(f"{where}: {address}: not the results of a sweep") from None
    if sweep.budget.ended < sweep.planned or sweep.best is None:
        ended = f"{sweep.budget.ended} of {sweep.planned} trials have ended"
        raise UserError(f"{where}: {folder}: {ended}; the same `glscl sweep` goes on with the others")
    best = read_yaml(storage.join(folder, "best.yaml"))
    heads = [_head(best), _head(variant.run)]
    if heads[0] != heads[1]:
        raise UserError(f"{where}: {folder} has tuned the head {heads[0]}, and this variant has {heads[1]}")
    values = next(trial.values for trial in sweep.trials if trial.name == sweep.best)
    return Tuning(sweep.planned, sweep.steps, sweep.metric, sweep.objective, sweep.domains, values)


def _head(run: Mapping[str, object]) -> object:
    model = run.get("model")
    return model.get("head", "glscl") if isinstance(model, Mapping) else "glscl"


def _nest(values: Mapping[str, object]) -> Values:
    nested: Values = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        layer: Values = {last: value}
        for section in reversed(sections):
            layer = {section: layer}
        nested = merge(nested, layer)
    return nested


def describe_tunings(tunings: Mapping[str, Tuning]) -> dict[str, str]:
    """Budget and settings of every tuned variant, as an entry of the protocol; empty where none is tuned."""
    if not tunings:
        return {}
    budget = next(iter(tunings.values())).budget
    found = "; ".join(f"{name}: {_settings(tuning.values)}" for name, tuning in tunings.items())
    return {"Tuning": f"{budget}, the same for every tuned variant ({found}); the others as the plan has them"}


def _settings(values: Mapping[str, object]) -> str:
    texts = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in values.items()}
    return ", ".join(f"{key} {text}" for key, text in texts.items())
