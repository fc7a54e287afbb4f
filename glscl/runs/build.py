"""Building the whole configuration of one run of a study or sweep, and of its pretraining."""

from collections.abc import Mapping, Sequence

from glscl.data.toy.sets import toy_set, toy_set_address
from glscl.errors import UserError
from glscl.runs.options import RunsConfig, Values, merge
from glscl.system import storage
from glscl.training.config import RunConfig, validate

PRETRAINING = "pretraining"
TOWERS = "towers.safetensors"


def build_run(
    config: RunsConfig, folder: str, name: str, seed: int, changes: Sequence[Values], data: Mapping[str, Sequence[str]]
) -> RunConfig:
    """Build one run in ``folder``: the shared one, then ``changes``, the later winning, then what is this run's alone.

    ``data`` has ``train``, ``validation`` and ``test``. Raises `UserError`: the configuration is wrong.
    """
    fixed: Values = {"name": name, "storage": folder, "seed": seed, "data": dict(data)}
    where = f"{config.kind} {config.name}, {name}"
    run = validate(merge(config.run, *changes, fixed), where).resolved()
    if run.training.is_elastic:
        raise UserError(
            f"{where}: training.num_workers is a range, but runs share the nodes among them: give one number; nodes "
            f"that come or go change how many run at once"
        )
    if run.evaluation.frames:
        raise UserError(f"{where}: evaluation.frames: a study names other orders of frames under its own `controls`")
    return run


def build_pretraining(config: RunsConfig, *, make: bool) -> RunConfig | None:
    """Build the run that makes the towers; None if there is none. Raises `UserError`: it is wrong.

    ``make`` writes its toy set if that is missing (Ray must be running).
    """
    options = config.pretraining
    if options is None:
        return None
    train = tuple(map(config.address, options.train))
    if options.toy is not None:
        address = toy_set if make else toy_set_address
        train = (address(config.storage, options.domain, "train", options.toy.train),)
    changes: list[Values] = [{"model": {"freeze": "none"}}, options.run]  # whatever the runs do with these towers
    return build_run(config, config.directory, PRETRAINING, config.first_seed, changes, {"train": train})


def pretrained_towers(config: RunsConfig) -> Values:
    """Return the change that starts a run from the towers of the pretraining; empty if there is none."""
    return {"model": {"pretrained": storage.join(config.directory, TOWERS)}} if config.pretraining else {}
