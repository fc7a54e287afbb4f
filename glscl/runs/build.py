"""Building the whole configuration of one run of a study or sweep, and of its pretraining."""

import re
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
    if run.tracking.to and not run.tracking.group:
        run = run.model_copy(update={"tracking": run.tracking.model_copy(update={"group": config.name})})
    return run


def other_clip(config: RunsConfig, changes: Values) -> str:
    """Architecture of towers that ``changes`` name, where it is not the one that runs share; else empty."""
    clip = (changes.get("model") or {}).get("clip", "")
    return "" if clip == (config.run.get("model") or {}).get("clip") else str(clip)


def build_pretraining(config: RunsConfig, *, make: bool, clip: str = "") -> RunConfig | None:
    """Build the run that makes the towers; None if there is none. Raises `UserError`: it is wrong.

    ``make`` writes its toy set if that is missing (Ray must be running). ``clip`` names another architecture than the
    shared one: its towers have a pretraining of their own.
    """
    options = config.pretraining
    if options is None:
        return None
    train = tuple(map(config.address, options.train))
    if options.toy is not None:
        address = toy_set if make else toy_set_address
        train = (address(config.storage, options.domain, "train", options.toy.train),)
    changes: list[Values] = [{"model": {"freeze": "none"}}, options.run]  # whatever the runs do with these towers
    if clip:
        changes.append({"model": {"clip": clip}})
    name = f"{PRETRAINING}{_suffix(clip)}"
    return build_run(config, config.directory, name, config.first_seed, changes, {"train": train})


def towers_address(config: RunsConfig, clip: str = "") -> str:
    """Where the towers of the pretraining are kept."""
    stem, _, ending = TOWERS.rpartition(".")
    return storage.join(config.directory, f"{stem}{_suffix(clip)}.{ending}")


def pretrained_towers(config: RunsConfig, clip: str = "") -> Values:
    """Return the change that starts a run from the towers of the pretraining; empty if there is none."""
    return {"model": {"pretrained": towers_address(config, clip)}} if config.pretraining else {}


def _suffix(clip: str) -> str:
    """An architecture as part of a file's name; empty for the shared one."""
    return "." + re.sub(r"[^A-Za-z0-9_-]+", "-", clip).strip("-") if clip else ""
