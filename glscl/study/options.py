"""Configuration of a study: one YAML file, or a packaged one by name."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, ClassVar, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from glscl.errors import UserError, did_you_mean
from glscl.options import Options
from glscl.options.mistakes import describe_mistake
from glscl.options.packaged import is_file, yaml_names
from glscl.study.results import UNION, ZERO_SHOT, Group
from glscl.system import storage

_STUDIES = resources.files("glscl") / "presets" / "studies"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")

Values = dict[str, Any]
"""Part of a run's configuration, nested as in its YAML."""


class ToySets(Options):
    """How many videos of a toy domain to make."""

    train: int = Field(ge=1)
    dev: int = Field(default=0, ge=0)
    test: int = Field(default=0, ge=0)


class Domain(Options):
    """A domain to train and to test on."""

    train: tuple[str, ...] = ()
    """Shard sets to train on."""
    validation: tuple[str, ...] = ()
    """Held-out part of this domain, on which its models' best checkpoint is chosen; none keeps the last step."""
    test: str = ""
    """Shard set to test on, whatever was trained on; empty: this domain is only trained on."""
    toy: ToySets | None = None
    """Instead of the three: make the toy domain of this name."""
    run: Values = Field(default_factory=dict)
    """What differs in runs that train on this domain alone, such as training.epochs."""

    @model_validator(mode="after")
    def _one_source(self) -> Domain:
        if bool(self.train) == (self.toy is not None):
            raise ValueError("give either train (shard sets) or toy (numbers of videos)")
        if self.toy is not None and (self.validation or self.test):
            raise ValueError("toy makes validation and test too; leave them out")
        return self


class Pretraining(Options):
    """A run before the study, whose towers every cell starts from (in place of model.pretrained)."""

    domain: str
    """Name, and where it is a toy domain's, which to make."""
    train: tuple[str, ...] = ()
    """Shard sets to train on."""
    toy: ToySets | None = None
    """Instead of train: make the toy domain of this name."""
    run: Values = Field(default_factory=dict)
    """What differs from the study's run."""

    @model_validator(mode="after")
    def _one_source(self) -> Pretraining:
        if bool(self.train) == (self.toy is not None):
            raise ValueError("give either train (shard sets) or toy (numbers of videos)")
        return self


class VariantOptions(Options):
    """A head with its options and losses."""

    group: Group
    """consistency: global-local consistency; attention: between text and frames; pooling: neither; ablation: a
    consistency head without its losses or one of its parts."""
    what: str
    """In a few words, for the report."""
    run: Values
    """What makes it: model.head, its options, its losses."""


class LeaveOut(Options):
    """Test videos of one domain that were trained on, or nearly so, in another (or the same)."""

    test: str
    """Domain that the videos are tested in."""
    train: str
    """Domain whose training part holds them or near-duplicates of them."""
    list: str
    """File that names them; see `glscl eval`'s --leave-out."""


class RunsConfig(Options):
    """What configurations of many runs have in common: where their data come from, and where everything goes."""

    kind: ClassVar[str]
    """What such a collection of runs is called."""

    name: str
    """Name of the study or sweep; the same name continues it."""
    storage: str = "runs"
    """Folder or s3:// prefix in which its directory is made."""
    root: str = ""
    """Folder or s3:// prefix under which shard sets and lists are that are not given as absolute paths or addresses;
    empty is the current folder."""
    label: str
    """What the figures are figures of; the report shows it first."""
    domains: dict[str, Domain]
    """By name."""
    run: Values
    """The run that all share."""
    pretraining: Pretraining | None = None
    """Where the towers come from, if they are made first, by a run of their own."""
    concurrent: int | None = Field(default=None, ge=1)
    """Most trainings at once; none takes as many as the cluster has room for."""

    @model_validator(mode="after")
    def _consistent_runs(self) -> Self:
        check_names("domains", self.domains)
        check_names("name", (self.name,))
        for key in ("name", "storage", "seed", "data.train", "data.validation", "data.test"):
            if has_key(self.run, key):
                raise ValueError(f"run: {key} follows from the {self.kind}'s own keys (name, storage, seeds, domains)")
        return self

    @property
    @abstractmethod
    def first_seed(self) -> int:
        """Of what is trained once for all."""

    @property
    def directory(self) -> str:
        """Absolute path or URI of its directory."""
        return storage.join(storage.resolve(self.storage), self.name)

    def address(self, path: str) -> str:
        """A shard set or list under `root`, unless it says itself where it is."""
        return storage.join(self.root, path) if self.root and "://" not in path and path[:1] not in "/~" else path


RunsType = TypeVar("RunsType", bound=RunsConfig)


class StudyConfig(RunsConfig):
    """Heads × training domains × test domains × seeds. Each domain is trained on alone, and tested on by all."""

    kind = "study"

    name: str = "study"
    """Name of the study; the same name continues it."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of every variant's trainings. Intervals need three."""
    union: bool = True
    """Also train on all domains together."""
    union_run: Values = Field(default_factory=dict)
    """What differs in those runs."""
    zero_shot: bool = True
    """Also test the towers as they are before any training, pooling frames by their mean."""
    conditions: dict[str, Values]
    """By name: what differs, such as model.max_words and model.max_frames; everything is trained and tested in each."""
    variants: dict[str, VariantOptions]
    """By name, in the order of the report."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs of variants whose difference is asked for; empty: every consistency variant with every attention one. The
    claims begin with the first."""
    leave_out: tuple[LeaveOut, ...] = ()
    """Leaked test videos; the report gives results with and without them."""
    resamples: int = Field(default=10_000, ge=100)
    """Of the queries, for intervals and p-values."""
    examples: int = Field(default=6, ge=0)
    """Queries shown that one variant finds and another loses."""
    keep_models: bool = True
    """Keep each cell's model, for `glscl eval`; its checkpoints go once it is finished."""

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("give at least one seed, each once, none negative")
        return seeds

    @model_validator(mode="after")
    def _consistent(self) -> StudyConfig:
        check_names("variants", self.variants)
        check_names("conditions", self.conditions)
        for kind, known, used in (
            ("comparisons", self.variants, [name for pair in self.comparisons for name in pair]),
            ("leave_out", self.domains, [name for item in self.leave_out for name in (item.test, item.train)]),
        ):
            for name in used:
                if name not in known:
                    raise ValueError(f"{kind}: '{name}' is none of {', '.join(known)}{did_you_mean(name, known)}")
        if any(first == second for first, second in self.comparisons):
            raise ValueError("comparisons: a variant is compared with itself")
        if not any(domain.test or (domain.toy and domain.toy.test) for domain in self.domains.values()):
            raise ValueError("domains: none has a test set")
        return self

    @property
    def first_seed(self) -> int:
        """Of the pretraining and the towers."""
        return self.seeds[0]

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The comparisons, the default ones where none are named."""
        ours, others = ([n for n, v in self.variants.items() if v.group == g] for g in ("consistency", "attention"))
        return self.comparisons or tuple((first, second) for first in ours for second in others)


def merge(*parts: Mapping[str, Any]) -> Values:
    """Nested mappings over one another, the later winning key by key."""
    merged: Values = {}
    for part in parts:
        for key, value in part.items():
            before = merged.get(key)
            merged[key] = merge(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return merged


def check_names(what: str, names: Collection[str]) -> None:
    """See that there are names, and that all of them can be names of folders.

    Raises:
        ValueError: naming the first that cannot.
    """
    if not names:
        raise ValueError(f"{what}: none given")
    for name in names:
        if not _NAME.match(name) or name in (ZERO_SHOT, UNION):
            raise ValueError(
                f"{what}: '{name}' cannot be a name: letters, digits, '.', '_' and '-', and neither "
                f"'{ZERO_SHOT}' nor '{UNION}'"
            )


def has_key(values: Mapping[str, Any], key: str) -> bool:
    """Whether nested values have a dotted key."""
    head, _, rest = key.partition(".")
    if head not in values:
        return False
    return not rest or (isinstance(values[head], Mapping) and has_key(values[head], rest))


def study_names() -> list[str]:
    """Names of the packaged studies."""
    return yaml_names(_STUDIES)


def study_text(name: str) -> str:
    """A packaged study as commented YAML.

    Raises:
        UserError: no such study.
    """
    return packaged_text(_STUDIES, StudyConfig.kind, name)


def packaged_text(folder: Traversable, kind: str, name: str) -> str:
    """A packaged study or sweep as commented YAML.

    Raises:
        UserError: no such one.
    """
    if name not in (known := yaml_names(folder)):
        raise UserError(f"no {kind} '{name}'{did_you_mean(name, known)}; packaged: {', '.join(known)}")
    return (folder / f"{name}.yaml").read_text(encoding="utf-8")


def load_study(source: str, **changes: Any) -> StudyConfig:
    """Read a study; see `load_runs`."""
    return load_runs(StudyConfig, source, study_text, changes)


def load_runs(
    model: type[RunsType], source: str, text_of: Callable[[str], str], changes: Mapping[str, Any]
) -> RunsType:
    """Read the YAML file (local or ``s3://``) of a study or sweep, or a packaged one by name.

    Args:
        model: what to read.
        source: path, address or name.
        text_of: packaged ones by name.
        changes: top-level keys to replace, such as ``storage``.

    Raises:
        UserError: missing file, bad YAML, unknown key or bad value, with the key's full name.
    """
    text = None if is_file(source) else text_of(source)
    from glscl.training.config import read_yaml  # brings torch, which a misspelt name need not wait for

    where = source if text is None else f"{model.kind} {source}"
    values = read_yaml(source, text)
    try:
        return model.model_validate(values | dict(changes))
    except ValidationError as error:
        raise UserError(f"{where}: {describe_mistake(error, model)}") from None
