"""Everything about a run that can be checked before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glscl.data.apart import NamedSet, check_held_out
from glscl.data.names import distinct_names
from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet, open_shard_set
from glscl.data.shared_memory import check_room, gallery_bytes, stream_bytes
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.losses import applicable_terms
from glscl.losses.inter_consistency import InterConsistencyOptions, note_on_batch
from glscl.options import Options
from glscl.system import storage
from glscl.system.session import on_this_machine
from glscl.training.checkpoint.format import differing_keys
from glscl.training.config import RunConfig
from glscl.training.schedule import Horizon, make_plan
from glscl.training.world_sizes import share_in_words, usable_sizes

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
        [NamedSet("data.validation", shard_set) for shard_set in held_out],
        [NamedSet("data.train", shard_set) for shard_set in shard_sets],
        [NamedSet("data.test", shard_set) for shard_set in tests],
    )
    saved = _check_run_directory(config)
    # What takes seconds to import comes after what may be wrong without it.
    from glscl.evaluation.evaluate import check_options

    check_options(config.evaluation, tests, shard_sets)

    import open_clip

    from glscl.models.retriever import Retriever

    pretrained = config.model.pretrained
    is_tag = pretrained is not None and pretrained in open_clip.list_pretrained_tags_by_model(config.model.clip)
    model = Retriever(config.model, load_weights=fetch or not is_tag)
    on, left_out = applicable_terms(config.loss, model.head)
    if not on:
        raise UserError(f"loss: no term is on that head '{config.model.head}' can be trained with")
    sampling = FrameSampling(config.model.max_frames, config.data.sample_fps, model.frame_size)
    scored = max((s.manifest.videos for s in held_out), default=0)
    if on_this_machine():  # else every worker looks, where it is
        check_shared_memory(config, sampling, scored, sizes[0], sizes[0])
    horizon = Horizon.of(config, plan)
    counts = model.describe()
    note = note_on_loss(config, [shard_set.manifest.domain for shard_set in shard_sets])
    facts = {
        "run": config.run_directory + (" (continues)" if saved else ""),
        "train": _domains(shard_sets, plan),
        "augmentation": config.data.augment or "none",
        "validation": _sets(held_out) or "none: last step is kept",
        **({"unchecked": "; ".join(notes)} if notes else {}),
        "test": _sets(tests) or "none",
        "model": f"{config.model.clip}, head {config.model.head}, frame context {config.model.frame_context}; "
        + ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items()),
        "weights": (config.model.pretrained or "random") + model.towers.activation,
        "loss": ", ".join(on) + (f" (not for this head: {', '.join(left_out)})" if left_out else ""),
        "global batch": f"{training.global_batch} pairs = "
        + " or ".join(share_in_words(training, sizes, workers) for workers in reversed(sizes)),
        "steps": f"{horizon.total} ({horizon.steps_per_epoch} per epoch of {plan.pairs_per_epoch:,} pairs; "
        f"{plan.pairs_per_epoch - horizon.steps_per_epoch * training.global_batch} pairs wait for the next epoch)",
        **({"note": note} if note else {}),
        "workers": f"{_list(sizes)} x {'GPU, NCCL' if training.on_gpu else 'CPU, gloo'}, {training.cpus:g} CPUs each, "
        f"ZeRO {training.zero_stage}, {training.precision}, {config.data.loaders} loader workers each",
    }
    return Preflight(facts, tuple(shard_set.manifest.domain for shard_set in shard_sets), sizes)


def check_shared_memory(config: RunConfig, sampling: FrameSampling, scored: int, workers: int, here: int) -> None:
    """Look whether this machine has the shared memory that loader processes need.

    Args:
        config: of the run.
        sampling: frames per video.
        scored: videos of the largest held-out set.
        workers: of the run.
        here: how many of them are on this machine.

    Raises:
        UserError: it has not.
    """
    loaders, prefetch = config.data.loaders, config.data.prefetch
    if loaders:
        needed = here * stream_bytes(config.training.global_batch // workers, sampling, prefetch)
        needed += here * gallery_bytes(-(-scored // workers), config.evaluation.batch_size, loaders, sampling)
        scoring = ", training.global_batch or evaluation.batch_size" if scored else " or training.global_batch"
        check_room(needed, f"{here} training workers", f"data.prefetch ({prefetch}){scoring}")


def note_on_loss(config: RunConfig, domains: Sequence[str]) -> str | None:
    """What to know of a run's loss before it starts, in one line with the knob; None where there is nothing."""
    options = getattr(config.model.heads, config.model.head)
    queries = getattr(options, "queries", None)
    if not isinstance(queries, int) or not getattr(options, "use_local", True):
        return None
    term: InterConsistencyOptions = config.loss.inter_consistency  # type: ignore[attr-defined]
    return note_on_batch(term, queries, config.training.global_batch, domains)


def _list(sizes: tuple[int, ...]) -> str:
    """One number, or those that are usable of a range: ``2, 4 or 8``."""
    *others, last = map(str, sizes)
    return f"{', '.join(others)} or {last}" if others else last


def _sets(shard_sets: Sequence[ShardSet]) -> str:
    """Their names, and how many videos there are of a set of which some were left out when it was built."""
    return ", ".join(
        name + (f" ({shard_set.manifest.share()} videos)" if shard_set.manifest.rejected else "")
        for name, shard_set in zip(distinct_names(shard_sets), shard_sets, strict=True)
    )


def _domains(shard_sets: list[ShardSet], plan: StreamPlan) -> str:
    return ", ".join(
        f"{name} ({s.manifest.share()} videos, {s.manifest.pairs:,} pairs, "
        f"{streams / plan.virtual_streams:.0%} of each batch)"
        for s, name, streams in zip(shard_sets, distinct_names(shard_sets), plan.streams_of_domain, strict=True)
    )


def as_begun(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The configuration with which a run goes on, where options have come to be since it began.

    A preset may set an option that an older run directory does not know: the run keeps that option's default, which is
    what was done before there was one.

    Returns:
        the configuration, and a line for each option that was left at its default.
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
        begun = {key: field.get_default() for key, field in type(section).model_fields.items() if key not in known}
        changed = {key: value for key, value in begun.items() if getattr(section, key) != value}
        for key, value in changed.items():
            notes.append(
                f"{name}.{key} stays {value}, with which {config.run_directory} began; another --name trains with "
                f"{getattr(section, key)}"
            )
        if changed:
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
    different = differing_keys(saved, config.model_dump(mode="json"))
    if different:
        raise UserError(
            f"{config.run_directory} holds a run of another configuration: {'; '.join(different)}; choose another "
            f"--name, or restore these values"
        )
    return True
