"""Shard sets of the domains of a study or sweep: where they are, making toy ones, and checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glscl.data.apart import NamedSet
from glscl.data.shards import MANIFEST, open_shard_set
from glscl.data.toy.sets import toy_set, toy_set_address
from glscl.errors import UserError
from glscl.evaluation.leakage import read_leakage_list
from glscl.runs.options import Domain, RunsConfig
from glscl.system import storage

FEATURES = "features"
"""Folder of the features of a study or sweep, in its directory."""


@dataclass(frozen=True, slots=True)
class Sets:
    """Addresses of a domain's shard sets; ``test`` is empty where it is only trained on, ``train`` where it is not."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: str

    @property
    def uris(self) -> list[str]:
        """All addresses."""
        return [*self.train, *self.validation, *([self.test] if self.test else [])]


def locate_sets(config: RunsConfig, *, make: bool = False) -> dict[str, Sets]:
    """Return the shard sets of every domain; ``make`` writes the toy sets that are missing (Ray must be running)."""
    return {name: _locate(config, name, domain, make) for name, domain in config.domains.items()}


def _locate(config: RunsConfig, name: str, domain: Domain, make: bool) -> Sets:
    toy, address = domain.toy, toy_set if make else toy_set_address
    if toy is None:
        train, validation = (tuple(map(config.address, uris)) for uris in (domain.train, domain.validation))
        return Sets(train, validation, config.address(domain.test) if domain.test else "")
    train = (address(config.storage, name, "train", toy.train),) if toy.train else ()
    validation = (address(config.storage, name, "dev", toy.dev),) if toy.dev else ()
    return Sets(train, validation, address(config.storage, name, "test", toy.test) if toy.test else "")


def sets_of_runs(config: RunsConfig, sets: Mapping[str, Sets], condition: str = "") -> dict[str, Sets]:
    """The shard sets that runs are given: those of the domains, or their features where the configuration says so.

    Lengths are part of features, so each ``condition`` has its own.
    """
    if not config.features:
        return dict(sets)
    folder = storage.join(config.directory, FEATURES, *filter(None, [condition]))

    def addresses(name: str, part: str, uris: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(storage.join(folder, name, f"{part}-{number}") for number in range(len(uris)))

    return {
        name: Sets(
            addresses(name, "train", own.train),
            addresses(name, "validation", own.validation),
            storage.join(folder, name, "test") if own.test else "",
        )
        for name, own in sets.items()
    }


def are_built(uris: Sequence[str]) -> bool:
    """Whether all these shard sets are there."""
    return all(storage.exists(storage.join(uri, MANIFEST)) for uri in uris)


def check_given_sets(config: RunsConfig) -> None:
    """Open the given sets and lists before Ray is started. Raises `UserError`: one is missing."""
    given = [domain for domain in config.domains.values() if domain.toy is None]
    uris = [uri for domain in given for uri in (*domain.train, *domain.validation, domain.test) if uri]
    if config.pretraining is not None:
        uris += config.pretraining.train
    for uri in uris:
        open_shard_set(config.address(uri))
    for uri in config.leakage_lists:
        read_leakage_list(uri)


@dataclass(frozen=True, slots=True)
class OpenSets:
    """The opened shard sets of all domains, by what they are for."""

    trained: list[NamedSet]
    held_out: list[NamedSet]
    tested: list[NamedSet]


def open_sets(sets: Mapping[str, Sets]) -> OpenSets:
    """Open all sets. Raises `UserError`: one is missing."""
    opened = OpenSets([], [], [])
    for name, domain in sets.items():
        opened.trained.extend(NamedSet.open(f"domains.{name}.train", uri) for uri in domain.train)
        opened.held_out.extend(NamedSet.open(f"domains.{name}.validation", uri) for uri in domain.validation)
        opened.tested.extend(NamedSet.open(f"domains.{name}.test", uri) for uri in (domain.test,) if uri)
    return opened


def check_domain_names(opened: Sequence[NamedSet], kind: str) -> None:
    """Check that opened sets are of the domain that names them in this ``kind``. Raises `UserError`: one is not."""
    for named in opened:
        name = named.key.removeprefix("domains.").rpartition(".")[0]
        if named.manifest.domain != name:
            raise UserError(
                f"{named} says that its domain is {named.manifest.domain}; name the domain so in the {kind}, or build "
                f"the shards with --domain {name}"
            )
