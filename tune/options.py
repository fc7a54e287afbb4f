"""Options of a sweep: one YAML file, or a packaged one by name."""

from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from glscl.evaluation.metrics import HELD_OUT_METRICS
from glscl.runs.options import RunsConfig, Values, merge
from glscl.system import storage
from tune.space import Draw, Space, ready_made

Objective = Literal["mean", "worst", "leave_one_domain_out"]
if TYPE_CHECKING:
    Metric = str
else:
    Metric = Literal[HELD_OUT_METRICS]
_POPULATION = ("pbt", "pb2", "population", "population_based", "pbt_replay")


class SweepConfig(RunsConfig):
    """A search over keys of a run's configuration, scored on held-out parts of the training domains."""

    kind = "sweep"
    packaged = resources.files("tune") / "presets"

    name: str = "sweep"
    """Name of the sweep; the same name continues it."""
    base: str = ""
    """Preset or YAML file of `glscl train` that `run` differs from; empty is the defaults."""
    run: Values = Field(default_factory=dict)
    """What differs from `base`, in every trial."""
    spaces: tuple[str, ...] = ()
    """Ready-made spaces, by name."""
    space: dict[str, Draw] = Field(default_factory=dict)
    """By configuration key: how its values are drawn. Wins over the ready-made ones."""
    objective: Objective = "mean"
    """Across domains: the mean of their held-out parts' scores, the worst of them, or, of trainings that each leave one
    domain out, the mean of the scores on the held-out part of the one left out."""
    metric: Metric = HELD_OUT_METRICS[0]
    """What a domain's held-out part is scored by."""
    cost: Literal["none", "multiply_adds"] = "none"
    """Second objective: the head's multiply-adds per pair of a text and a video, to be low."""
    trials: int = Field(default=16, ge=1)
    """Sets of values tried."""
    searcher: Literal["optuna", "random"] = "optuna"
    """Optuna's TPE, which learns from the trials before, or chance."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """What stops trials early: asynchronous successive halving, the median of the others, or nothing."""
    grace_steps: int | None = Field(default=None, ge=1)
    """Steps that every trial is given; none is until its first scoring."""
    reduction_factor: float = Field(default=3.0, gt=1)
    """ASHA keeps the best 1/this of the trials at each rung; rungs lie this factor apart."""
    seed: int = Field(default=1, ge=0)
    """Of the searcher, and of every trial's training."""
    confirm_seeds: int = Field(default=3, ge=0)
    """Trainings each of the winner and of the default configuration, with seeds that the search did not use; 0 leaves
    the comparison out."""
    keep_models: bool = False
    """Keep the models of all trials that finished, not only the winner's."""

    @field_validator("scheduler", mode="before")
    @classmethod
    def _no_population(cls, value: Any) -> Any:
        if str(value).lower() in _POPULATION:
            raise ValueError(
                "population-based training needs checkpoints that Ray Tune itself copies between trials; trials here "
                "are Ray Train runs that keep their own, and Tune would go on without ever copying one, silently. "
                "Choose asha, median or none"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_domains()
        if self.objective == "leave_one_domain_out":
            if len(self.domains) < 2:
                raise ValueError("objective: leave_one_domain_out needs two domains or more; choose mean, or add one")
            if (self.run.get("data") or {}).get("weights"):
                raise ValueError("run.data.weights: each training leaves another domain out; leave weights out")
        if self.cost != "none" and self.scheduler != "none":
            raise ValueError(
                f"cost: with two objectives nothing says which of two trials is the worse one to stop; set scheduler "
                f"to none (it is {self.scheduler})"
            )
        if self.cost != "none" and self.searcher != "optuna":
            raise ValueError("cost: only the searcher optuna takes two objectives")
        return self

    def _check_domains(self) -> None:
        for name, domain in self.domains.items():
            if not domain.is_trained:
                raise ValueError(f"domains.{name}: nothing to train on; give train, or toy.train")
            if domain.run:
                raise ValueError(f"domains.{name}.run: a sweep trains on domains together; put it in run")
            if len(domain.validation) > 1:
                raise ValueError(f"domains.{name}.validation: give one held-out part; the metric is named by domain")
            if not domain.validation and not (domain.toy and domain.toy.dev):
                raise ValueError(
                    f"domains.{name}: no held-out part to score trials on; give validation (`glscl shards build "
                    f"--hold-out` makes one), or toy.dev"
                )

    @property
    def first_seed(self) -> int:
        """Of the pretraining and of every trial."""
        return self.seed

    @property
    def searched(self) -> Space:
        """The ready-made spaces and the sweep's own, put together. Raises `UserError`: no such space."""
        space: Space = {}
        for name in self.spaces:
            space |= ready_made(name)[1]
        return space | self.space

    @classmethod
    def load(cls, source: str, **changes: str) -> Self:
        """Read a sweep as any collection of runs; its ``run`` is then the whole run: `base` with what differs."""
        sweep = super().load(source, **changes)
        from glscl.models.options import ModelConfig
        from glscl.training.config import load_config

        base = load_config(sweep.base).model_dump(exclude_unset=True) if sweep.base else {}
        for key in ("name", "storage", "seed"):
            base.pop(key, None)
        for key in ("train", "validation", "test"):
            base.get("data", {}).pop(key, None)
        run = merge(base, sweep.run)
        model = run.get("model") or {}
        named = {key: model[key] for key in ("clip", "pretrained", "tokenizer") if isinstance(model.get(key), str)}
        files = ModelConfig.model_validate(named).resolved().model_dump(include=set(named))
        # Trials run in other folders than this command.
        update = {"storage": storage.resolve(sweep.storage), "root": storage.resolve(sweep.root or ".")}
        return sweep.model_copy(update=update | {"run": merge(run, {"model": files}) if files else run})
