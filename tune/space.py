"""The space of a sweep: the configuration keys that are searched, and how their values are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from glscl.errors import UserError, did_you_mean
from glscl.options import Options
from glscl.options.mistakes import nearest_key
from glscl.options.packaged import yaml_names
from glscl.runs.options import Values as Tree
from glscl.runs.options import merge

if TYPE_CHECKING:  # brings torch, which the name of a sweep need not wait for
    from glscl.training.config import RunConfig

SPACES = resources.files("tune") / "spaces"

Value = bool | int | float | str | None
Values = Mapping[str, Value]
"""Values by configuration key."""

_BUDGET = ("training.global_batch", "training.epochs", "training.max_steps")
_MACHINES = (
    "training.num_workers",
    "training.use_gpu",
    "training.cpus_per_worker",
    "training.wait_for_nodes_s",
    "training.max_failures",
    "training.log_every",
)
REFUSED = {
    "name": "the sweep names its trials",
    "storage": "the sweep says where its trials lie",
    "seed": "trials must differ in nothing but what is searched",
    "data": "trials must learn from the same data",
    "checkpoint": "it changes no model",
    "evaluation": "it changes no model",
    **dict.fromkeys(_BUDGET, "trials must have the same budget, or early stopping compares unequal things"),
    **dict.fromkeys(_MACHINES, "the machines are the same for all trials"),
}
"""Keys, and sections, that cannot be searched, and why."""


class Draw(Options):
    """How a value is drawn; exactly one of these."""

    uniform: tuple[float, float] | None = None
    """From the first to the second number."""
    loguniform: tuple[float, float] | None = None
    """The same, evenly in the logarithm."""
    randint: tuple[int, int] | None = None
    """Whole numbers, both ends included."""
    lograndint: tuple[int, int] | None = None
    """The same, evenly in the logarithm."""
    choice: tuple[Value, ...] | None = Field(default=None, min_length=1)
    """One of these."""

    @model_validator(mode="after")
    def _sound(self) -> Draw:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        if self.choice is not None:
            if len(set(map(repr, self.choice))) < len(self.choice):
                raise ValueError("a choice is given twice")
            return self
        low, high = self.ends
        if low >= high:
            raise ValueError(f"the lower end, {low:g}, is not below the upper one, {high:g}")
        if self.is_log and low <= 0:
            raise ValueError(f"{given[0]} needs ends above 0, and starts at {low:g}")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Lowest and highest number; not for a choice."""
        pair = self.uniform or self.loguniform or self.randint or self.lograndint
        assert pair is not None, "a choice has no ends"
        return pair

    @property
    def is_log(self) -> bool:
        """Whether it is drawn evenly in the logarithm."""
        return self.loguniform is not None or self.lograndint is not None

    @property
    def is_whole(self) -> bool:
        """Whether numbers are whole."""
        return self.randint is not None or self.lograndint is not None

    def samples(self) -> list[Value]:
        """Values that stand for all: the ends and one between, or every choice."""
        if self.choice is not None:
            return list(self.choice)
        low, high = self.ends
        share = 0.618034  # no whole number between whole ends: a key for whole numbers refuses it
        between = low * (high / low) ** share if self.is_log else low + share * (high - low)
        return [int(low), round(between), int(high)] if self.is_whole else [low, between, high]

    def domain(self) -> Any:
        """As Ray Tune has it (whose integers end before the upper end)."""
        from ray import tune

        if self.choice is not None:
            return tune.choice(list(self.choice))
        low, high = self.ends
        if self.is_whole:
            return (tune.lograndint if self.is_log else tune.randint)(int(low), int(high) + 1)
        return (tune.loguniform if self.is_log else tune.uniform)(low, high)

    def distribution(self) -> Any:
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choice is not None:
            return CategoricalDistribution(self.choice)
        low, high = self.ends
        if self.is_whole:
            return IntDistribution(int(low), int(high), log=self.is_log)
        return FloatDistribution(low, high, log=self.is_log)

    def describe(self) -> str:
        """In a few words."""
        if self.choice is not None:
            return "one of " + ", ".join(map(str, self.choice))
        low, high = self.ends
        return f"{low:g} to {high:g}{', logarithmic' if self.is_log else ''}{', whole' if self.is_whole else ''}"


class _ReadyMade(Options):
    """A packaged space."""

    head: str
    """Head that it is for."""
    space: dict[str, Draw]


Space = dict[str, Draw]


def ready_made(name: str) -> tuple[str, Space]:
    """A packaged space, and the head that it is for.

    Raises:
        UserError: no such space.
    """
    if name not in (known := yaml_names(SPACES)):
        raise UserError(f"spaces: no space '{name}'{did_you_mean(name, known)}; packaged: {known}")
    text = (SPACES / f"{name}.yaml").read_text(encoding="utf-8")
    from glscl.training.config import read_yaml

    packaged = _ReadyMade.model_validate(read_yaml(f"space {name}", text))
    return packaged.head, packaged.space


def nest(values: Values) -> Tree:
    """Turn ``{"a.b": 1}`` into ``{"a": {"b": 1}}``."""
    tree: Tree = {}
    for key, value in values.items():
        branch: Any = value
        for name in reversed(key.split(".")):
            branch = {name: branch}
        tree = merge(tree, branch)
    return tree


def value_at(config: RunConfig, key: str) -> Value:
    """Return a configuration's value under a dotted key."""
    value: Value = attrgetter(key)(config)
    return value


def check_space(space: Space, base: RunConfig) -> None:
    """Check that every key can be searched, and that the configuration takes every value.

    Raises:
        UserError: naming the key.
    """
    if not space:
        raise UserError("space: nothing to search; name keys under space, or a ready-made one under spaces")
    _check_keys(space, base)
    _check_values(space, base)


def _check_keys(space: Space, base: RunConfig) -> None:
    from glscl.training.config import keys

    known = set(keys())
    heads = space["model.head"].choice or () if "model.head" in space else (base.model.head,)
    for key in space:
        if key not in known:
            raise UserError(f"space: unknown key '{key}'{nearest_key(key, known)}")
        refused = next((name for name in REFUSED if key == name or key.startswith(f"{name}.")), None)
        if refused is not None:
            raise UserError(f"space: {key} cannot be searched: {REFUSED[refused]}")
    for key in space:
        head = key.split(".")[2] if key.startswith("model.heads.") else None
        if head is not None and head not in heads:
            raise UserError(f"space: {key} does nothing, the head is {', '.join(map(str, heads))} (model.head)")


def _check_values(space: Space, base: RunConfig) -> None:
    """Try the corners of the space, and every sample of every key by itself."""
    from glscl.training.config import validate

    plain = base.model_dump(mode="json")
    corners = [{key: draw.samples()[end] for key, draw in space.items()} for end in (0, -1)]
    for values in [*corners, *({key: value} for key, draw in space.items() for value in draw.samples())]:
        made = validate(merge(plain, nest(values)), "space")
        for key, value in values.items():
            taken = value_at(made, key)
            if taken != value or isinstance(taken, bool) != isinstance(value, bool):
                raise UserError(f"space: {key} = {value!r} becomes {taken!r}: it is not of the key's type")
