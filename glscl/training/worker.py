"""The loop that every training worker runs: load, step, log, evaluate, save."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from torch import distributed

from glscl.data import stream
from glscl.data.activity import ActivityTable
from glscl.data.augment import ClipAugmentation
from glscl.data.quarantine import KNOB, Quarantine, UnusableSetError, add_missing_sets
from glscl.data.shards import ShardSet, open_shard_set
from glscl.data.video import FrameSampling
from glscl.errors import RunStoppedError, UserError, full_disk
from glscl.models.retriever import Retriever
from glscl.models.tokenizer import tokenize
from glscl.system import storage
from glscl.system.ownership import Fence
from glscl.system.redaction import redacted_errors
from glscl.training.checkpoint import format as checkpoint
from glscl.training.checkpoint import resharding
from glscl.training.checkpoint.format import SELECTION_METRIC, IncompleteCheckpointError, TrainState
from glscl.training.checkpoint.retention import ANOTHER, Retention
from glscl.training.config import RunConfig
from glscl.training.driver.elastic import SECONDS_LEFT
from glscl.training.driver.preflight import check_shared_memory
from glscl.training.engine import backward, build_engine, evaluation_model, set_learning_rates
from glscl.training.global_batch import Batch, backward_global_batch
from glscl.training.health.watchdog import LOOK, STOP, Agreement, Limits, RayHub, Reporter
from glscl.training.held_out import HeldOut
from glscl.training.repairs import Repairs
from glscl.training.run_log import RunLog, not_finite_name
from glscl.training.schedule import Horizon, make_plan
from glscl.training.step_metrics import Meter, NonFiniteError
from glscl.training.world_sizes import parts_of, share_in_words, usable_sizes


def sampling_of(config: RunConfig, frame_size: int) -> FrameSampling:
    """The frame sampling that data and model options ask for."""
    data = config.data
    return FrameSampling(config.model.max_frames, data.sample_fps, frame_size, data.decoder, data.max_decode_s)


def train_worker(values: dict[str, Any]) -> dict[str, Any] | None:
    """Train from the latest complete checkpoint to the last step.

    Args:
        values: ``config``, the resolved `RunConfig` as plain values, ``hub``, the token under which driver and
            ranks find each other, and ``fence``, the driver's claim to the run directory.

    Returns:
        None at the end of training; else why it ended before. ``failed``: a reason that a restart would find again
        (Ray Train restarts workers that raise). ``stopped``: the number of the signal, with ``step`` and
        ``checkpoint``.
    """
    with redacted_errors():
        try:
            return _train(RunConfig.model_validate(values["config"]), values["hub"], Fence(**values["fence"]))
        except RunStoppedError as error:
            return {"failed": str(error)}
        except OSError as error:
            raise full_disk(error, values["config"]["storage"]) or error from error


def _train(config: RunConfig, hub: str, fence: Fence) -> dict[str, Any] | None:
    logging.getLogger().setLevel(logging.WARNING)  # Ray announces every report at INFO
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = torch.device("cpu")
    if config.training.on_gpu:
        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)  # collectives of objects travel through the current device
    attempt = _shared_token(rank)
    limits = Limits(config.data.stall_timeout_s, config.training.hang_timeout_s)
    boards = {part: ActivityTable(config.data.loaders) for part in ("train", "evaluation")}
    look = rank == 0 and os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"
    with ExitStack() as ends:
        reporter = ends.enter_context(Reporter(RayHub(hub), limits, attempt, rank, list(boards.values()), look))
        return _loop(config, rank, world, device, attempt, boards, reporter, fence, ends)


def _loop(
    config: RunConfig,
    rank: int,
    world: int,
    device: torch.device,
    attempt: str,
    boards: dict[str, ActivityTable],
    reporter: Reporter,
    fence: Fence,
    ends: ExitStack,
) -> dict[str, Any] | None:
    # Load
    torch.manual_seed(config.seed)
    model = Retriever(config.model)
    frame_size = model.frame_size
    shard_sets = [open_shard_set(uri) for uri in config.data.train]
    plan = make_plan(config, shard_sets)
    sampling = sampling_of(config, frame_size)
    scored = max((open_shard_set(uri).manifest.videos for uri in config.data.validation), default=0)
    # Before the first collective, so before any worker of this machine has filled some of it.
    check_shared_memory(config, sampling, scored, world, ray.train.get_context().get_local_world_size())
    sizes = usable_sizes(config, plan)
    training = config.training.model_copy(update={"accumulate": parts_of(config.training, sizes, world)})
    engine = build_engine(model, training, device, world)
    horizon = Horizon.of(config, plan)
    checkpoint.seed_generators(config.seed, 0, rank)  # dropout differs between ranks
    state = _resume(engine, config, shard_sets, rank, world)
    words = partial(tokenize, max_words=config.model.max_words)
    pairs = stream.PairStream(
        shard_sets,
        plan,
        sampling,
        words,
        rank,
        world,
        start_step=state.step,
        cache_dir=config.data.cache_dir,
        activity=boards["train"],
        augmentation=ClipAugmentation(config.data.augment, config.seed) if config.data.augment else None,
    )
    batches = stream.make_loader(pairs, config.data.loaders, config.data.prefetch)
    log = RunLog(config.run_directory, state.step, fence) if rank == 0 else None
    if log is not None:
        ends.callback(log.close)
        share = share_in_words(config.training, sizes, world)
        print(f"global batch: {config.training.global_batch} pairs = {share}", flush=True)
    folder = config.run_directory if rank == 0 else None
    quarantine = Quarantine(folder, config.data.max_bad_fraction, KNOB, state.quarantined, fence)
    state.quarantined = quarantine.entries
    repairs = Repairs(config.run_directory, rank, world, fence)
    meter = Meter(horizon, config, world, quarantine, shard_sets)
    agreement = Agreement(device)
    fled: set[str] = set()  # nodes for whose loss a checkpoint was saved
    last = max(Retention(config.run_directory, config.checkpoint.keep).known(), default="none")

    while state.step < horizon.total:
        # Step
        factor = set_learning_rates(engine, config.training, state.step, horizon.total)
        agreement.ask(reporter.wish())
        reporter.at("loading", state.step + 1)
        batch = _next(meter, batches, reporter)
        reporter.at("stepping", state.step + 1)
        engine.train()
        losses = backward_global_batch(
            engine, partial(backward, engine), config.loss, _to_device(batch, device), training.accumulate
        )
        engine.step()
        state.step += 1
        repairs.take(batch.repaired)
        meter.count(state.step, batch, losses, engine.get_global_grad_norm())
        wish = agreement.answer()
        state.metrics = {}
        scored = bool(config.data.validation) and (
            state.step % horizon.evaluate_every == 0 or state.step == horizon.total
        )
        leaving = wish == LOOK and _nodes_leave(fled, rank)
        saved = state.step % horizon.save_every == 0 or state.step == horizon.total or scored or leaving or wish >= STOP

        # Log
        if state.step % config.training.log_every == 0 or saved:
            reporter.at("logging", state.step)
            try:
                row = meter.row(engine, factor, state)
                row["repaired"] = repairs.gather()
            except NonFiniteError as error:
                raise _poisoned(error.report, last, log) from None
            if log is not None:
                log.write(state.step, row)
                print(f"{meter.line(state.step, row)} repaired={row['repaired']}", flush=True)

        # Evaluate
        if scored:
            reporter.at("evaluating", state.step)
            scorer = HeldOut(config, sampling, rank, world, device, boards["evaluation"], quarantine, reporter)
            state.metrics = scorer.score(evaluation_model(engine))
            if log is not None:
                log.write(state.step, state.metrics)
                print(f"step={state.step} {SELECTION_METRIC}={state.metrics[SELECTION_METRIC]:.2f}", flush=True)

        # Save
        if saved:
            reporter.at("saving", state.step)
            if log is not None:
                log.flush()  # first: a run that resumes from this checkpoint keeps the rows up to it
            _save(engine, state, fence, rank, world, attempt, meter.seconds_left(state.step))
            last = checkpoint.directory_name(state.step, world, attempt)
        if wish >= STOP and state.step < horizon.total:
            return {"stopped": wish - STOP, "step": state.step, "checkpoint": last}
    return None


def _next(meter: Meter, batches: Iterator[stream.Batch], reporter: Reporter) -> stream.Batch:
    """The next batch; the driver hears of videos that cannot be used before anything else can happen."""
    try:
        batch = meter.wait_for(batches)
    except UnusableSetError as error:
        reporter.found("train", error.quarantined)
        raise
    reporter.found("train", batch.quarantined)
    return batch


def _nodes_leave(fled: set[str], rank: int) -> bool:
    """Whether Ray says that nodes of this worker group are about to be taken away that it had not named before.

    Collective. Training goes on until they are: Ray Train restarts the group then, elsewhere.
    """
    info = ray.train.get_preemption_info()
    if info is None or fled.issuperset(info.preempted_node_ids):
        return False
    fled.update(info.preempted_node_ids)
    if rank == 0:
        print(f"nodes of ranks {info.preempted_ranks} are about to be taken away: saving", flush=True)
    return True


def _poisoned(report: dict[str, Any], last: str, log: RunLog | None) -> RunStoppedError:
    """Write down a step that went wrong; returns what the run ends with.

    Args:
        report: see `NonFiniteError`.
        last: the last checkpoint; Ray Train waits for its upload before the run ends.
        log: of rank 0.
    """
    if log is not None:
        log.not_finite(report)
    pairs, where = report["pairs"], not_finite_name(report["step"])
    more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
    return RunStoppedError(
        f"step {report['step']}: {', '.join(report['not_finite'])} not finite, of pairs {', '.join(pairs[:3])}{more} "
        f"(all in {where}). Last checkpoint, from before that: {last}. Lower training.lr_towers or training.lr_head, "
        f"train in fp32 (training.precision), or look at these pairs and at the terms of the loss"
    )


def _resume(engine: Any, config: RunConfig, shard_sets: list[ShardSet], rank: int, world: int) -> TrainState:
    """Restore the run directory's newest complete checkpoint (resume rules 1 to 5)."""
    values = config.model_dump(mode="json")
    manifests = [shard_set.manifest.fingerprint() for shard_set in shard_sets]
    fresh = TrainState(0, world, config.training.zero_stage, values, manifests)
    retention = Retention(config.run_directory, config.checkpoint.keep)
    names: list[Any] = [retention.names() if rank == 0 else None, None]
    distributed.broadcast_object_list(names)
    for name in names[0]:
        with _fetched(storage.join(config.run_directory, name), rank, world) as (folder, problem):
            if problem:
                if rank == 0:
                    print(f"checkpoint {name} is incomplete ({problem}): trying the one before", flush=True)
                continue
            saved = checkpoint.read_state(folder)
            checkpoint.check_resumable(saved, values, manifests)
            context = ray.train.get_context()
            if resharding.needed(saved, world):
                node, leads = context.get_node_rank(), context.get_local_rank() == 0
                with resharding.converted(folder, name, saved, rank, node, leads=leads) as whole:
                    resharding.load(engine, whole)
                checkpoint.restore_generators(folder, saved, rank)
            else:
                checkpoint.restore(engine, folder, saved, rank)
        if rank == 0:
            print(f"resumed step={saved.step} from {name}", flush=True)
        known = add_missing_sets(saved.quarantined, shard_sets)
        return TrainState(saved.step, world, config.training.zero_stage, values, manifests, known)
    if retention.known():
        raise UserError(f"{config.run_directory}: none of its checkpoints is complete; {ANOTHER}")
    return fresh


@contextmanager
def _fetched(uri: str, rank: int, world: int) -> Iterator[tuple[str, str | None]]:
    """A checkpoint in a local folder, one copy per node, every file read once (collective).

    Yields:
        the folder and None, or what is wrong with the checkpoint, the same on every rank.
    """
    context = ray.train.get_context()
    node, local, locals_ = context.get_node_rank(), context.get_local_rank(), context.get_local_world_size()

    def agree(mine: Any) -> list[Any]:
        all_: list[Any] = [None] * world
        distributed.all_gather_object(all_, mine)
        return all_

    with ExitStack() as stack:
        folder = problem = None
        if local == 0:
            try:
                folder = stack.enter_context(checkpoint.local_copy(uri, os.getcwd()))
            except IncompleteCheckpointError as error:
                problem = str(error)
        places = agree((node, folder, problem))
        problem = next((text for *_, text in places if text), None)
        if problem is None:
            folder = next(path for place, path, _ in places if place == node and path)
            try:
                checkpoint.check_complete(folder, local, locals_)
            except IncompleteCheckpointError as error:
                problem = str(error)
            problem = next((text for text in agree(problem) if text), None)
        yield folder or "", problem
        distributed.barrier()  # others on this machine may still be reading


def _save(
    engine: Any, state: TrainState, fence: Fence, rank: int, world: int, attempt: str, seconds_left: float
) -> None:
    """Write this rank's files and hand them to Ray Train, which uploads them while training goes on."""
    folder = tempfile.mkdtemp(prefix="checkpoint-", dir=os.getcwd())  # the worker's own folder in Ray's session
    try:
        with checkpoint.explained(folder):
            checkpoint.save(engine, folder, state, rank)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    ray.train.report(
        {"step": state.step, SECONDS_LEFT: seconds_left, **state.metrics},
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_dir_name=checkpoint.directory_name(state.step, world, attempt),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=partial(_upload, ray.train.get_context().get_storage(), fence),
    )


def _upload(place: Any, fence: Fence, local: Checkpoint, name: str) -> Checkpoint:
    """What Ray Train calls in a thread of its own; its own way lists folders, and cannot say why it failed."""
    try:
        fence.check()
        checkpoint.upload(local.path, storage.join(fence.directory, name))
    except BaseException:
        shutil.rmtree(local.path, ignore_errors=True)
        raise
    return Checkpoint(place.build_checkpoint_path_from_name(name), place.storage_filesystem)


def _to_device(batch: stream.Batch, device: torch.device) -> Batch:
    fields = (batch.token_ids, batch.frames, batch.frame_mask, batch.video_ids)
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in fields))


def _shared_token(rank: int) -> str:
    """A few random characters, the same on every rank, that tell this attempt's checkpoints from others'."""
    token = [uuid.uuid4().hex[:8] if rank == 0 else None]
    distributed.broadcast_object_list(token)
    return str(token[0])
