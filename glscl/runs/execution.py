"""Doing a cell: train, test, leave the result; and the pretraining, which makes a file of towers for all cells."""

import os
import tempfile
import time

import torch
from safetensors.torch import save_file

from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.evaluation.results import Results
from glscl.evaluation.saved import CARD, FOLDER, ModelCard, load_model, save_model
from glscl.models.adapters import merge_lora
from glscl.models.fingerprint import tower_fingerprint
from glscl.models.retriever import Retriever
from glscl.runs.build import build_pretraining, towers_address
from glscl.runs.cell import CONTROLS, WISE_FT, Cell, CellResult, CellTest, is_finished, read_result, write_cell_file
from glscl.runs.options import ZERO_SHOT, RunsConfig
from glscl.runs.retests import retest
from glscl.system import storage
from glscl.system.nodes import alive_nodes, check_resources
from glscl.system.ownership import ANOTHER_NAME, Owner, owned
from glscl.training.checkpoint.retention import INDEX, PREFIX, RAY_REGISTER
from glscl.training.config import RunConfig
from glscl.training.driver.launch import score_run, train
from glscl.training.driver.machines import with_machines
from glscl.training.driver.outputs import status_on_failure, write_results, write_status
from glscl.training.driver.preflight import CONFIG, preflight

PATIENCE_S = 90.0  # seconds that a living owner is waited for: a killed study's processes end a little later


def fits_one_process(config: RunConfig) -> bool:
    """Whether a cell's one process should do its work: one worker, and features, on which a run takes seconds."""
    sets = config.data.train or config.data.test
    one = config.training.most_workers == 1 and not config.training.is_elastic
    return one and all(open_shard_set(uri).manifest.features is not None for uri in sets)


def run_cell(cell: Cell, keep_model: bool, *, here: bool = False) -> CellResult:
    """Do a cell, or go on with it; Ray is running. ``here``: this process has the resources of its one worker.

    Raises `UserError`: bad input, or another command does this cell.
    """
    if is_finished(cell) and (finished := read_result(cell)):
        return finished
    with owned(cell.directory, ANOTHER_NAME, patience_s=PATIENCE_S) as owner:
        here = here and fits_one_process(cell.config)
        # The owner that was waited for may have done it.
        result = read_result(cell) or _do(cell, owner, here)
        retest(cell, result, owner.fence, here)
        # After the results: what is deleted now could only have served to do the cell again.
        remove_checkpoints(cell.directory)
        if not keep_model:
            storage.tidy(storage.join(cell.directory, FOLDER))
    return result


def _do(cell: Cell, owner: Owner, here: bool) -> CellResult:
    """Train and test, and leave the result."""
    began = time.monotonic()
    for name in (CONTROLS, WISE_FT):
        storage.remove(storage.join(cell.directory, name))  # of a model that somebody has deleted
    zero_shot = cell.training == ZERO_SHOT
    results = _score_towers(cell.config, here) if zero_shot else _train(cell.config, owner, here)
    result = CellResult(
        config=cell.config.model_dump(mode="json"),
        tests=[CellTest(**dict(test) | {"examples": []}) for test in results.tests],
        step=results.checkpoint_step,
        validation=results.validation,
        incomplete=results.incomplete,
        seconds=round(time.monotonic() - began, 2),
    )
    owner.fence.check()
    write_cell_file(cell.directory, result)
    return result


def remove_checkpoints(run_directory: str) -> None:
    """Delete a finished run's checkpoints, which hold the optimiser's state beside the model."""
    for name in storage.list_names(run_directory):
        if name.startswith(PREFIX):
            storage.tidy(storage.join(run_directory, name))
        elif name in (INDEX, RAY_REGISTER):
            storage.tidy(storage.join(run_directory, name), storage.remove)


def _train(config: RunConfig, owner: Owner, here: bool) -> Results:
    config = with_machines(config, alive_nodes, alone=False)
    write_status(config.run_directory, state="running", verdict="")
    with status_on_failure(owner.fence):
        results = train(config, preflight(config), owner, keep_ranks=True, here=here)
        owner.fence.check()
        tests = [test.without_queries() for test in results.tests]
        # This process's own command line is a Ray worker's.
        command = f"{config.name}: one of the runs of a study or sweep"
        write_results(results.model_copy(update={"tests": tests, "command": command}), config.run_directory)
    write_status(config.run_directory, state="finished", verdict=results.verdict)
    return results


def _score_towers(config: RunConfig, here: bool) -> Results:
    """Test the clip towers as they are, frames pooled by their mean."""
    config = with_machines(config, alive_nodes, alone=False)
    training, data = config.training, config.data
    if not here:
        check_resources(training.most_workers, training.cpus, training.on_gpu, training.wait_for_nodes_s)
    torch.manual_seed(config.seed)
    model = Retriever(config.model)
    towers = None
    if all(open_shard_set(uri).manifest.features for uri in data.test):  # then nobody needs them
        towers = tower_fingerprint(model.towers)
        model.towers.drop()
    card = ModelCard(
        model=config.model,
        sample_fps=data.sample_fps,
        decoder=data.decoder,
        train_domains=(),
        step=0,
        seed=config.seed,
        run=config.name,
        validation={},
        towers=towers,
    )
    storage.write_json(storage.join(config.run_directory, CONFIG), config.model_dump(mode="json"))
    save_model(storage.join(config.run_directory, FOLDER), card, model.state_dict())
    return score_run(config, card, keep_ranks=True, here=here)


def pretrain(config: RunsConfig, clip: str = "") -> None:
    """Train the towers of all runs, or those of another architecture ``clip``, unless done; Ray is running.

    Raises `UserError`: bad input, or another pretraining was done.
    """
    run = build_pretraining(config, make=True, clip=clip)
    if run is None:
        return
    run = with_machines(run, alive_nodes)
    ready = preflight(run)  # also refuses another pretraining than the one that was done
    towers = towers_address(config, clip)
    if storage.exists(towers):
        return
    if not storage.exists(storage.join(run.run_directory, FOLDER, CARD)):
        began = time.monotonic()
        print(f"{config.kind}: pretraining the towers: {run.run_directory}", flush=True)
        with owned(run.run_directory, ANOTHER_NAME, patience_s=PATIENCE_S) as owner:
            train(run, ready, owner)
        print(f"{config.kind}: pretrained in {time.monotonic() - began:.0f} s", flush=True)
    export_towers(run.run_directory, towers)
    remove_checkpoints(run.run_directory)


def export_towers(model_uri: str, output: str) -> None:
    """Write a model's clip towers as open_clip loads them, for ``model.pretrained``.

    Raises `UserError`: no model, or towers with bottlenecks, which open_clip has no place for.
    """
    model, _ = load_model(model_uri)
    if model.config.adapters.bottleneck is not None:
        raise UserError(
            f"{model_uri}: model.adapters.bottleneck is part of its towers, and open_clip's have no such part: train "
            f"them without"
        )
    merge_lora(model)
    prefix = "towers."
    weights = {name.removeprefix(prefix): t for name, t in model.state_dict().items() if name.startswith(prefix)}
    weights["logit_scale"] = model.logit_scale.detach()
    if model.towers.logit_bias is not None and model.logit_bias is not None:
        weights["logit_bias"] = model.logit_bias.detach()
    with tempfile.TemporaryDirectory(prefix="glscl-towers-") as folder:
        path = os.path.join(folder, "towers.safetensors")
        tensors = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
        save_file(tensors, path, metadata=model.towers.metadata)
        storage.upload(path, output)
