"""Trained models on disk: weights as safetensors, and a card with the configuration they need; no pickles."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glscl.data.limits import MAX_DECODE_S
from glscl.data.video import FrameSampling
from glscl.errors import UserError
from glscl.evaluation.locate import CARD as CARD
from glscl.evaluation.locate import FOLDER as FOLDER
from glscl.evaluation.locate import find_model
from glscl.models.caption_tokenizer import Tokenize, build_tokenizer
from glscl.models.hub import DESCRIPTION, SMALL_FILES
from glscl.models.options import ModelConfig
from glscl.options import Options
from glscl.options.mistakes import first_mistake
from glscl.system import storage

if TYPE_CHECKING:
    from glscl.models.retriever import Retriever

WEIGHTS = "weights.safetensors"
TOWERS = "towers"
"""Folder of what towers need beside weights (`glscl.models.portable`), if their architecture's name does not say it."""
MAX_HEADER_BYTES = 4 << 20  # longest header of a weights file that is read: 20 times that of CLIP's largest towers


class ModelCard(Options):
    """What must be known to use the weights, and where they come from."""

    model: ModelConfig
    sample_fps: float
    decoder: str
    max_decode_s: float = Field(default=MAX_DECODE_S, gt=0)
    train_domains: tuple[str, ...]
    step: int
    seed: int
    run: str
    validation: dict[str, float]

    def sampling(self, frame_size: int) -> FrameSampling:
        """The frame sampling that the model was trained with."""
        frames, decoder = self.model.max_frames, self.decoder
        return FrameSampling(frames, self.sample_fps, frame_size, decoder, self.max_decode_s)  # type: ignore[arg-type]


def save_model(uri: str, card: ModelCard, weights: dict[str, Tensor]) -> None:
    """Write weights, what towers need beside them, and the card into a folder or prefix; the card comes last."""
    from glscl.models.portable import write_folder  # with open_clip, seconds to import

    with tempfile.TemporaryDirectory(prefix="glscl-model-") as folder:
        path = os.path.join(folder, WEIGHTS)
        save_file({name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in weights.items()}, path)
        storage.upload(path, storage.join(uri, WEIGHTS))
        for name in write_folder(card.model, os.path.join(folder, TOWERS)):
            storage.upload(os.path.join(folder, TOWERS, name), storage.join(uri, TOWERS, name))
    storage.write_json(storage.join(uri, CARD), card.model_dump(mode="json"))


def read_card(uri: str) -> tuple[str, ModelCard]:
    """Folder and card of a model, given its folder or a run directory. Raises `UserError`: none, or no such card."""
    folder = find_model(uri)
    where = storage.join(folder, CARD)
    try:
        return folder, ModelCard.model_validate(storage.read_json(where))
    except ValidationError as error:
        mistake = first_mistake(error, "top level")
        raise UserError(f"{where}: not a model card of this version ({mistake})") from None
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def check_weights(uri: str) -> tuple[str, ModelCard]:
    """Compare a weights file's header with the card's model, built without memory; returns what `read_card` does.

    Raises `UserError`: no model, a torn file, or weights of another architecture.
    """
    folder, card = read_card(uri)
    where = storage.join(folder, WEIGHTS)
    shapes = _shapes(where)
    with torch.device("meta"):
        described = _empty_model(folder, card).state_dict()
    for name, tensor in described.items():
        shape = shapes.pop(name, None)
        if shape != list(tensor.shape):
            says = f"'{name}' is {'missing' if shape is None else shape}"
            raise UserError(f"{where}: weights of another architecture than {CARD} says: {says}, not {[*tensor.shape]}")
    if shapes:
        raise UserError(f"{where}: weights of another architecture than {CARD} says: '{min(shapes)}' has no place")
    return folder, card


def load_model(uri: str) -> "tuple[Retriever, ModelCard]":
    """Load a trained model in evaluation mode, on the CPU, in fp32. Raises `UserError`: as `check_weights`."""
    folder, card = check_weights(uri)
    where = storage.join(folder, WEIGHTS)
    model = _empty_model(folder, card)
    with tempfile.TemporaryDirectory(prefix="glscl-model-") as scratch:
        path = where
        if storage.is_remote(where):
            path = os.path.join(scratch, WEIGHTS)
            storage.download(where, path)
        model.load_state_dict(load_file(path))
    return model.eval(), card


def load_tokenizer(uri: str) -> Tokenize:
    """The tokenizer of a trained model. Raises `UserError`: no model, or its tokenizer is not on this machine."""
    folder, card = read_card(uri)
    with _towers_found(folder, card) as config:
        return build_tokenizer(config, fetch=False)


def _empty_model(folder: str, card: ModelCard) -> "Retriever":
    from glscl.models.retriever import Retriever  # with open_clip, seconds to import

    # The random numbers of the run stay as they are.
    with torch.random.fork_rng(), _towers_found(folder, card) as config:
        model = Retriever(config, load_weights=False, fetch=False)
    model.config = card.model
    return model


@contextmanager
def _towers_found(folder: str, card: ModelCard) -> Iterator[ModelConfig]:
    """The configuration of a model whose towers are described beside it, where they are. Of errors, the card is named.

    A card may be a stranger's: what it names on a network is not fetched.
    """
    from glscl.models.portable import read_from  # with open_clip, seconds to import

    where = storage.join(folder, TOWERS)
    try:
        if not storage.exists(storage.join(where, DESCRIPTION)):
            yield card.model
        elif not storage.is_remote(where):
            yield read_from(card.model, where)
        else:
            with tempfile.TemporaryDirectory(prefix="glscl-towers-") as scratch:
                for name in set(storage.list_names(where)).intersection(SMALL_FILES):
                    storage.download(storage.join(where, name), os.path.join(scratch, name))
                yield read_from(card.model, scratch)
    except UserError as error:
        raise UserError(f"{storage.join(folder, CARD)}: {error}") from None


def _shapes(where: str) -> dict[str, list[int]]:
    """Shapes by name, from the header of a safetensors file."""
    try:
        with storage.open_read(where) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            size = file.seek(0, os.SEEK_END)
            if size != end:
                raise ValueError(f"{size} bytes where its header says {end}")
            return {name: entry["shape"] for name, entry in header.items()}
    except FileNotFoundError:
        raise UserError(f"{where}: no such file, although {CARD} is there") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: not a readable safetensors file ({error})") from None
