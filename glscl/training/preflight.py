"""Everything about a run that can be checked before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

import open_clip

from glscl import storage
from glscl.config import RunConfig
from glscl.data.apart import Named, check_held_out
from glscl.data.names import distinct_names
from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet, open_shard_set
from glscl.errors import UserError
from glscl.evaluation.evaluate import check_options
from glscl.losses import applicable_terms
from glscl.models.retriever import Retriever
from glscl.training.checkpoint import differing_keys
from glscl.training.horizon import Horizon, make_plan
from glscl.training.sizes import share_in_words, usable_sizes

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was learnt before anything was started.

    Attributes:
        facts: the effective configuration in words, for the start-up panel.
        train_domains: names of the training domains.
        sizes: numbers of workers that the run can have, rising.
    """

    facts: dict[str, str]
    train_domains: tuple[str, ...]
    sizes: tuple[int, ...]


def preflight(config: RunConfig, *, fetch: bool = True) -> Preflight:
    """Check shards, batch arithmetic, model and the run directory; builds the model once, starts nothing.

    Args:
        config: resolved configuration.
        fetch: load pretrained weights that have to be downloaded; false checks only weights that are local files.

    Raises:
        UserError: naming what is wrong, where, and the knob.
    """
    training = config.training
    usable_sizes(config, None)  # before any storage is asked
    shard_sets = [open_shard_set(uri) for uri in config.data.train]
    plan = make_plan(config, shard_sets)
    sizes = usable_sizes(config, plan)
    held_out = [open_shard_set(uri) for uri in config.data.validation]
    tests = [open_shard_set(uri) for uri in config.data.test]
    notes = check_held_out(
        [Named("data.validation", shard_set) for shard_set in held_out],
        [Named("data.train", shard_set) for shard_set in shard_sets],
        [Named("data.test", shard_set) for shard_set in tests],
    )
    check_options(config.evaluation, tests, shard_sets)
    pretrained = config.model.pretrained
    is_tag = pretrained is not None and pretrained in open_clip.list_pretrained_tags_by_model(config.model.clip)
    model = Retriever(config.model, load_weights=fetch or not is_tag)
    on, left_out = applicable_terms(config.loss, model.head)
    if not on:
        raise UserError(f"loss: no term is on that head '{config.model.head}' can be trained with")
    saved = _check_run_directory(config)
    horizon = Horizon.of(config, plan)
    counts = model.describe()
    facts = {
        "run": config.run_directory + (" (continues)" if saved else ""),
        "train": _domains(shard_sets, plan),
        "validation": ", ".join(distinct_names(held_out)) or "none: last step is kept",
        **({"unchecked": "; ".join(notes)} if notes else {}),
        "test": ", ".join(distinct_names(tests)) or "none",
        "model": f"{config.model.clip}, head {config.model.head}, frame context {config.model.frame_context}; "
        + ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items()),
        "weights": config.model.pretrained or "random",
        "loss": ", ".join(on) + (f" (not for this head: {', '.join(left_out)})" if left_out else ""),
        "global batch": f"{training.global_batch} pairs = "
        + " or ".join(share_in_words(training, sizes, workers) for workers in reversed(sizes)),
        "steps": f"{horizon.total} ({horizon.steps_per_epoch} per epoch of {plan.pairs_per_epoch:,} pairs; "
        f"{plan.pairs_per_epoch - horizon.steps_per_epoch * training.global_batch} pairs wait for the next epoch)",
        "workers": f"{_list(sizes)} x {'GPU, NCCL' if training.use_gpu else 'CPU, gloo'}, ZeRO {training.zero_stage}, "
        f"{training.precision}, {config.data.loader_workers} loader workers each",
    }
    return Preflight(facts, tuple(shard_set.manifest.domain for shard_set in shard_sets), sizes)


def _list(sizes: tuple[int, ...]) -> str:
    """One number, or those that are usable of a range: ``2, 4 or 8``."""
    *others, last = map(str, sizes)
    return f"{', '.join(others)} or {last}" if others else last


def _domains(shard_sets: list[ShardSet], plan: StreamPlan) -> str:
    return ", ".join(
        f"{name} ({s.manifest.videos:,} videos, {s.manifest.pairs:,} pairs, "
        f"{streams / plan.virtual_streams:.0%} of each batch)"
        for s, name, streams in zip(shard_sets, distinct_names(shard_sets), plan.streams_of_domain, strict=True)
    )


def _check_run_directory(config: RunConfig) -> bool:
    """Compare with the configuration that the run directory was made with; True if the run exists."""
    where = storage.join(config.run_directory, CONFIG)
    if not storage.exists(where):
        return False
    saved = storage.read_json(where)
    if not isinstance(saved, dict):
        raise UserError(f"{where}: not a run configuration; choose another --name")
    different = differing_keys(saved, config.model_dump(mode="json"))
    if different:
        raise UserError(
            f"{config.run_directory} holds a run of another configuration: {'; '.join(different)}; choose another "
            f"--name, or restore these values"
        )
    return True
