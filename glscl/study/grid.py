"""The cells of a study: which runs there are, each with its whole configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from glscl.data.apart import NamedSet, check_held_out, check_not_trained
from glscl.data.shards import open_shard_set
from glscl.data.toy.sets import toy_set, toy_set_address
from glscl.errors import UserError
from glscl.evaluation.leakage import read_leakage_list
from glscl.study.options import Domain, RunsConfig, StudyConfig, Values, merge
from glscl.study.results import UNION, ZERO_SHOT
from glscl.system import storage
from glscl.training.config import RunConfig, validate

CELLS = "cells"
RESULT = "cell.json"
PRETRAINING = "pretraining"
TOWERS = "towers.safetensors"


@dataclass(frozen=True, slots=True)
class Sets:
    """Shard sets of a domain; ``test`` is empty where it is only trained on."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: str

    @property
    def uris(self) -> list[str]:
        """All of them."""
        return [*self.train, *self.validation, *([self.test] if self.test else [])]


@dataclass(frozen=True, slots=True)
class Cell:
    """One training, tested on every test set; or the towers before any.

    Attributes:
        condition: name of the condition.
        variant: name of the variant; `ZERO_SHOT` for the towers alone.
        training: name of the domain, `UNION` or `ZERO_SHOT`.
        domains: domains trained on.
        seed: of the training; of the towers where they are random.
        config: the whole run. Its run directory is the cell's.
    """

    condition: str
    variant: str
    training: str
    domains: tuple[str, ...]
    seed: int
    config: RunConfig

    def to_values(self) -> dict[str, Any]:
        """Plain values, to send to another process."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"config": self.config.model_dump(mode="json")}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Cell:
        """What `to_values` sent."""
        return cls(**{**values, "config": RunConfig.model_validate(values["config"])})

    @property
    def directory(self) -> str:
        """The cell's run directory."""
        return self.config.run_directory

    @property
    def label(self) -> str:
        """For lines of the log."""
        if self.training == ZERO_SHOT:
            return f"{self.condition}: {ZERO_SHOT} towers"
        return f"{self.condition}: {self.variant} on {self.training}, seed {self.seed}"


def shard_sets(study: RunsConfig, *, make: bool) -> dict[str, Sets]:
    """The shard sets of every domain.

    Args:
        study: the study, or sweep.
        make: write the toy sets that are not there (Ray must be running); false only says where they are.
    """
    return {name: _sets(study, name, domain, make) for name, domain in study.domains.items()}


def _sets(study: RunsConfig, name: str, domain: Domain, make: bool) -> Sets:
    toy = domain.toy
    if toy is None:
        train, validation = (tuple(map(study.address, uris)) for uris in (domain.train, domain.validation))
        return Sets(train, validation, study.address(domain.test) if domain.test else "")
    address = partial(toy_set if make else toy_set_address, study.storage, name)
    validation = (address("dev", toy.dev),) if toy.dev else ()
    return Sets((address("train", toy.train),), validation, address("test", toy.test) if toy.test else "")


def check_given_sets(study: RunsConfig) -> None:
    """Open the shard sets and lists that are given, not made: what is missing is told before Ray is started.

    Raises:
        UserError: naming what is missing.
    """
    given = [domain for domain in study.domains.values() if domain.toy is None]
    uris = [uri for domain in given for uri in (*domain.train, *domain.validation, domain.test) if uri]
    if study.pretraining is not None:
        uris += study.pretraining.train
    for uri in uris:
        open_shard_set(study.address(uri))
    for item in study.leave_out if isinstance(study, StudyConfig) else ():
        read_leakage_list(study.address(item.list))


def pretraining_run(study: RunsConfig, *, make: bool) -> RunConfig | None:
    """The run that makes the towers, or None; see `shard_sets` for ``make``.

    Raises:
        UserError: the configuration is wrong.
    """
    options = study.pretraining
    if options is None:
        return None
    train = tuple(map(study.address, options.train))
    if options.toy is not None:
        address = toy_set if make else toy_set_address
        train = (address(study.storage, options.domain, "train", options.toy.train),)
    return build_run(study, study.directory, PRETRAINING, study.first_seed, [options.run], {"train": train})


def cells(study: StudyConfig, sets: Mapping[str, Sets]) -> list[Cell]:
    """Every cell: zero-shot towers first, then seed by seed, so that early results already compare everything.

    Raises:
        UserError: a variant, a condition or a domain makes a configuration that is wrong.
    """
    found = []
    tests = [sets[name].test for name in sets if sets[name].test]
    towers = pretrained_towers(study)
    trainings: dict[str, tuple[tuple[str, ...], Values]] = {n: ((n,), d.run) for n, d in study.domains.items()}
    if study.union and len(sets) > 1:
        trainings[UNION] = (tuple(sets), study.union_run)

    def run(condition: str, name: str, seed: int, parts: list[Values], domains: tuple[str, ...]) -> RunConfig:
        data = {
            "train": [uri for domain in domains for uri in sets[domain].train],
            "validation": [uri for domain in domains for uri in sets[domain].validation],
            "test": tests,
        }
        folder = storage.join(study.directory, CELLS, condition)
        return build_run(study, folder, name, seed, [study.conditions[condition], towers, *parts], data)

    for condition in study.conditions:
        if study.zero_shot:
            parts: list[Values] = [{"model": {"head": "mean_pool", "frame_context": "none", "position_std": None}}]
            config = run(condition, ZERO_SHOT, study.seeds[0], parts, ())
            found.append(Cell(condition, ZERO_SHOT, ZERO_SHOT, (), study.seeds[0], config))
    for seed in study.seeds:
        for condition in study.conditions:
            for training, (domains, own) in trainings.items():
                for variant, options in study.variants.items():
                    name = f"{variant}.{training}.s{seed}"
                    parts = [own, options.run, _leaks(study, domains)]
                    found.append(
                        Cell(condition, variant, training, domains, seed, run(condition, name, seed, parts, domains))
                    )
    return found


def _leaks(study: StudyConfig, domains: tuple[str, ...]) -> Values:
    """The lists of leaked videos that concern a training on ``domains``, one per tested domain."""
    lists: dict[str, str] = {}
    for item in study.leave_out:
        uri = study.address(item.list)
        if item.train in domains and lists.setdefault(item.test, uri) != uri:
            raise UserError(
                f"leave_out: two lists of {item.test} concern a training on {' and '.join(domains)} "
                f"({lists[item.test]}, {uri}); put them together in one file, or set union to false"
            )
    return {"evaluation": {"leave_out": [f"{test}={uri}" for test, uri in lists.items()]}} if lists else {}


def pretrained_towers(study: RunsConfig) -> Values:
    """What tells a run to start from the towers that the pretraining made, if there is one."""
    return {"model": {"pretrained": storage.join(study.directory, TOWERS)}} if study.pretraining else {}


def build_run(
    study: RunsConfig, folder: str, name: str, seed: int, parts: Sequence[Values], data: Mapping[str, Any]
) -> RunConfig:
    """One run of a study or sweep: the shared one, then ``parts``, then what is this run's alone.

    Args:
        study: the study or sweep.
        folder: in which the run directory is.
        name: of the run directory.
        seed: of the training.
        parts: what differs from the shared run, the later winning.
        data: ``train``, ``validation`` and ``test``.

    Raises:
        UserError: the configuration is wrong.
    """
    fixed = {"name": name, "storage": folder, "seed": seed, "data": dict(data)}
    where = f"{study.kind} {study.name}, {name}"
    config = validate(merge(study.run, *parts, fixed), where).resolved()
    if config.training.is_elastic:
        raise UserError(
            f"{where}: training.num_workers is a range, but runs share the nodes among them: give one number; nodes "
            f"that come or go change how many run at once"
        )
    return config


def check_sets(study: StudyConfig, sets: Mapping[str, Sets]) -> list[str]:
    """Open every shard set and every list of leaked videos, and see that no test set is trained or selected on.

    Returns:
        notes on sets that could not be compared.

    Raises:
        UserError: naming what is missing or shared.
    """
    trained, held_out, tested = named_sets(sets)
    for own in tested:
        name = domain_of(own)
        if own.manifest.domain != name:
            raise UserError(
                f"{own} says that its domain is {own.manifest.domain}; name the domain so in the study, or build the "
                f"shards with --domain {name}"
            )
    notes = check_held_out(held_out, trained, tested)
    known = {item.test for item in study.leave_out if item.train == item.test}
    notes += check_not_trained(
        [own for own in tested if own.manifest.domain not in known],
        trained,
        "test on other videos, or list these under leave_out",
    )
    for item in study.leave_out:
        read_leakage_list(study.address(item.list))
    return notes


def named_sets(sets: Mapping[str, Sets]) -> tuple[list[NamedSet], list[NamedSet], list[NamedSet]]:
    """Training, held-out and test sets of all domains, opened.

    Raises:
        UserError: one is missing.
    """
    trained = [NamedSet.open(f"domains.{name}.train", uri) for name, own in sets.items() for uri in own.train]
    held_out = [
        NamedSet.open(f"domains.{name}.validation", uri) for name, own in sets.items() for uri in own.validation
    ]
    tested = [NamedSet.open(f"domains.{name}.test", own.test) for name, own in sets.items() if own.test]
    return trained, held_out, tested


def domain_of(named: NamedSet) -> str:
    """The domain of the configuration that names a set of `named_sets`."""
    return named.key.removeprefix("domains.").rpartition(".")[0]
