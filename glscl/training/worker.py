"""The training loop, as every rank runs it: load, step, log, evaluate, save."""

import logging
import os
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch

from glscl.data.activity import ActivityTable
from glscl.data.augment import ClipAugmentation
from glscl.data.feed import Feed
from glscl.data.quarantine import KNOB, Quarantine, UnusableSetError
from glscl.data.shards import open_shard_set
from glscl.data.stream import Batch, PairStream
from glscl.errors import RunStoppedError, UserError, full_disk
from glscl.models.caption_tokenizer import build_tokenizer
from glscl.models.freezing import describe_training, frozen_fingerprint
from glscl.models.retriever import Retriever
from glscl.system.ownership import Fence
from glscl.system.ray_internals.cluster import KeyValueStore, print_no_traceback_of
from glscl.system.redaction import redacted_errors
from glscl.training.checkpoint.format import SELECTION_METRIC, directory_name, seed_generators
from glscl.training.checkpoint.retention import Retention
from glscl.training.collectives import broadcast_object, gather_objects, print_once, rank, world_size
from glscl.training.config import RunConfig
from glscl.training.engine import backward, build_engine, compile_parts, evaluation_model, set_learning_rates
from glscl.training.global_batch import RankPairs, backward_global_batch
from glscl.training.health.heartbeat import Consensus, HeartbeatSender, Limits, Phase, StepRequest
from glscl.training.held_out import HeldOut
from glscl.training.non_finite import NonFiniteSteps
from glscl.training.run_log import Log, Repairs, RunLog
from glscl.training.saving import Saver, resume
from glscl.training.schedule import (
    RunLength,
    accumulation_steps,
    check_shared_memory,
    describe_batch,
    make_plan,
    make_sampling,
    usable_world_sizes,
)
from glscl.training.speed import StepClock, prepare_arithmetic
from glscl.training.step_metrics import StepMetrics
from glscl.training.trackers import start_trackers


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a worker group ended before the last step, where Ray Train must not restart it."""

    failure: str | None = None
    """A reason that a restart would find again; None where a signal asked for the end."""
    step: int = 0
    checkpoint: str = ""
    """Saved at that step, because of the signal."""


@dataclass(frozen=True, slots=True)
class Due:
    """Actions that follow a step, the same on every rank."""

    log: bool
    evaluate: bool
    save: bool
    stop: bool


def train_worker(values: dict[str, Any]) -> Ending | None:
    """Train from the latest complete checkpoint to the last step, as one rank of Ray Train's worker group.

    ``values`` are ``config``, the resolved `RunConfig` as plain values, ``store``, the token under which driver and
    ranks find each other, and ``fence``, the driver's claim to the run directory. Returns None at the end of training,
    else why it ended before (Ray Train restarts workers that raise).
    """
    print_no_traceback_of(UserError)
    with redacted_errors():
        try:
            return _train(RunConfig.model_validate(values["config"]), values["store"], Fence(**values["fence"]))
        except RunStoppedError as error:
            return Ending(failure=str(error))
        except OSError as error:
            raise full_disk(error, values["config"]["storage"]) or error from error


def _train(config: RunConfig, token: str, fence: Fence) -> Ending | None:
    logging.getLogger().setLevel(logging.WARNING)  # Ray announces every report at INFO
    device = torch.device("cpu")
    if config.training.on_gpu:
        device = ray.train.torch.get_device()
        torch.cuda.set_device(device)  # collectives of objects travel through the current device
    attempt = broadcast_object(uuid.uuid4().hex[:8])
    limits = Limits(config.data.stall_timeout_s, config.training.hang_timeout_s)
    boards = ActivityTable(config.data.loaders), ActivityTable(config.data.loaders)
    checks = rank() == 0 and os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"
    with ExitStack() as exits:
        heartbeats = HeartbeatSender(KeyValueStore(token), limits, attempt, rank(), boards, checks_preemption=checks)
        exits.enter_context(heartbeats)
        worker = Worker(config, device, attempt, heartbeats, boards, fence)
        exits.push(lambda kind, *_: worker.log_file.close(failed=kind is not None))
        return worker.train()


class Worker:
    """One rank of a training run, resumed from the latest complete checkpoint.

    ``attempt`` is the token of this worker group; ``boards`` say what the processes do that read the training stream,
    and those that read held-out sets; ``fence`` is of the driver that owns the run directory.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        attempt: str,
        heartbeats: HeartbeatSender,
        boards: tuple[ActivityTable, ActivityTable],
        fence: Fence,
    ) -> None:
        self.config, self.device, self.attempt = config, device, attempt
        self.heartbeats = heartbeats
        torch.manual_seed(config.seed)
        self.shard_sets = [open_shard_set(uri) for uri in config.data.train]
        on_features = self.shard_sets[0].manifest.features is not None
        model = Retriever(config.model, towers=not on_features)
        self.tokenize = build_tokenizer(config.model)
        self.plan = make_plan(config, self.shard_sets)
        self.sampling = make_sampling(config, model.frame_size, self.shard_sets)
        held_out = [open_shard_set(uri) for uri in config.data.validation]
        # Before the collectives of the engine, so before any worker of this machine has filled some of it.
        local_workers = ray.train.get_context().get_local_world_size()
        check_shared_memory(config, self.sampling, held_out, world_size(), local_workers)
        self.length = RunLength.of(config, self.plan)
        world_sizes = usable_world_sizes(config, self.plan)
        self.accumulate = accumulation_steps(config.training, world_sizes, world_size())
        training = config.training.model_copy(update={"accumulate": self.accumulate})
        busy = prepare_arithmetic(config, model, device)
        if config.model.freeze != "none":
            print_once(f"trained: {describe_training(model, config.model)}")
        # Of rank 0, which gives its parameters to all.
        frozen = broadcast_object(frozen_fingerprint(model, config.model) if rank() == 0 else None)
        self.engine = build_engine(model, training, device, world_size())
        if training.compiles:
            compile_parts(model)
        seed_generators(config.seed, 0, rank())  # dropout differs between ranks

        self.state = resume(self.engine, config, self.shard_sets, frozen)
        self.batches = self._batches(boards[0])
        folder = config.run_directory if rank() == 0 else None
        self.quarantine = Quarantine(folder, config.data.max_bad_fraction, KNOB, self.state.quarantined, fence)
        self.state.quarantined = self.quarantine.entries
        self.repairs = Repairs(folder, fence)
        self.held_out = HeldOut(config, self.sampling, self.tokenize, device, boards[1], self.quarantine, heartbeats)
        self.metrics = StepMetrics(self.length, config.training.global_batch, busy)
        self.clock = StepClock(device, "head and loss" if on_features else "towers")
        self.non_finite = NonFiniteSteps()
        self.consensus = Consensus()
        self.saver = Saver(fence)
        self.checkpoint = max(Retention(config.run_directory, config.checkpoint.keep).known(), default="none")
        self._factor = 0.0
        self._truncated = 0
        self._compiles = training.compiles
        self._unusable: list[dict[str, str]] = []
        self._leaving_nodes: set[str] = set()  # nodes for whose loss a checkpoint was saved
        batch = describe_batch(config.training, world_sizes, world_size())
        print_once(f"global batch: {config.training.global_batch} pairs = {batch}")
        # Last, because `_train` closes it.
        self.log_file = Log()
        if rank() == 0:
            self.log_file = RunLog(config.run_directory, self.state.step, fence, start_trackers(config, fence))

    def _batches(self, board: ActivityTable) -> Feed:
        data = self.config.data
        pairs = PairStream(
            self.shard_sets,
            self.plan,
            self.sampling,
            self.tokenize,
            rank(),
            world_size(),
            start_step=self.state.step,
            cache_dir=data.cache_dir,
            activity=board,
            augmentation=ClipAugmentation(data.augment, self.config.seed) if data.augment else None,
            cache_mb=data.cache_mb,
        )
        return Feed(pairs, data.loaders, data.prefetch, self.device)

    def train(self) -> Ending | None:
        """Train to the last step; returns an `Ending` if a signal asked to stop before it."""
        while self.state.step < self.length.total:
            if self.length.shows_time(self.state.step):
                self.clock.start()
            self.consensus.send(self.heartbeats.step_request())
            self.step(self.next_batch())
            self.fetch()
            due = self.due(self.consensus.result())
            if due.log:
                self.log()
            if due.evaluate:
                self.evaluate()
            if due.save:
                self.save()
            if due.stop:
                return Ending(step=self.state.step, checkpoint=self.checkpoint)
        return None

    def next_batch(self) -> Batch:
        """The next batch; the driver hears of videos that cannot be used before anything else can happen."""
        self.heartbeats.at(Phase.LOADING, self.state.step + 1)
        self.clock.enter("data")
        try:
            with self.metrics.waiting():
                batch = next(self.batches)
        except UnusableSetError as error:
            self.heartbeats.report_unusable("train", error.quarantined)
            raise
        self.heartbeats.report_unusable("train", batch.quarantined)
        return batch

    def fetch(self) -> None:
        """Have the next batch copied to a GPU while it still computes this step."""
        if self.state.step < self.length.total:
            self.heartbeats.at(Phase.LOADING, self.state.step + 1)
            with self.metrics.waiting():
                self.batches.fetch()

    def step(self, batch: Batch) -> None:
        """Run forward, backward and update on this rank's share of the global batch (collective)."""
        if self.state.step and self.state.step == self.config.training.head_only_steps(self.length.total):
            print_once(f"step {self.state.step + 1}: from here on everything is trained, not the head alone")
            self._compiles = self.config.training.compiles  # the towers again, now with gradients
        self.heartbeats.at(Phase.COMPILING if self._compiles else Phase.STEPPING, self.state.step + 1)
        self._factor = set_learning_rates(self.engine, self.config.training, self.state.step, self.length.total)
        self.engine.train()
        tensors = (*batch.text, batch.frames, batch.frame_mask, batch.video_ids)
        *text, frames, mask, video_ids = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        pairs = RankPairs(tuple(text), frames, mask, video_ids)
        began = time.perf_counter()
        call = self.clock.timed(self.engine)
        losses = backward_global_batch(
            call, partial(backward, self.engine), self.config.loss, pairs, self.accumulate, self._draws_seed()
        )
        self.clock.enter("optimiser")
        self.engine.step()
        self.clock.stop()
        self.state.step += 1
        if self._compiles:
            losses["total"].item()  # wait for the device, this once
            print_once(f"step {self.state.step} took {time.perf_counter() - began:.1f} s: it compiled towers and head")
            self._compiles = False
        self.state.metrics = {}
        self.repairs.add(batch.repaired)
        self.metrics.count(losses, pairs.frame_mask)
        self.non_finite.count(self.state.step, batch.names, losses, self.engine.get_global_grad_norm())
        self._unusable += batch.quarantined
        self._truncated += batch.truncated

    def _draws_seed(self) -> int:
        """Of the random numbers that belong to pairs: one number a step, the same on every rank and after a restart."""
        return self.config.seed * 1_000_003 + self.state.step

    def due(self, request: StepRequest) -> Due:
        """What follows the step that was just done, the same on every rank."""
        step, last = self.state.step, self.state.step == self.length.total
        evaluate = bool(self.config.data.validation) and (step % self.length.evaluate_every == 0 or last)
        leaving = request == StepRequest.CHECK_PREEMPTION and self._nodes_leave()
        stop = request == StepRequest.STOP
        save = step % self.length.save_every == 0 or last or evaluate or leaving or stop
        log = step % self.config.training.log_every == 0 or save
        return Due(log, evaluate, save, stop and not last)

    def _nodes_leave(self) -> bool:
        """Whether Ray names nodes of this worker group that are about to be taken away for the first time.

        Collective. Training goes on until they are: Ray Train restarts the group then, elsewhere.
        """
        info = ray.train.get_preemption_info()
        if info is None or self._leaving_nodes.issuperset(info.preempted_node_ids):
            return False
        self._leaving_nodes.update(info.preempted_node_ids)
        print_once(f"nodes of ranks {info.preempted_ranks} are about to be taken away: saving")
        return True

    def log(self) -> None:
        """Write a row of figures over all ranks (collective).

        Raises `RunStoppedError`: a loss or gradient is not finite, or too many videos of a training set are unusable.
        """
        step = self.state.step
        self.heartbeats.at(Phase.LOGGING, step)
        bad_step = self.non_finite.first(self.engine, step)
        ranks = gather_objects((self.metrics.local_figures(), self._unusable, self._truncated, bad_step))
        figures, entries, truncated, bad_steps = zip(*ranks, strict=True)
        self._unusable, self._truncated = [], 0
        self.quarantine.take("train", self.shard_sets, [entry for of_rank in entries for entry in of_rank])
        unusable = sum(entry["part"] == "train" for entry in self.quarantine.entries)
        row = self.metrics.row(figures, sum(truncated), unusable, step, self._factor)
        if (norm := self.engine.get_global_grad_norm()) is not None:  # before clipping
            row["gradient_norm"] = float(norm)
        if report := self.non_finite.check(bad_steps):
            self.log_file.write_non_finite(report)
            raise RunStoppedError(report.describe(self.checkpoint))
        if problem := self.quarantine.problem("train", self.shard_sets):
            raise RunStoppedError(problem)
        row["repaired"] = self.repairs.gather()
        seconds = self.clock.seconds()
        self.log_file.write(step, row | {f"seconds/{what.replace(' ', '_')}": seconds[what] for what in seconds})
        print_once(self.metrics.line(step, row))
        if seconds:
            parts = ", ".join(f"{what} {value / sum(seconds.values()):.0%}" for what, value in seconds.items())
            print_once(f"a step of {sum(seconds.values()):.3f} s: {parts}")

    def evaluate(self) -> None:
        """Score the held-out sets (collective)."""
        self.heartbeats.at(Phase.EVALUATING, self.state.step)
        with torch.compiler.set_stance("force_eager"):  # sizes of batches differ there
            self.state.metrics = self.held_out.score(evaluation_model(self.engine))
        self.log_file.write(self.state.step, self.state.metrics)
        print_once(f"step={self.state.step} {SELECTION_METRIC}={self.state.metrics[SELECTION_METRIC]:.2f}")

    def save(self) -> None:
        """Save a checkpoint (collective)."""
        self.heartbeats.at(Phase.UPLOADING, self.state.step)
        self.saver.wait()
        self.heartbeats.at(Phase.SAVING, self.state.step)
        self.log_file.flush()  # first: a run that resumes from this checkpoint keeps the rows up to it
        name = directory_name(self.state.step, world_size(), self.attempt)
        self.saver.save(self.engine, self.state, name, self.metrics.seconds_left(self.state.step))
        self.checkpoint = name
