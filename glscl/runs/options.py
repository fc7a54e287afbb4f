"""Options that the configurations of studies and sweeps have in common, and how such a file is read."""

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping
from importlib.resources.abc import Traversable
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, model_validator

from glscl.errors import UserError, did_you_mean
from glscl.options import Options
from glscl.options.mistakes import describe_mistake
from glscl.options.packaged import is_file, yaml_names
from glscl.system import storage

ZERO_SHOT = "zero-shot"  # name of the training that is none, and of its only variant
UNION = "union"  # name of the training on all domains at once

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")

Values = dict[str, Any]  # a piece of a run's configuration, nested as in its YAML


class ToySets(Options):
    """How many videos of a toy domain to make."""

    train: int = Field(default=0, ge=0)
    """0: the domain is only tested on."""
    dev: int = Field(default=0, ge=0)
    test: int = Field(default=0, ge=0)


class _Source(Options):
    train: tuple[str, ...] = ()
    """Shard sets to train on."""
    toy: ToySets | None = None
    """Instead of shard sets: make the toy domain of this name."""

    @property
    def is_trained(self) -> bool:
        """Whether it has something to train on."""
        return bool(self.train or (self.toy and self.toy.train))

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.train) == (self.toy is not None) and not self._only_tested:
            raise ValueError("give either train (shard sets) or toy (numbers of videos)")
        if not self.is_trained and not self._only_tested:
            raise ValueError("toy.train: how many videos to train on is missing")
        return self

    @property
    def _only_tested(self) -> bool:
        return False


class Domain(_Source):
    """A domain to train and to test on; without a part to train on, only to test on."""

    validation: tuple[str, ...] = ()
    """Held-out part of this domain, on which its models' best checkpoint is chosen; none keeps the last step."""
    test: str = ""
    """Shard set to test on, whatever was trained on; empty: this domain is only trained on."""
    run: Values = Field(default_factory=dict)
    """What differs in runs that train on this domain alone, such as training.epochs."""

    @property
    def is_tested(self) -> bool:
        """Whether it has a test set."""
        return bool(self.test or (self.toy and self.toy.test))

    @property
    def _only_tested(self) -> bool:
        return self.is_tested and not self.is_trained

    @model_validator(mode="after")
    def _toy_has_all(self) -> Self:
        if self.toy is not None and (self.validation or self.test):
            raise ValueError("toy makes validation and test too; leave them out")
        if self._only_tested and (self.run or self.validation or (self.toy and self.toy.dev)):
            raise ValueError("without a part to train on it is only tested on; leave run and the held-out part out")
        return self


class Pretraining(_Source):
    """A run before the study, whose towers every cell starts from (in place of model.pretrained)."""

    domain: str
    """Name, and where it is a toy domain's, which to make."""
    run: Values = Field(default_factory=dict)
    """What differs from the study's run."""


class RunsConfig(Options):
    """Options that studies and sweeps share: where their data come from, and where everything goes."""

    kind: ClassVar[str]
    """What such a collection of runs is called."""
    packaged: ClassVar[Traversable]
    """Folder of the packaged ones."""

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
    features: bool = False
    """Run the towers once over every shard set, before the first run, and give all runs their features in place of the
    videos (see `glscl encode`): for frozen towers (model.freeze)."""
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
        """Seed of what is trained once for all runs."""

    @property
    def leakage_lists(self) -> tuple[str, ...]:
        """Addresses of the lists of leaked test videos."""
        return ()

    @property
    def directory(self) -> str:
        """Absolute path or URI of the directory of the study or sweep."""
        return storage.join(storage.resolve(self.storage), self.name)

    def address(self, path: str) -> str:
        """Address of a shard set or list: under `root`, unless it is absolute itself."""
        return storage.join(self.root, path) if self.root and "://" not in path and path[:1] not in "/~" else path

    @classmethod
    def names(cls) -> list[str]:
        """Names of the packaged ones."""
        return yaml_names(cls.packaged)

    @classmethod
    def text(cls, name: str) -> str:
        """A packaged one as commented YAML. Raises `UserError`: there is none of this name."""
        if name not in (known := cls.names()):
            raise UserError(f"no {cls.kind} '{name}'{did_you_mean(name, known)}; packaged: {', '.join(known)}")
        return (cls.packaged / f"{name}.yaml").read_text(encoding="utf-8")

    @classmethod
    def load(cls, source: str, **changes: str) -> Self:
        """Read a YAML file (local or ``s3://``), or a packaged one by name; ``changes`` replace top-level keys.

        Raises `UserError`: missing file, bad YAML, unknown key or bad value, with the key's full name.
        """
        text = None if is_file(source) else cls.text(source)
        from glscl.training.config import read_yaml  # brings torch, which a misspelt name need not wait for

        values = read_yaml(source, text)
        try:
            return cls.model_validate(values | changes)
        except ValidationError as error:
            where = source if text is None else f"{cls.kind} {source}"
            raise UserError(f"{where}: {describe_mistake(error, cls)}") from None


def merge(*layers: Mapping[str, Any]) -> Values:
    """Merge nested mappings, the later winning key by key."""
    merged: Values = {}
    for layer in layers:
        for key, value in layer.items():
            before = merged.get(key)
            merged[key] = merge(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return merged


def check_names(what: str, names: Collection[str]) -> None:
    """Check that there are names, each good for a folder. Raises `ValueError`: there are none, or one is not."""
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
