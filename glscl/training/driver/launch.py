"""The driver of a run: start the worker group, save the best model, score it on the test sets."""

import os
import signal
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from glscl.data.quarantine import FILE, KNOB, Incomplete, Part, Quarantine, find_incomplete, read_quarantine
from glscl.data.shards import open_shard_set, read_manifest
from glscl.errors import BrokenRunError, Stopped, UserError, full_disk
from glscl.evaluation.evaluate import evaluate_model
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.results import Results
from glscl.evaluation.saved import FOLDER, ModelCard, read_card, save_model
from glscl.evaluation.trec import TrecFiles
from glscl.evaluation.wise_ft import Mix
from glscl.system import stopping, storage
from glscl.system.nodes import Share, alive_nodes, capacity_of_nodes, check_resources
from glscl.system.ownership import Owner
from glscl.system.progress import Progress
from glscl.training.checkpoint.format import TAG, IncompleteCheckpointError, check_complete
from glscl.training.checkpoint.retention import ANOTHER, Retention, cause_in
from glscl.training.checkpoint.safe_load import safe_loading
from glscl.training.checkpoint.transfer import local_copy
from glscl.training.config import RunConfig
from glscl.training.driver.alone import train_alone
from glscl.training.driver.outputs import build_results
from glscl.training.driver.preflight import CONFIG, Preflight
from glscl.training.health.heartbeat import Limits
from glscl.training.health.watchdog import Watchdog
from glscl.training.run_log import read_metrics

if TYPE_CHECKING:
    from ray.train import Result

    from glscl.system.ray_internals.train import PolicyTrainer
    from glscl.training.worker import Ending

_POLL_S = 0.2


def train(
    config: RunConfig, ready: Preflight, owner: Owner, *, keep_ranks: bool = False, here: bool = False
) -> Results:
    """Train (or continue) a run on the cluster, save its best model, and score it on ``data.test``.

    The configuration is a resolved one, and ``keep_ranks`` is for `evaluate_model`. ``here`` does all of it in this
    process, which has the one worker's resources (see `train_alone`). Raises `UserError`: bad input that
    only the workers could see; `TakenOverError`: another command owns the run directory now, nothing was written there
    since; `BrokenRunError` or ``ray.train.TrainingFailedError``: workers hung, died or failed more often than
    ``training.max_failures``; `Stopped`: a signal came, and the run was saved.
    """
    training = config.training
    fewest, most = ready.world_sizes[0], ready.world_sizes[-1]
    if not here:
        check_resources(fewest, training.cpus, training.on_gpu, training.wait_for_nodes_s, most)
    storage.write_json(storage.join(config.run_directory, CONFIG), config.model_dump(mode="json"))
    retention = Retention(config.run_directory, config.checkpoint.keep, owner.fence)
    retention.prune_at_start()
    _fit(config, ready, owner, here=here)
    owner.fence.check()
    card = _save_best(config, ready, retention)
    retention.prune_at_end()
    return score_run(config, card, config.data.train, keep_ranks=keep_ranks, here=here)


def score_run(
    config: RunConfig, card: ModelCard, bank: Sequence[str] = (), *, keep_ranks: bool = False, here: bool = False
) -> Results:
    """Score the model in a run directory on ``data.test``, with as many actors as training has workers at most.

    What an earlier test has listed as unusable is forgotten. ``bank``, ``keep_ranks`` and ``here`` are for
    `evaluate_model`.
    """
    data, run = config.data, config.run_directory
    known = [entry for entry in read_quarantine(run) if entry.get("part") in ("train", "validation")]
    quarantine = Quarantine(run, data.max_bad_fraction, KNOB, known)
    quarantine.write()
    share = share_of_actors(config)
    tests = evaluate_model(
        run, data.test, config.evaluation, share, quarantine, bank=bank, keep_ranks=keep_ranks, here=here
    )
    sets = _incomplete({"train": data.train, "validation": data.validation, "test": data.test}, quarantine)
    return build_results(card, tests, read_metrics(run), sets, quarantine.entries)


def share_of_actors(config: RunConfig) -> Share:
    """What tests a run: as many actors as training has workers, if they fit by now."""
    training = config.training
    capacity = capacity_of_nodes(alive_nodes(), training.cpus, training.on_gpu)
    workers = min(training.most_workers, max(training.fewest_workers, capacity))
    return Share(workers, training.on_gpu, training.cpus, config.data.loaders)


def _incomplete(parts: Mapping[Part, Sequence[str]], quarantine: Quarantine) -> list[Incomplete]:
    sets = [(part, shard_set) for part, uris in parts.items() for shard_set in map(open_shard_set, uris)]
    found = (find_incomplete(part, shard_set, quarantine.of(part, shard_set)) for part, shard_set in sets)
    return [entry for entry in found if entry]


def _fit(config: RunConfig, ready: Preflight, owner: Owner, *, here: bool) -> None:
    """Run the worker group to the end of training; raises what `train` does."""
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    from glscl.system.ray_internals.cluster import KeyValueStore

    store = KeyValueStore(uuid.uuid4().hex)
    # Ray and torch have limits of their own, which name nobody: they must not be the first to strike.
    timeout_s = max(1800, round(2 * config.training.hang_timeout_s))
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(timeout_s))
    watchdog = Watchdog(store, Limits(config.data.stall_timeout_s, config.training.hang_timeout_s))
    signum, ending = 0, None
    try:
        if here:
            ending = train_alone(config, store.token, owner)
        else:
            trainer = _build_trainer(config, ready.world_sizes, owner, store.token, timeout_s)
            with Progress(f"training {config.name}", ready.steps, "steps", done=None, lines=False) as progress:
                signum, ending = _run_watched(trainer, watchdog, owner, progress)
    except TrainingFailedError as error:
        raise _explain_failure(error, watchdog, config.storage) from error
    finally:
        with suppress(RayError):  # the cluster may be what has failed
            _list_unusable(config, watchdog)
            store.clear()
    if ending is not None and ending.failure is not None:
        raise UserError(ending.failure)
    if ending is not None:
        where = f" at step {ending.step}, checkpoint {ending.checkpoint}"
        raise Stopped(signum, f"{where}; the same command continues")
    if signum:
        raise Stopped(signum, " after the last step; the same command tests and reports")


def _build_trainer(
    config: RunConfig, world_sizes: tuple[int, ...], owner: Owner, token: str, timeout_s: int
) -> "PolicyTrainer":
    from ray.train import FailureConfig, LoggingConfig
    from ray.train import RunConfig as RayRunConfig

    from glscl.training.checkpoint.callback import RetentionCallback
    from glscl.training.driver.elastic import build_trainer
    from glscl.training.worker import train_worker

    path, filesystem = storage.ray_storage(config.storage)
    return build_trainer(
        train_worker,
        config.training,
        world_sizes,
        timeout_s,
        train_loop_config={"config": config.model_dump(mode="json"), "store": token, "fence": asdict(owner.fence)},
        run_config=RayRunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=filesystem,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=config.training.max_failures, controller_failure_limit=3),
            callbacks=[RetentionCallback(config.run_directory, config.checkpoint.keep, owner.fence)],
        ),
    )


def _list_unusable(config: RunConfig, watchdog: Watchdog) -> None:
    """List the videos that the ranks reported, however they ended: the log has them only up to its last row."""
    everything = watchdog.unusable_videos()
    if not everything:
        return
    parts: tuple[Part, ...] = ("train", "validation")
    try:
        known = read_quarantine(config.run_directory)
        quarantine = Quarantine(config.run_directory, config.data.max_bad_fraction, KNOB, known)
        for part in parts:
            entries = [entry for entry in everything if entry["part"] == part]
            manifests = [read_manifest(uri) for uri in dict.fromkeys(entry["set"] for entry in entries)]
            quarantine.take(part, manifests, entries)
    except (UserError, OSError) as error:  # what ended the run is the error to hear of
        print(f"{FILE} cannot be written ({type(error).__name__}: {error})", flush=True)


def _run_watched(
    trainer: "PolicyTrainer", watchdog: Watchdog, owner: Owner, progress: Progress
) -> "tuple[int, Ending | None]":
    """Run ``trainer.fit()`` to its end, diagnosing the ranks' heartbeats and handing on what signals ask for.

    In a thread of its own: this one has to be free for signals (and Ray Train handles Ctrl-C itself in a main thread,
    by throwing the steps since the last checkpoint away). Returns the number of the signal that came, or 0, and why the
    workers ended.
    """
    import ray

    outcome: Future[Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    with stopping.deferred() as signal_came:
        threading.Thread(target=fit, name="glscl-fit", daemon=True).start()
        handed_on, next_poll = False, 0.0
        while not wait([outcome], timeout=_POLL_S).done:
            owner.check()
            with suppress(ray.exceptions.RayError, OSError):  # Ray is away for a moment; if for good, fit() ends
                if time.monotonic() >= next_poll:
                    next_poll = time.monotonic() + watchdog.period_s
                    if failure := watchdog.poll():
                        print(f"watchdog: {failure}; the worker group is ended", flush=True)
                    if step := watchdog.step():
                        progress.reach(step)
                if (signum := signal_came()) and not handed_on:
                    begun = watchdog.stop()
                    handed_on = True
                    if not begun:
                        raise Stopped(signum, " before the first step; the same command starts again")
                    name = signal.Signals(signum).name
                    print(f"{name}: saving at the end of this step (again: end at once)", flush=True)
        result = outcome.result()
    return signal_came(), result.return_value


def _explain_failure(error: BaseException, watchdog: Watchdog, storage_of_run: str) -> BaseException:
    """The error that says in a line why the worker group failed for good, where that is known."""
    from glscl.system.ray_internals.train import lacked_free_resources
    from glscl.training.driver.elastic import IN_USE

    if failure := watchdog.failure():
        return BrokenRunError(f"{failure}. It was so after every restart (training.max_failures)")
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    causes = [*failures.values(), getattr(error, "controller_failure", None)]
    if reason := cause_in(causes, (UserError, BrokenRunError)):
        return type(reason)(str(reason))
    if full := next(filter(None, (full_disk(cause, storage_of_run) for cause in causes)), None):
        return full
    if lacked_free_resources(error):
        return UserError(f"{IN_USE}: wait for its end, lower training.num_workers or raise training.wait_for_nodes_s")
    for rank, failed in failures.items():
        heartbeat = watchdog.last_heartbeat(rank)
        if heartbeat and type(failed).__name__ in ("ActorDiedError", "RayActorError", "WorkerHealthCheckFailedError"):
            return BrokenRunError(
                f"{heartbeat.name()} died; last heard it was {heartbeat.doing()}. Its machine may be gone or its "
                f"memory too small (Ray: {' '.join(str(failed).split())[:200]})"
            )
    return error


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
                    frozen=state.frozen,
                    towers=ready.towers,
                )
                weights = whole_weights(folder, state.zero_stage)
                save_model(storage.join(config.run_directory, FOLDER), card, weights)
                return card
        except IncompleteCheckpointError as error:
            print(f"checkpoint {best.name} is incomplete ({error}): the next best is taken", flush=True)
    raise UserError(f"{config.run_directory}: the run ended without a complete checkpoint; {ANOTHER}")


def whole_weights(folder: str, zero_stage: int) -> dict[str, Any]:
    """Unsharded weights of a checkpoint: the optimiser's fp32 ones, under ZeRO 0 the model's own; no frozen ones."""
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
    quarantine: Quarantine,
    *,
    bank: Sequence[str],
    mixes: Sequence[Mix],
    trec: TrecFiles | None = None,
) -> Results:
    """Score a finished run (or a saved model) on any shard sets with such actors; see `evaluate_model`."""
    _, card = read_card(run)
    scored = evaluate_model(run, tests, config, share, quarantine, bank=bank, mixes=mixes, trec=trec)
    return build_results(card, scored, read_metrics(run), _incomplete({"test": tests}, quarantine), quarantine.entries)
