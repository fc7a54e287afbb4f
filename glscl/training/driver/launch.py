"""The driver: start the worker group, hand on the best model, test it."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict
from typing import Any

from glscl.data.quarantine import FILE, KNOB, Part, Quarantine, incomplete, read_quarantine
from glscl.data.shards import open_shard_set, read_manifest
from glscl.errors import BrokenRunError, Stopped, UserError, full_disk
from glscl.evaluation.evaluate import evaluate_model
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.results import Results, Test
from glscl.evaluation.saved import FOLDER, ModelCard, read_card, save_model
from glscl.system import stopping, storage
from glscl.system.hardware import Share
from glscl.system.ownership import Owner
from glscl.system.session import check_resources, room
from glscl.training.checkpoint.format import TAG, IncompleteCheckpointError, check_complete, local_copy
from glscl.training.checkpoint.retention import ANOTHER, Keeper, Retention, cause_in
from glscl.training.checkpoint.safe_load import safe_loading
from glscl.training.config import RunConfig
from glscl.training.driver.outputs import build_results
from glscl.training.driver.preflight import CONFIG, Preflight
from glscl.training.health.watchdog import Limits, RayHub, Watch, signal_name
from glscl.training.run_log import read_metrics

_POLL_S = 0.2


def train(config: RunConfig, ready: Preflight, owner: Owner, *, keep_ranks: bool = False) -> Results:
    """Train (or continue) a run on the cluster, save its best model, and score it on ``data.test``.

    Args:
        config: resolved configuration.
        ready: from `preflight`.
        owner: of the run directory.
        keep_ranks: see `evaluate_model`.

    Returns:
        its results; ``tests`` is empty without ``data.test``.

    Raises:
        UserError: bad input that only the workers could see.
        TakenOverError: another command owns the run directory now; nothing was written there since.
        BrokenRunError: a worker hung or died more often than ``training.max_failures``.
        Stopped: a signal came; the run was saved.
        ray.train.TrainingFailedError: the worker group failed more often than ``training.max_failures``.
    """
    training = config.training
    fewest, most = ready.sizes[0], ready.sizes[-1]
    check_resources(fewest, training.cpus, training.on_gpu, training.wait_for_nodes_s, most)
    storage.write_json(storage.join(config.run_directory, CONFIG), config.model_dump(mode="json"))
    retention = Retention(config.run_directory, config.checkpoint.keep, owner.fence)
    retention.take_over()
    _fit(config, ready.sizes, owner)
    owner.fence.check()
    card = _save_best(config, ready, retention)
    retention.close()
    quarantine = quarantine_of(config)
    tests = score_tests(config, quarantine, bank=config.data.train, keep_ranks=keep_ranks)
    sets = incomplete_sets(config, quarantine)
    return build_results(card, tests, read_metrics(config.run_directory), sets, quarantine.entries)


def quarantine_of(config: RunConfig) -> Quarantine:
    """The list of a run whose training is over: what an earlier test found is forgotten."""
    known = [entry for entry in read_quarantine(config.run_directory) if entry.get("part") in ("train", "validation")]
    quarantine = Quarantine(config.run_directory, config.data.max_bad_fraction, KNOB, known)
    quarantine.write()
    return quarantine


def incomplete_sets(config: RunConfig, quarantine: Quarantine) -> list[dict[str, Any]]:
    """The sets of a run of which videos are missing (see `incomplete`)."""
    parts: list[tuple[Part, tuple[str, ...]]] = [
        ("train", config.data.train),
        ("validation", config.data.validation),
        ("test", config.data.test),
    ]
    sets = [(part, open_shard_set(uri)) for part, uris in parts for uri in uris]
    found = [incomplete(part, shard_set, quarantine.of(part, shard_set)) for part, shard_set in sets]
    return [entry for entry in found if entry]


def score_tests(
    config: RunConfig, quarantine: Quarantine, *, bank: Sequence[str] = (), keep_ranks: bool = False
) -> list[Test]:
    """Score the model in a run directory on ``data.test``, with as many actors as training has workers at most.

    Args:
        config: of the run.
        quarantine: see `evaluate_model`.
        bank: see `evaluate_model`.
        keep_ranks: see `evaluate_model`.
    """
    training = config.training
    there = room(training.cpus, training.on_gpu)
    return evaluate_model(
        config.run_directory,
        config.data.test,
        config.evaluation,
        workers=min(training.most_workers, max(training.fewest_workers, there)),
        use_gpu=training.on_gpu,
        cpus_per_worker=training.cpus,
        loader_workers=config.data.loaders,
        bank=bank,
        keep_ranks=keep_ranks,
        quarantine=quarantine,
    )


def _fit(config: RunConfig, sizes: tuple[int, ...], owner: Owner) -> None:
    from ray.exceptions import RayError
    from ray.train import FailureConfig, LoggingConfig, TrainingFailedError
    from ray.train import RunConfig as RayRunConfig

    from glscl.training.driver.elastic import Trainer
    from glscl.training.worker import train_worker

    training = config.training
    limits = Limits(config.data.stall_timeout_s, training.hang_timeout_s)
    # Ray and torch have limits of their own, which name nobody: they must not be the first to strike.
    later = max(1800, round(2 * training.hang_timeout_s))
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(later))
    hub = RayHub(uuid.uuid4().hex)
    path, filesystem = storage.ray_storage(config.storage)
    trainer = Trainer(
        train_worker,
        training,
        sizes,
        timeout_s=later,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "hub": hub.token,
            "fence": asdict(owner.fence),
        },
        run_config=RayRunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=filesystem,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=training.max_failures, controller_failure_limit=3),
            callbacks=[Keeper(config.run_directory, config.checkpoint.keep, owner.fence)],
        ),
    )
    watch = Watch(hub, limits)
    try:
        result = _watched(trainer, watch, owner)
    except TrainingFailedError as error:
        raise _reason(error, watch, config.storage) from error
    finally:
        with suppress(RayError):  # the cluster may be what has failed
            _list_found(config, watch)
            hub.clear()
    ended = result.return_value or {}
    if "failed" in ended:
        raise UserError(ended["failed"])
    if "stopped" in ended:
        raise Stopped(
            ended["stopped"],
            f" at step {ended['step']}, checkpoint {ended['checkpoint']}; the same command continues",
        )


def _list_found(config: RunConfig, watch: Watch) -> None:
    """List what the ranks found, however they ended: the log's rows have it only up to the last row."""
    everything = watch.found()
    if not everything:
        return
    parts: tuple[Part, ...] = ("train", "validation")
    try:
        known = read_quarantine(config.run_directory)
        quarantine = Quarantine(config.run_directory, config.data.max_bad_fraction, KNOB, known)
        for part in parts:
            found = [entry for entry in everything if entry["part"] == part]
            quarantine.take(part, [read_manifest(uri) for uri in dict.fromkeys(e["set"] for e in found)], found)
    except (UserError, OSError) as error:  # what ended the run is the error to hear of
        print(f"{FILE} cannot be written ({type(error).__name__}: {error})", flush=True)


def _watched(trainer: Any, watch: Watch, owner: Owner) -> Any:
    """Run ``trainer.fit()`` to its end, judging what the ranks note and handing on what signals ask for.

    In a thread of its own: this one has to be free for signals (and Ray Train handles Ctrl-C itself in a main thread,
    by throwing the steps since the last checkpoint away).
    """
    import ray

    ended: Future[Any] = Future()

    def fit() -> None:
        try:
            ended.set_result(trainer.fit())
        except BaseException as error:
            ended.set_exception(error)

    with stopping.deferred() as asked:
        threading.Thread(target=fit, name="glscl-fit", daemon=True).start()
        told, next_poll = False, 0.0
        while not wait([ended], timeout=_POLL_S).done:
            owner.check()
            with suppress(ray.exceptions.RayError, OSError):  # Ray is away for a moment; if for good, fit() ends
                if time.monotonic() >= next_poll:
                    next_poll = time.monotonic() + watch.period_s
                    if failure := watch.poll():
                        print(f"watchdog: {failure}; the worker group is ended", flush=True)
                if (signum := asked()) and not told:
                    begun = watch.stop(signum)
                    told = True
                    if not begun:
                        raise Stopped(signum, " before the first step; the same command starts again")
                    print(f"{signal_name(signum)}: saving at the end of this step (again: end at once)", flush=True)
        result = ended.result()
    if asked() and not result.return_value:
        raise Stopped(asked(), " after the last step; the same command tests and reports")
    return result


def _reason(error: Any, watch: Watch, storage_of_run: str) -> BaseException:
    """Why the worker group failed for good, in a line where it is known."""
    from glscl.training.driver.elastic import IN_USE, is_in_use

    if failure := watch.failure():
        return BrokenRunError(f"{failure}. It was so after every restart (training.max_failures)")
    failures = getattr(error, "worker_failures", {})
    causes = [*failures.values(), getattr(error, "controller_failure", None)]
    if reason := cause_in(causes, (UserError, BrokenRunError)):
        return type(reason)(str(reason))
    if full := next(filter(None, (full_disk(cause, storage_of_run) for cause in causes)), None):
        return full
    if is_in_use(error):
        return UserError(f"{IN_USE}: wait for its end, lower training.num_workers or raise training.wait_for_nodes_s")
    for rank, failed in failures.items():
        note = watch.last_heard(rank)
        if note and type(failed).__name__ in ("ActorDiedError", "RayActorError", "WorkerHealthCheckFailedError"):
            return BrokenRunError(
                f"{note.name()} died; last heard it was {note.doing()}. Its machine may be gone or its memory too "
                f"small (Ray: {' '.join(str(failed).split())[:200]})"
            )
    return error  # type: ignore[no-any-return]


def _save_best(config: RunConfig, ready: Preflight, retention: Retention) -> ModelCard:
    """Gather the best checkpoint's shards into one safetensors file."""
    for best in retention.best():
        try:
            with local_copy(storage.join(config.run_directory, best.name)) as folder:
                state = check_complete(folder)
                card = ModelCard(
                    model=config.model,
                    sample_fps=config.data.sample_fps,
                    decoder=config.data.decoder,
                    max_decode_s=config.data.max_decode_s,
                    train_domains=ready.train_domains,
                    step=state.step,
                    seed=config.seed,
                    run=config.name,
                    validation=state.metrics,
                )
                weights = whole_weights(folder, state.zero_stage)
                save_model(storage.join(config.run_directory, FOLDER), card, weights)
                return card
        except IncompleteCheckpointError as error:
            print(f"checkpoint {best.name} is incomplete ({error}): the next best is taken", flush=True)
    raise UserError(f"{config.run_directory}: the run ended without a complete checkpoint; {ANOTHER}")


def whole_weights(folder: str, zero_stage: int) -> dict[str, Any]:
    """Unsharded weights of a checkpoint.

    They are the optimiser's fp32 ones, except under ZeRO 0 with bf16, whose files name only the bf16 ones.
    """
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # the driver only reads files
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if zero_stage == 0:
        path = os.path.join(folder, TAG, "mp_rank_00_model_states.pt")
        with safe_loading(folder):
            module: dict[str, Any] = torch.load(path, map_location="cpu")["module"]
        return module
    with (
        safe_loading(folder),
        open(os.devnull, "w") as silent,
        redirect_stdout(silent),  # it prints every parameter
        redirect_stderr(silent),
    ):
        return dict(get_fp32_state_dict_from_zero_checkpoint(folder, tag=TAG))


def evaluate(
    run: str,
    tests: Sequence[str],
    config: EvaluationConfig,
    share: Share,
    *,
    quarantine: Quarantine,
    bank: Sequence[str] = (),
) -> Results:
    """Score a finished run (or a saved model) on any shard sets with such actors; see `evaluate_model`."""
    _, card = read_card(run)
    check_resources(share.workers, share.cpus, share.use_gpu)
    scored = evaluate_model(
        run,
        tests,
        config,
        workers=share.workers,
        use_gpu=share.use_gpu,
        cpus_per_worker=share.cpus,
        loader_workers=share.loaders,
        bank=bank,
        quarantine=quarantine,
    )
    sets = [open_shard_set(uri) for uri in tests]
    missing = [entry for s in sets if (entry := incomplete("test", s, quarantine.of("test", s)))]
    return build_results(card, scored, read_metrics(run), missing, quarantine.entries)
