"""What one cell does: train, test, leave its result; finished cells are read, never done again."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from typing import Any

import torch
from safetensors.torch import save_file

from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.evaluation.evaluate import without_thumbnails
from glscl.evaluation.saved import FOLDER, ModelCard, load_model, save_model
from glscl.models.retriever import Retriever
from glscl.options.differences import differing_keys
from glscl.study.grid import RESULT, Cell
from glscl.study.results import ZERO_SHOT
from glscl.system import storage
from glscl.system.ownership import ANOTHER_NAME, Owner, owned
from glscl.system.session import alive_nodes, check_resources
from glscl.training.checkpoint.format import FREE_KEYS
from glscl.training.checkpoint.retention import INDEX, PREFIX, RAY_REGISTER
from glscl.training.config import RunConfig
from glscl.training.driver.launch import incomplete_sets, quarantine_of, score_tests, train
from glscl.training.driver.machines import with_machines
from glscl.training.driver.outputs import status_on_failure, write_results, write_status
from glscl.training.driver.preflight import CONFIG, preflight

PATIENCE_S = 90.0
"""Seconds that a run's living owner is waited for: the processes of a study that was killed end a little later."""


def read_result(cell: Cell) -> dict[str, Any] | None:
    """The result of a finished cell; None if it is not finished.

    Raises:
        UserError: it is the result of another configuration, or of other test sets.
    """
    where = storage.join(cell.directory, RESULT)
    if not storage.exists(where):
        return None
    result = storage.read_json(where)
    saved, current = result["config"], cell.config.model_dump(mode="json")
    different = differing_keys(saved, current, FREE_KEYS)
    different += differing_keys({"testing": saved["evaluation"]}, {"testing": current["evaluation"]}, ())
    if [_fingerprint(uri) for uri in cell.config.data.test] != [test["fingerprint"] for test in result["tests"]]:
        different.append("data.test: other test sets")
    if different:
        raise UserError(
            f"{cell.directory} is a finished cell of another configuration: {'; '.join(different[:5])}. Choose another "
            f"--name, restore these values, or delete the cell's folder to have it done again"
        )
    return result  # type: ignore[no-any-return]


@functools.cache
def _fingerprint(uri: str) -> str:
    """Of a test set, which is the same for hundreds of cells and may lie behind a slow listing."""
    return open_shard_set(uri).manifest.fingerprint()


def run_cell(cell: Cell, keep_model: bool) -> dict[str, Any]:
    """Do a cell, or go on with it where it stopped. Ray must be running.

    Args:
        cell: which.
        keep_model: keep the trained model in the cell's folder.

    Returns:
        its result, which ``cell.json`` holds then: ``config``, ``tests`` (entries of `evaluate_model` with every
        query's ranks, without pictures), ``step``, ``validation``, ``incomplete`` (sets of which videos are missing)
        and ``seconds`` (wall-clock of the last attempt).

    Raises:
        UserError: bad input, or another command does this cell.
    """
    began = time.monotonic()
    found = read_result(cell)
    if found is not None:
        return found
    with owned(cell.directory, ANOTHER_NAME, patience_s=PATIENCE_S) as owner:
        found = read_result(cell)  # whoever was waited for may have done it
        if found is not None:
            return found
        done = _towers(cell.config) if cell.training == ZERO_SHOT else _trained(cell.config, owner)
        result = {
            "config": cell.config.model_dump(mode="json"),
            "tests": [entry | {"examples": []} for entry in without_thumbnails(done["tests"])],
            "step": done["checkpoint_step"],
            "validation": done["validation"],
            "incomplete": done["incomplete"],
            "seconds": round(time.monotonic() - began, 2),
        }
        owner.fence.check()
        storage.write_json(storage.join(cell.directory, RESULT), result)
        # After the result: what is deleted now could only have served to do the cell again.
        remove_checkpoints(cell.directory)
        if not keep_model:
            storage.tidy(storage.join(cell.directory, FOLDER))
    return result


def remove_checkpoints(run_directory: str) -> None:
    """Delete a finished run's checkpoints, which hold the optimiser's state beside the model."""
    for name in storage.list_names(run_directory):
        if name.startswith(PREFIX):
            storage.tidy(storage.join(run_directory, name))
        elif name in (INDEX, RAY_REGISTER):
            storage.tidy(storage.join(run_directory, name), storage.remove)


def _trained(config: RunConfig, owner: Owner) -> dict[str, Any]:
    """An ordinary run, in the cell's folder."""
    config = with_machines(config, alive_nodes, alone=False)
    write_status(config.run_directory, state="running", verdict="")
    with status_on_failure(owner.fence):
        results = train(config, preflight(config), owner, keep_ranks=True)
        owner.fence.check()
        tests = [{key: value for key, value in test.items() if key != "per_query"} for test in results["tests"]]
        command = (
            f"{config.name}: one of the runs of a study or sweep"  # this process's own command line is a Ray worker's
        )
        write_results(results | {"tests": tests, "command": command}, config.run_directory)
    write_status(config.run_directory, state="finished", verdict=results["verdict"])
    return results


def _towers(config: RunConfig) -> dict[str, Any]:
    """The clip towers as they are, frames pooled by their mean."""
    config = with_machines(config, alive_nodes, alone=False)
    training = config.training
    check_resources(training.most_workers, training.cpus, training.on_gpu, training.wait_for_nodes_s)
    torch.manual_seed(config.seed)
    card = ModelCard(
        model=config.model,
        sample_fps=config.data.sample_fps,
        decoder=config.data.decoder,
        train_domains=(),
        step=0,
        seed=config.seed,
        run=config.name,
        validation={},
    )
    storage.write_json(storage.join(config.run_directory, CONFIG), config.model_dump(mode="json"))
    save_model(storage.join(config.run_directory, FOLDER), card, Retriever(config.model).state_dict())
    quarantine = quarantine_of(config)
    entries = score_tests(config, quarantine, keep_ranks=True)
    sets = incomplete_sets(config, quarantine)
    return {"tests": entries, "checkpoint_step": 0, "validation": {}, "incomplete": sets}


def export_towers(model_uri: str, output: str) -> None:
    """Write a trained model's clip towers as open_clip loads them: for ``model.pretrained``.

    Args:
        model_uri: run directory or folder of a saved model.
        output: ``*.safetensors``, local or ``s3://``.

    Raises:
        UserError: there is no such model.
    """
    model, _ = load_model(model_uri)
    prefix = "towers."
    weights = {name.removeprefix(prefix): t for name, t in model.state_dict().items() if name.startswith(prefix)}
    weights["logit_scale"] = model.logit_scale.detach()
    with tempfile.TemporaryDirectory(prefix="glscl-towers-") as folder:
        path = os.path.join(folder, "towers.safetensors")
        tensors = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
        save_file(tensors, path, metadata=model.towers.metadata)
        storage.upload(path, output)
