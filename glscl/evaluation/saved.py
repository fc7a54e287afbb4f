"""Trained models as they are handed on: safetensors and the configuration they need, no pickles."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glscl import storage
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.models.retriever import ModelConfig, Retriever
from glscl.options import Options

FOLDER = "model"
WEIGHTS = "weights.safetensors"
CARD = "model.json"


class ModelCard(Options):
    """What must be known to use the weights, and where they come from."""

    model: ModelConfig
    sample_fps: float
    decoder: str
    train_domains: tuple[str, ...]
    step: int
    seed: int
    run: str
    validation: dict[str, float]

    def sampling(self, frame_size: int) -> FrameSampling:
        """The frame sampling that the model was trained with."""
        return FrameSampling(self.model.max_frames, self.sample_fps, frame_size, self.decoder)  # type: ignore[arg-type]


def save_model(uri: str, card: ModelCard, weights: dict[str, Tensor]) -> None:
    """Write weights and card into a folder or prefix; the card comes last."""
    with tempfile.TemporaryDirectory(prefix="glscl-model-") as folder:
        path = os.path.join(folder, WEIGHTS)
        save_file({name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in weights.items()}, path)
        storage.upload(path, storage.join(uri, WEIGHTS))
    storage.write_json(storage.join(uri, CARD), card.model_dump(mode="json"))


def read_card(uri: str) -> tuple[str, ModelCard]:
    """Find a model given its own folder or a run directory: (folder, card).

    Raises:
        UserError: there is no model, or its card does not parse.
    """
    uri = storage.resolve(uri)
    for folder in (uri, storage.join(uri, FOLDER)):
        where = storage.join(folder, CARD)
        if storage.exists(where):
            try:
                return folder, ModelCard.model_validate(storage.read_json(where))
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(map(str, first["loc"]))
                raise UserError(f"{where}: not a model card of this version ({key}: {first['msg']})") from None
    raise UserError(f"{uri}: no trained model there ({CARD} or {FOLDER}/{CARD}); --run names a finished run directory")


def load_model(uri: str) -> tuple[Retriever, ModelCard]:
    """Load a trained model in evaluation mode, on the CPU, in fp32.

    Raises:
        UserError: no model, or weights of another architecture.
    """
    folder, card = read_card(uri)
    where = storage.join(folder, WEIGHTS)
    if not storage.exists(where):
        raise UserError(f"{where}: no such file, although {CARD} is there")
    with torch.random.fork_rng():
        model = Retriever(card.model.model_copy(update={"pretrained": None}))
    with tempfile.TemporaryDirectory(prefix="glscl-model-") as scratch:
        path = where
        if storage.is_remote(where):
            path = os.path.join(scratch, WEIGHTS)
            storage.download(where, path)
        try:
            weights: dict[str, Any] = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{where}: not a readable safetensors file ({error})") from None
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
        raise UserError(f"{where}: weights of another architecture than {CARD} says: {first}") from None
    return model.eval(), card
