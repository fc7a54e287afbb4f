"""The pretraining of a study or sweep, and the file of towers that it makes for all runs."""

from __future__ import annotations

import os
import tempfile
import time

from safetensors.torch import save_file

from glscl.evaluation.saved import CARD, FOLDER, load_model
from glscl.runs.build import TOWERS, build_pretraining
from glscl.runs.execution import PATIENCE_S, remove_checkpoints
from glscl.runs.options import RunsConfig
from glscl.system import storage
from glscl.system.nodes import alive_nodes
from glscl.system.ownership import ANOTHER_NAME, owned
from glscl.training.driver.launch import train
from glscl.training.driver.machines import with_machines
from glscl.training.driver.preflight import preflight


def pretrain(config: RunsConfig) -> None:
    """Train the towers that all runs start from, unless that was done before. Ray must be running.

    Raises:
        UserError: bad input, or another pretraining was done under this name.
    """
    run = build_pretraining(config, make=True)
    if run is None:
        return
    run = with_machines(run, alive_nodes)
    ready = preflight(run)  # also refuses another pretraining than the one that was done
    towers = storage.join(config.directory, TOWERS)
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
