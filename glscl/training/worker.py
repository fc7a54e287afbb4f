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

from glscl import storage
from glscl.config import RunConfig
from glscl.data import stream
from glscl.data.gallery import Gallery
from glscl.data.shards import ShardSet, open_shard_set
from glscl.data.video import FrameSampling
from glscl.errors import RunStoppedError, UserError
from glscl.evaluation.embed import concatenate, embed
from glscl.evaluation.retrieval import Part, metrics_of, score_part
from glscl.evaluation.scoring import merge, split_rows
from glscl.models.retriever import Retriever
from glscl.models.tokenizer import tokenize
from glscl.training import checkpoint, universal
from glscl.training.checkpoint import SELECTION_METRIC, IncompleteCheckpointError, TrainState
from glscl.training.engine import backward, build_engine, evaluation_model, set_learning_rates
from glscl.training.global_batch import Batch, backward_global_batch
from glscl.training.horizon import Horizon, make_plan
from glscl.training.meter import Meter
from glscl.training.retention import ANOTHER, Retention
from glscl.training.run_log import RunLog


def sampling_of(config: RunConfig, frame_size: int) -> FrameSampling:
    """The frame sampling that data and model options ask for."""
    return FrameSampling(config.model.max_frames, config.data.sample_fps, frame_size, config.data.decoder)


def train_worker(values: dict[str, Any]) -> str | None:
    """Train from the latest complete checkpoint to the last step.

    Args:
        values: the resolved `RunConfig` as plain values.

    Returns:
        None, or why the run was stopped. (Ray Train restarts workers that raise; these reasons are the same again.)
    """
    try:
        _train(values)
    except RunStoppedError as error:
        return str(error)
    return None


def _train(values: dict[str, Any]) -> None:
    logging.getLogger().setLevel(logging.WARNING)  # Ray announces every report at INFO
    config = RunConfig.model_validate(values)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = torch.device("cpu")
    if config.training.use_gpu:
        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)  # collectives of objects travel through the current device

    # Load
    torch.manual_seed(config.seed)
    model = Retriever(config.model)
    frame_size = model.frame_size
    engine = build_engine(model, config.training, device, world)
    shard_sets = [open_shard_set(uri) for uri in config.data.train]
    plan = make_plan(config, shard_sets)
    horizon = Horizon.of(config, plan)
    checkpoint.seed_generators(config.seed, 0, rank)  # dropout differs between ranks
    state = _resume(engine, config, shard_sets, rank, world)
    attempt = _shared_token(rank)
    sampling = sampling_of(config, frame_size)
    words = partial(tokenize, max_words=config.model.max_words)
    pairs = stream.PairStream(
        shard_sets, plan, sampling, words, rank, world, start_step=state.step, cache_dir=config.data.cache_dir
    )
    batches = stream.make_loader(pairs, config.data.loader_workers, config.data.prefetch)
    log = RunLog(config.run_directory, state.step) if rank == 0 else None
    meter = Meter(horizon, config, world)
    videos = sum(shard_set.manifest.videos for shard_set in shard_sets)

    while state.step < horizon.total:
        # Step
        factor = set_learning_rates(engine, config.training, state.step, horizon.total)
        batch = meter.wait_for(batches)
        engine.train()
        losses = backward_global_batch(
            engine, partial(backward, engine), config.loss, _to_device(batch, device), config.training.accumulate
        )
        engine.step()
        state.step += 1
        meter.count(batch, losses)
        state.metrics = {}
        scored = bool(config.data.validation) and (
            state.step % horizon.evaluate_every == 0 or state.step == horizon.total
        )
        saved = state.step % horizon.save_every == 0 or state.step == horizon.total or scored

        # Log
        if state.step % config.training.log_every == 0 or saved:
            row = meter.row(engine, factor, state, videos, config.data.max_bad_fraction)
            if log is not None:
                log.write(state.step, row)
                log.quarantine(state.quarantined)
                print(meter.line(state.step, row), flush=True)

        # Evaluate
        if scored:
            state.metrics = _evaluate(engine, config, sampling, rank, world, device)
            if log is not None:
                log.write(state.step, state.metrics)
                print(f"step={state.step} {SELECTION_METRIC}={state.metrics[SELECTION_METRIC]:.2f}", flush=True)

        # Save
        if saved:
            _save(engine, state, config.run_directory, rank, world, attempt)
            if log is not None:
                log.flush()
    if log is not None:
        log.close()


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
            if universal.needed(saved, world):
                node, leads = context.get_node_rank(), context.get_local_rank() == 0
                with universal.converted(folder, name, saved, rank, node, leads=leads) as whole:
                    universal.load(engine, whole)
                checkpoint.restore_generators(folder, saved, rank)
            else:
                checkpoint.restore(engine, folder, saved, rank)
        if rank == 0:
            print(f"resumed step={saved.step} from {name}", flush=True)
        return TrainState(saved.step, world, config.training.zero_stage, values, manifests, saved.quarantined)
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


def _save(engine: Any, state: TrainState, run_directory: str, rank: int, world: int, attempt: str) -> None:
    """Write this rank's files and hand them to Ray Train, which uploads them while training goes on."""
    folder = tempfile.mkdtemp(prefix="checkpoint-", dir=os.getcwd())  # the worker's own folder in Ray's session
    try:
        with checkpoint.explained(folder):
            checkpoint.save(engine, folder, state, rank)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    ray.train.report(
        {"step": state.step, **state.metrics},
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_dir_name=checkpoint.directory_name(state.step, world, attempt),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=partial(_upload, ray.train.get_context().get_storage(), run_directory),
    )


def _upload(place: Any, run_directory: str, local: Checkpoint, name: str) -> Checkpoint:
    """What Ray Train calls in a thread of its own; its own way lists folders, and cannot say why it failed."""
    try:
        checkpoint.upload(local.path, storage.join(run_directory, name))
    except BaseException:
        shutil.rmtree(local.path, ignore_errors=True)
        raise
    return Checkpoint(place.build_checkpoint_path_from_name(name), place.storage_filesystem)


def _evaluate(
    engine: Any, config: RunConfig, sampling: FrameSampling, rank: int, world: int, device: torch.device
) -> dict[str, float]:
    """Held-out metrics, every rank embedding and scoring its share; the same dictionary on every rank."""
    model = evaluation_model(engine)
    tokens = partial(tokenize, max_words=config.model.max_words)
    metrics: dict[str, float] = {}
    for uri in config.data.validation:
        shard_set = open_shard_set(uri)
        own = split_rows(shard_set.manifest.videos, rank, world)
        gallery = Gallery(shard_set, own.start, own.stop, sampling, tokens, config.evaluation.batch_size)
        parts: list[Any] = [None] * world
        distributed.all_gather_object(parts, embed(model, gallery, config.data.loader_workers, device))
        embeddings = concatenate(parts)
        scores: list[Any] = [None] * world
        with torch.no_grad():
            result = score_part(partial(model, "score"), embeddings, config.evaluation, Part(rank, world), device)
        distributed.all_gather_object(scores, result)
        directions = metrics_of(merge(scores))
        domain = shard_set.manifest.domain
        for direction, values in directions.items():
            metrics |= {f"validation/{domain}/{direction}_R@{k}": float(values[f"R@{k}"]) for k in (1, 5, 10)}
    recalls = [value for name, value in metrics.items() if name.endswith("text_to_video_R@1")]
    metrics[SELECTION_METRIC] = sum(recalls) / len(recalls)
    return metrics


def _to_device(batch: stream.Batch, device: torch.device) -> Batch:
    fields = (batch.token_ids, batch.frames, batch.frame_mask, batch.video_ids)
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in fields))


def _shared_token(rank: int) -> str:
    """A few random characters, the same on every rank, that tell this attempt's checkpoints from others'."""
    token = [uuid.uuid4().hex[:8] if rank == 0 else None]
    distributed.broadcast_object_list(token)
    return str(token[0])
