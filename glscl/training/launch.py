"""The driver: check everything that can be checked, start the worker group, hand on the best model, test it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from glscl import storage
from glscl.config import RunConfig
from glscl.data.plan import StreamPlan
from glscl.data.shards import ShardSet, open_shard_set
from glscl.errors import UserError
from glscl.evaluation.evaluate import evaluate_model, without_thumbnails
from glscl.evaluation.saved import FOLDER, ModelCard, read_card, save_model
from glscl.losses import applicable_terms
from glscl.models.retriever import Retriever
from glscl.training.checkpoint import TAG, check_complete, differing_keys
from glscl.training.run_log import read_metrics

CONFIG = "config.json"
STATUS = "status.json"
RESULTS = "results.json"
REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was learnt before anything was started.

    Attributes:
        facts: the effective configuration in words, for the start-up panel.
        train_domains: names of the training domains.
    """

    facts: dict[str, str]
    train_domains: tuple[str, ...]


def preflight(config: RunConfig) -> Preflight:
    """Check shards, batch arithmetic, model and the run directory; builds the model once, starts nothing.

    Raises:
        UserError: naming what is wrong, where, and the knob.
    """
    from glscl.training.worker import Horizon, make_plan

    training = config.training
    workers = training.num_workers
    if training.global_batch % workers:
        raise UserError(
            f"training.global_batch ({training.global_batch}) is not a multiple of training.num_workers ({workers}): "
            f"change one of them"
        )
    per_worker = training.global_batch // workers
    if per_worker % training.accumulate:
        raise UserError(
            f"training.accumulate ({training.accumulate}) does not divide a worker's {per_worker} pairs "
            f"(training.global_batch / training.num_workers): change one of them"
        )
    shard_sets = [open_shard_set(uri) for uri in config.data.train]
    plan = make_plan(config, shard_sets)
    plan.check_world(workers, config.data.loader_workers)
    held_out = [open_shard_set(uri) for uri in config.data.validation]
    tests = [open_shard_set(uri) for uri in config.data.test]
    _check_selection(held_out, tests)
    model = Retriever(config.model)
    on, left_out = applicable_terms(config.loss, model.head)
    if not on:
        raise UserError(f"loss: no term is on that head '{config.model.head}' can be trained with")
    saved = _check_run_directory(config)
    horizon = Horizon.of(config, plan)
    counts = model.describe()
    facts = {
        "run": config.run_directory + (" (continues)" if saved else ""),
        "train": _domains(shard_sets, plan),
        "validation": ", ".join(f"{s.manifest.domain}/{s.manifest.split}" for s in held_out)
        or "none: last step is kept",
        "test": ", ".join(f"{s.manifest.domain}/{s.manifest.split}" for s in tests) or "none",
        "model": f"{config.model.clip}, head {config.model.head}, frame context {config.model.frame_context}; "
        + ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items()),
        "weights": config.model.pretrained or "random",
        "loss": ", ".join(on) + (f" (not for this head: {', '.join(left_out)})" if left_out else ""),
        "global batch": f"{training.global_batch} pairs = {workers} workers x {training.accumulate} parts "
        f"x {per_worker // training.accumulate}",
        "steps": f"{horizon.total} ({horizon.steps_per_epoch} per epoch of {plan.pairs_per_epoch:,} pairs; "
        f"{plan.pairs_per_epoch - horizon.steps_per_epoch * training.global_batch} pairs wait for the next epoch)",
        "workers": f"{workers} x {'GPU, NCCL' if training.use_gpu else 'CPU, gloo'}, ZeRO {training.zero_stage}, "
        f"{training.precision}, {config.data.loader_workers} loader workers each",
    }
    return Preflight(facts, tuple(shard_set.manifest.domain for shard_set in shard_sets))


def _domains(shard_sets: list[ShardSet], plan: StreamPlan) -> str:
    return ", ".join(
        f"{s.manifest.domain}/{s.manifest.split} ({s.manifest.videos:,} videos, {s.manifest.pairs:,} pairs, "
        f"{streams / plan.virtual_streams:.0%} of each batch)"
        for s, streams in zip(shard_sets, plan.streams_of_domain, strict=True)
    )


def _check_selection(held_out: list[ShardSet], tests: list[ShardSet]) -> None:
    """Selection on a test split is refused."""
    tested = {shard_set.manifest.fingerprint(): shard_set.uri for shard_set in tests}
    for shard_set in held_out:
        if shard_set.manifest.fingerprint() in tested:
            raise UserError(
                f"data.validation: {shard_set.uri} is also in data.test; choose the checkpoint on a held-out part of "
                f"the training domain"
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
    workers = saved["training"].get("num_workers")
    if saved["training"]["zero_stage"] and workers != config.training.num_workers and _has_checkpoint(config):
        raise UserError(
            f"{config.run_directory} was trained by {workers} workers with ZeRO stage "
            f"{saved['training']['zero_stage']}: continue it with --training.num-workers {workers}"
        )
    return True


def _has_checkpoint(config: RunConfig) -> bool:
    return any(name.startswith("step_") for name in storage.list_names(config.run_directory))


@contextmanager
def ray_session() -> Iterator[None]:
    """Use the cluster that ``RAY_ADDRESS`` or ``ray start`` offers, else a local one that ends with this block."""
    # Ray polls workers for reports at this interval; the default of 2 s would be felt in short runs.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "1800")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it repeats every line of the workers
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address == "local":
            raise ConnectionError
        ray.init(address=address or "auto", logging_level="error")
    except ConnectionError:
        if address not in (None, "local"):
            raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address}") from None
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody reclaims this machine
        # Ray Train asks the dashboard for the state of its actors.
        ray.init(address="local", include_dashboard=True, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(workers: int, cpus_per_worker: float, use_gpu: bool, wait_s: float = 0.0) -> None:
    """Refuse what the cluster does not have (Ray would wait for ever), after giving an autoscaler time to bring it.

    Raises:
        UserError: naming the knob.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    wanted = {"CPU": workers * cpus_per_worker} | ({"GPU": float(workers)} if use_gpu else {})

    def lacking() -> list[str]:
        there = ray.cluster_resources()
        return [
            f"{amount:g} {kind} (there: {there.get(kind, 0.0):g})"
            for kind, amount in wanted.items()
            if amount > there.get(kind, 0.0)
        ]

    deadline = time.monotonic() + wait_s
    if wait_s and lacking():
        bundle = {"CPU": max(1, round(cpus_per_worker))} | ({"GPU": 1} if use_gpu else {})
        request_resources(bundles=[bundle] * workers)
        while lacking() and time.monotonic() < deadline:
            time.sleep(1.0)
        request_resources(bundles=[])  # the workers' own placement group keeps the nodes from here on
    if missing := lacking():
        raise UserError(
            f"{workers} workers need {' and '.join(missing)}: lower training.num_workers or training.cpus_per_worker, "
            f"set training.use_gpu to false, or raise training.wait_for_nodes_s where the cluster can grow"
        )


def train(config: RunConfig, ready: Preflight) -> dict[str, Any]:
    """Train (or continue) a run on the cluster, save its best model, and score it on ``data.test``.

    Args:
        config: resolved configuration.
        ready: from `preflight`.

    Returns:
        results as `glscl.reporting` lays them out (with thumbnails); ``tests`` is empty without ``data.test``.

    Raises:
        UserError: bad input that only the workers could see.
        ray.train.TrainingFailedError: the worker group failed more often than ``training.max_failures``.
    """
    training = config.training
    check_resources(training.num_workers, training.cpus_per_worker, training.use_gpu, training.wait_for_nodes_s)
    storage.write_json(storage.join(config.run_directory, CONFIG), config.model_dump(mode="json"))
    result = _fit(config)
    card = _save_best(config, ready, result)
    entries = evaluate_model(
        config.run_directory,
        config.data.test,
        config.evaluation,
        workers=training.num_workers,
        use_gpu=training.use_gpu,
        cpus_per_worker=training.cpus_per_worker,
        loader_workers=config.data.loader_workers,
    )
    return results_of(card, entries, read_metrics(config.run_directory))


def _fit(config: RunConfig) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, ScalingConfig, TrainingFailedError
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchTrainer

    from glscl.training.worker import SELECTION_METRIC, train_worker

    training = config.training
    path, filesystem = storage.ray_storage(config.storage)
    resources = {"CPU": training.cpus_per_worker} | ({"GPU": 1.0} if training.use_gpu else {})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config.model_dump(mode="json"),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers, use_gpu=training.use_gpu, resources_per_worker=resources
        ),
        run_config=RayRunConfig(
            name=config.name,
            storage_path=path,
            storage_filesystem=filesystem,
            logging_config=LoggingConfig(log_level="WARNING"),
            failure_config=FailureConfig(max_failures=training.max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.checkpoint.keep,
                checkpoint_score_attribute=SELECTION_METRIC if config.data.validation else None,
            ),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            cause: BaseException | None = failure
            while cause is not None:
                if isinstance(cause, UserError):
                    raise UserError(str(cause)) from error
                cause = cause.__cause__ or getattr(cause, "cause", None)
        raise
    if result.return_value:
        raise UserError(result.return_value)
    return result


def _save_best(config: RunConfig, ready: Preflight, result: Any) -> ModelCard:
    """Gather the best checkpoint's shards into one safetensors file."""
    from glscl.training.worker import SELECTION_METRIC

    best = result.checkpoint
    if config.data.validation:
        best = result.get_best_checkpoint(SELECTION_METRIC, "max") or best
    if best is None:
        raise UserError(f"{config.run_directory}: the run ended without a checkpoint")
    with best.as_directory() as folder:
        state = check_complete(folder)
        card = ModelCard(
            model=config.model,
            sample_fps=config.data.sample_fps,
            decoder=config.data.decoder,
            train_domains=ready.train_domains,
            step=state.step,
            seed=config.seed,
            run=config.name,
            validation=state.metrics,
        )
        save_model(storage.join(config.run_directory, FOLDER), card, whole_weights(folder, state.zero_stage))
    return card


def whole_weights(folder: str, zero_stage: int) -> dict[str, Any]:
    """Unsharded weights of a checkpoint that this project wrote (DeepSpeed's files are pickles).

    They are the optimiser's fp32 ones, except under ZeRO 0 with bf16, whose files name only the bf16 ones.
    """
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # the driver only reads files
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if zero_stage == 0:
        path = os.path.join(folder, TAG, "mp_rank_00_model_states.pt")
        module: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)["module"]
        return module
    with open(os.devnull, "w") as silent, redirect_stdout(silent), redirect_stderr(silent):  # it prints every parameter
        return dict(get_fp32_state_dict_from_zero_checkpoint(folder, tag=TAG))


def results_of(card: ModelCard, entries: list[dict[str, Any]], history: list[dict[str, Any]]) -> dict[str, Any]:
    """Put test entries, provenance and training history together."""
    return {
        "run": card.run,
        "verdict": verdict_of(card, entries),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "head": card.model.head,
        "clip": card.model.clip,
        "checkpoint_step": card.step,
        "seed": card.seed,
        "git_commit": _git_commit(),
        "command": " ".join(["glscl", *sys.argv[1:]]),
        "train_domains": list(card.train_domains),
        "validation": card.validation,
        "tests": entries,
        "history": _history(history),
    }


def _history(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as the report plots them: the loss and its terms, and held-out recalls under ``validation``."""
    out: list[dict[str, Any]] = []
    for row in rows:
        entry: dict[str, Any] = {"step": row["step"]}
        entry |= {key.removeprefix("loss/"): value for key, value in row.items() if key.startswith("loss")}
        held_out = {k.removeprefix("validation/"): v for k, v in row.items() if k.startswith("validation/")}
        if held_out and out and out[-1]["step"] == row["step"]:
            out[-1]["validation"] = held_out
        else:
            out.append(entry | ({"validation": held_out} if held_out else {}))
    return out


def verdict_of(card: ModelCard, entries: list[dict[str, Any]]) -> str:
    """One line: text-to-video R@1 per test set."""
    scores = [
        f"{entry['domain']}/{entry['split']} ({entry['relation']}) R@1={entry['text_to_video']['R@1']:.1f}"
        for entry in entries
    ]
    return f"run={card.run} step={card.step} " + (", ".join(scores) or "no test set")


def write_results(results: dict[str, Any], output: str) -> None:
    """``results.json`` and ``report.html`` in a folder or prefix."""
    from glscl.reporting.report import write_report

    small = results | {"tests": without_thumbnails(results["tests"])}
    storage.write_json(storage.join(output, RESULTS), small)
    write_report(results, storage.join(output, REPORT))


def evaluate(run: str, tests: tuple[str, ...], *, workers: int, use_gpu: bool, loader_workers: int) -> dict[str, Any]:
    """Score a finished run (or a saved model) on any shard sets; see `evaluate_model`."""
    from glscl.evaluation.options import EvaluationConfig

    _, card = read_card(run)
    check_resources(workers, 1.0, use_gpu)
    entries = evaluate_model(
        run, tests, EvaluationConfig(), workers=workers, use_gpu=use_gpu, loader_workers=loader_workers
    )
    return results_of(card, entries, read_metrics(run))


def _git_commit() -> str | None:
    """Commit of the code that runs, if it runs from a checkout."""
    folder = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
    )
    return done.stdout.strip() or None if done.returncode == 0 else None


def write_status(run_directory: str, **values: Any) -> None:
    """``status.json``: the verdict for machines."""
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    storage.write_json(storage.join(run_directory, STATUS), {**values, "updated": stamp})
