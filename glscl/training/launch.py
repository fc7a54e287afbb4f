"""The driver: start the worker group, hand on the best model, test it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from glscl import storage
from glscl.config import RunConfig
from glscl.errors import UserError
from glscl.evaluation.evaluate import evaluate_model
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.saved import FOLDER, ModelCard, read_card, save_model
from glscl.session import check_resources
from glscl.training.checkpoint import TAG, IncompleteCheckpointError, check_complete, local_copy
from glscl.training.preflight import CONFIG, Preflight
from glscl.training.results import results_of
from glscl.training.retention import ANOTHER, Keeper, Retention, user_error_in
from glscl.training.run_log import read_metrics


def train(config: RunConfig, ready: Preflight, *, keep_ranks: bool = False) -> dict[str, Any]:
    """Train (or continue) a run on the cluster, save its best model, and score it on ``data.test``.

    Args:
        config: resolved configuration.
        ready: from `preflight`.
        keep_ranks: see `evaluate_model`.

    Returns:
        results as `glscl.reporting` lays them out (with thumbnails); ``tests`` is empty without ``data.test``.

    Raises:
        UserError: bad input that only the workers could see.
        ray.train.TrainingFailedError: the worker group failed more often than ``training.max_failures``.
    """
    training = config.training
    check_resources(training.num_workers, training.cpus_per_worker, training.use_gpu, training.wait_for_nodes_s)
    storage.write_json(storage.join(config.run_directory, CONFIG), config.model_dump(mode="json"))
    retention = Retention(config.run_directory, config.checkpoint.keep)
    retention.take_over()
    _fit(config)
    card = _save_best(config, ready, retention)
    retention.close()
    entries = score_tests(config, bank=config.data.train, keep_ranks=keep_ranks)
    return results_of(card, entries, read_metrics(config.run_directory))


def score_tests(config: RunConfig, *, bank: Sequence[str] = (), keep_ranks: bool = False) -> list[dict[str, Any]]:
    """Score the model in a run directory on ``data.test``, with as many actors as training has workers.

    Args:
        config: of the run.
        bank: see `evaluate_model`.
        keep_ranks: see `evaluate_model`.
    """
    training = config.training
    return evaluate_model(
        config.run_directory,
        config.data.test,
        config.evaluation,
        workers=training.num_workers,
        use_gpu=training.use_gpu,
        cpus_per_worker=training.cpus_per_worker,
        loader_workers=config.data.loader_workers,
        bank=bank,
        keep_ranks=keep_ranks,
    )


def _fit(config: RunConfig) -> None:
    from ray.train import FailureConfig, LoggingConfig, ScalingConfig, TrainingFailedError
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchTrainer

    from glscl.training.worker import train_worker

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
            callbacks=[Keeper(config.run_directory, config.checkpoint.keep)],
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        causes = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
        if reason := user_error_in(*causes):
            raise UserError(str(reason)) from error
        raise
    if result.return_value:
        raise UserError(result.return_value)


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


def evaluate(
    run: str,
    tests: Sequence[str],
    config: EvaluationConfig,
    *,
    workers: int,
    use_gpu: bool,
    loader_workers: int,
    bank: Sequence[str] = (),
) -> dict[str, Any]:
    """Score a finished run (or a saved model) on any shard sets; see `evaluate_model`."""
    _, card = read_card(run)
    check_resources(workers, 1.0, use_gpu)
    entries = evaluate_model(
        run, tests, config, workers=workers, use_gpu=use_gpu, loader_workers=loader_workers, bank=bank
    )
    return results_of(card, entries, read_metrics(run))
