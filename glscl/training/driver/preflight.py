"""Checks of a run before anything is started."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glscl.data.apart import NamedSet, check_held_out, distinct_names
from glscl.data.feature_facts import SHOWN
from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet, open_shard_set
from glscl.errors import UserError
from glscl.losses import applicable_terms, needs_logit_bias
from glscl.losses.base import registry as loss_terms
from glscl.losses.inter_consistency import InterConsistencyOptions, note_on_batch
from glscl.models.heads.base import head_class
from glscl.models.options import HUB
from glscl.options import Options
from glscl.system import storage
from glscl.system.session import on_this_machine
from glscl.training.checkpoint.format import run_differences
from glscl.training.config import RunConfig
from glscl.training.driver.on_features import check_features, check_towers
from glscl.training.schedule import (
    RunLength,
    check_shared_memory,
    describe_batch,
    make_plan,
    make_sampling,
    usable_world_sizes,
)
from glscl.training.trackers import check_trackers

if TYPE_CHECKING:
    from glscl.models.retriever import Retriever

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was learnt before anything was started."""

    facts: dict[str, str]
    """The effective configuration in words, for the start-up panel."""
    train_domains: tuple[str, ...]
    world_sizes: tuple[int, ...]
    """Numbers of workers that the run can have, rising."""
    steps: int
    """Of the whole run."""
    towers: str | None = None
    """Fingerprint of the towers whose features are trained on; None where pixels are."""


def preflight(config: RunConfig, *, fetch: bool = True) -> Preflight:
    """Check shards, batch arithmetic, model and the run directory; builds the model once, starts nothing.

    Without ``fetch``, pretrained weights are checked only if they are local files; the small files of an architecture
    that the configuration names on the network are fetched either way. A `UserError` names what is wrong, where, and
    the option to change.
    """
    usable_world_sizes(config, None)  # before any storage is asked
    check_trackers(config.tracking)
    train = list(map(open_shard_set, config.data.train))
    plan = make_plan(config, train)
    world_sizes = usable_world_sizes(config, plan)
    held_out = list(map(open_shard_set, config.data.validation))
    tests = list(map(open_shard_set, config.data.test))
    named = {"data.validation": held_out, "data.train": train, "data.test": tests}
    on_features = check_features(config, named)
    unchecked = check_held_out(*(_name(key, sets) for key, sets in named.items()))
    continues = _check_run_directory(config)
    # What takes seconds to import comes after what may be wrong without it.
    from glscl.evaluation.evaluate import check_options

    check_options(config.evaluation, tests, train)
    model_facts, model, loaded = _check_model(config, fetch)
    towers = check_towers(config, named, model) if loaded else None
    if on_this_machine():  # else every worker looks, where it is
        sampling = make_sampling(config, model.frame_size, train)
        check_shared_memory(config, sampling, held_out, world_sizes[0], world_sizes[0])
    domains = tuple(shard_set.manifest.domain for shard_set in train)
    facts = {
        "run": config.run_directory + (" (continues)" if continues else ""),
        "train": _domains(train, plan),
        "augmentation": config.data.augment or "none",
        "features": _describe_features(on_features, towers),
        "validation": _set_names(held_out) or "none: last step is kept",
        "unchecked": "; ".join(unchecked),
        "test": _set_names(tests) or "none",
        "trackers": ", ".join(config.tracking.to),
        **model_facts,
        **_describe_steps(config, plan, world_sizes),
        "note": note_on_loss(config, domains) or "",
    }
    facts = {name: fact for name, fact in facts.items() if fact}
    return Preflight(facts, domains, world_sizes, RunLength.of(config, plan).total, towers if on_features else None)


def _name(key: str, sets: Sequence[ShardSet]) -> list[NamedSet]:
    return [NamedSet(key, shard_set) for shard_set in sets]


def _describe_features(on_features: bool, towers: str | None) -> str:
    if not on_features:
        return ""
    return f"of the towers {towers[:SHOWN]}" if towers else "compared with the towers once their weights are fetched"


def _check_model(config: RunConfig, fetch: bool) -> "tuple[dict[str, str], Retriever, bool]":
    """Build the model once; returns what the panel says of it, the model, and whether its weights were loaded."""
    import open_clip

    from glscl.models.caption_tokenizer import build_tokenizer
    from glscl.models.freezing import describe_training
    from glscl.models.retriever import Retriever

    pretrained, clip = config.model.pretrained, config.model.clip
    is_tag = pretrained is not None and pretrained in open_clip.list_pretrained_tags_by_model(clip)
    remote = is_tag or (clip.startswith(HUB) and not pretrained)
    model = Retriever(config.model, load_weights=fetch or not remote)
    build_tokenizer(config.model)
    if needs_logit_bias(config.loss):
        model.bias()
    terms, left_out = applicable_terms(config.loss, model.head)
    if not terms:
        raise UserError(f"loss: no term is on that head '{config.model.head}' can be trained with")
    _check_head_first(config, model)
    counts = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in model.describe().items())
    facts = {
        "model": f"{config.model.clip}, head {config.model.head}, frame context {config.model.frame_context}; {counts}",
        "weights": (config.model.weights or "random") + model.towers.activation,
        "trained": describe_training(model, config.model) if config.model.freeze != "none" else "",
        "loss": ", ".join(terms) + (f" (not for this head: {', '.join(left_out)})" if left_out else ""),
    }
    return facts, model, fetch or not remote


def _check_head_first(config: RunConfig, model: "Retriever") -> None:
    """Refuse a first part of the run that would train nothing, or all that the second one trains."""
    if config.training.head_first is None:
        return
    groups = {group["name"] for group in model.parameter_groups(0.0)}
    if "head" not in groups:
        raise UserError(
            f"training.head_first: head '{config.model.head}' has no parameters to train alone; leave it out"
        )
    if not config.model.trained_key:
        raise UserError(
            "training.head_first: model.freeze freezes the towers to the end, so the head is trained alone anyway; "
            "leave one of them out"
        )


def _describe_steps(config: RunConfig, plan: StreamPlan, world_sizes: tuple[int, ...]) -> dict[str, str]:
    training, length = config.training, RunLength.of(config, plan)
    return {
        "global batch": f"{training.global_batch} pairs = "
        + " or ".join(describe_batch(training, world_sizes, workers) for workers in reversed(world_sizes)),
        "steps": f"{length.total} ({length.steps_per_epoch} per epoch of {plan.pairs_per_epoch:,} pairs; "
        f"{plan.pairs_per_epoch - length.steps_per_epoch * training.global_batch} pairs wait for the next epoch)",
        "workers": f"{_list(world_sizes)} x {'GPU, NCCL' if training.on_gpu else 'CPU, gloo'}, {training.cpus:g} CPUs "
        f"each, ZeRO {training.zero_stage}, {training.precision}, {config.data.loaders} loader workers each",
    }


def note_on_loss(config: RunConfig, domains: Sequence[str]) -> str | None:
    """A warning about the loss of a run, in one line with the option to change; None where there is nothing to say."""
    head = config.model.head
    options = getattr(config.model.heads, head)
    queries = getattr(options, "queries", None)  # GLSCL's; other heads call other things so
    if not isinstance(queries, int) or not loss_terms.get("inter_consistency").applies(head_class(head).provides):
        return None
    if not getattr(options, "use_local", True):
        return None
    term: InterConsistencyOptions = config.loss.inter_consistency  # type: ignore[attr-defined]
    return note_on_batch(term, queries, config.training.global_batch, domains)


def _list(world_sizes: tuple[int, ...]) -> str:
    """One number, or those that are usable of a range: ``2, 4 or 8``."""
    *others, last = map(str, world_sizes)
    return f"{', '.join(others)} or {last}" if others else last


def _set_names(shard_sets: Sequence[ShardSet]) -> str:
    """Their names, and how many videos there are of a set of which some were left out when it was built."""
    return ", ".join(
        name + (f" ({shard_set.manifest.share()} videos)" if shard_set.manifest.rejected else "")
        for name, shard_set in zip(distinct_names(shard_sets), shard_sets, strict=True)
    )


def _domains(shard_sets: list[ShardSet], plan: StreamPlan) -> str:
    taken = [f"{text}, " if (text := plan.limit.describe(shard_set.manifest)) else "" for shard_set in shard_sets]
    return ", ".join(
        f"{name} ({s.manifest.share()} videos, {s.manifest.pairs:,} pairs, {part}"
        f"{streams / plan.virtual_streams:.0%} of each batch)"
        for s, name, streams, part in zip(
            shard_sets, distinct_names(shard_sets), plan.streams_of_domain, taken, strict=True
        )
    )


def as_begun(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The configuration with which a run goes on, and a line for each newer option that keeps its default.

    A preset may set an option that an older run directory does not know; its default is what was done before.
    """
    where = storage.join(config.run_directory, CONFIG)
    saved = storage.read_json(where) if storage.exists(where) else {}
    notes: list[str] = []
    sections: dict[str, Options] = {}
    for name in RunConfig.model_fields:
        section = getattr(config, name)
        known = saved.get(name) if isinstance(saved, dict) else None
        if not isinstance(section, Options) or not isinstance(known, dict):
            continue
        new = {key: field.get_default() for key, field in type(section).model_fields.items() if key not in known}
        changed = {key: default for key, default in new.items() if getattr(section, key) != default}
        notes += [
            f"{name}.{key} stays {default}, with which {config.run_directory} began; another --name trains with "
            f"{getattr(section, key)}"
            for key, default in changed.items()
        ]
        sections[name] = section.model_copy(update=changed)
    return config.model_copy(update=sections), notes


def _check_run_directory(config: RunConfig) -> bool:
    """Compare with the configuration that the run directory was made with; True if the run exists."""
    where = storage.join(config.run_directory, CONFIG)
    if not storage.exists(where):
        return False
    saved = storage.read_json(where)
    if not isinstance(saved, dict):
        raise UserError(f"{where}: not a run configuration; choose another --name")
    different = run_differences(saved, config.model_dump(mode="json"))
    if different:
        raise UserError(
            f"{config.run_directory} holds a run of another configuration: {'; '.join(different)}; choose another "
            f"--name, or restore these values"
        )
    return True
