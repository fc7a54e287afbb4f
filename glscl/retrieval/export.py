"""Export of a trained model: one folder that loads anywhere, without pickles and without what it was made from."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from glscl.evaluation.locate import CARD
from glscl.evaluation.saved import ModelCard, load_model, read_card, towers_found
from glscl.evaluation.weight_files import HEAD_WEIGHTS, TOWERS_WEIGHTS, split_weights
from glscl.models.adapters import merge_lora
from glscl.options import Options
from glscl.retrieval.model_card import write_model_card
from glscl.retrieval.record import RECORD, Record, find_record, shorten_addresses
from glscl.system import storage

if TYPE_CHECKING:
    from glscl.models.options import ModelConfig
    from glscl.models.retriever import Retriever

PREPROCESSING = "preprocessing.json"
README = "README.md"
_GIT = {
    ".gitattributes": "*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
    ".gitignore": "owner/\n",  # which says who wrote here; the hub takes nothing that is ignored
}
"""Files of a folder for the hub, which is a git repository."""


class FrameForm(Options):
    """What is done to a picture before the image tower."""

    size: int
    """Height and width in pixels."""
    resize: str = "short side to size, bicubic, antialiased"
    crop: str = "centre"
    colours: str = "RGB, from 0 to 1, minus mean, divided by std"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: str = "missing frames are zero after normalisation"


class FrameChoice(Options):
    """Which frames of a video are taken."""

    max_frames: int
    fps: float
    """Frames a second at most."""
    rule: str = "min(max_frames, ceil(seconds * fps)) equal segments; of each, the picture shown at its centre"


class TextForm(Options):
    """What a text becomes."""

    max_words: int
    """Tokens, start and end included; longer texts are cut."""
    tokenizer: str


class Preprocessing(Options):
    """The file ``preprocessing.json``: what a model is given of a video and of a text."""

    frame: FrameForm
    sampling: FrameChoice
    text: TextForm


@dataclass(frozen=True, slots=True)
class Exportable:
    """A model that is to be exported: whole, LoRA merged, and what is said of it."""

    retriever: Retriever
    card: ModelCard
    """With no address of anybody's disk."""
    preprocessing: Preprocessing
    record: Record
    towers: ModelConfig
    """Names what the towers need beside weights."""


def read_exportable(uri: str, folder_of_towers: ModelConfig, folder: str) -> Exportable:
    """Load a model for export. Raises `UserError`: as `load_model`, or a damaged record."""
    model, card = load_model(uri)
    merge_lora(model)
    adapters = card.model.adapters.model_copy(update={"lora_rank": None, "lora_alpha": None, "lora_targets": None})
    names = {key: shorten_addresses(getattr(card.model, key)) for key in ("clip", "pretrained", "tokenizer")}
    config = card.model.model_copy(update={"adapters": adapters, "trust_pickle": False, **names})
    whole = card.model_copy(update={"model": config, "frozen": None, "towers": None})
    return Exportable(model, whole, describe_preprocessing(model, whole), find_record(folder, whole), folder_of_towers)


def describe_preprocessing(model: Retriever, card: ModelCard) -> Preprocessing:
    """What a model is given of a video and of a text."""
    kind = model.towers.architecture["text_cfg"].get("hf_tokenizer_name")
    return Preprocessing(
        frame=FrameForm(size=model.frame_size, **model.towers.colours),
        sampling=FrameChoice(max_frames=card.model.max_frames, fps=card.sample_fps),
        text=TextForm(max_words=card.model.max_words, tokenizer=f"as {kind}" if kind else "CLIP's byte pairs"),
    )


def export_model(uri: str, output: str, *, hub: bool = False) -> ModelCard:
    """Write a model as one folder or prefix that needs nothing else; its card comes last.

    Frozen weights are included, and LoRA's changes are added to the weights that they change. With ``hub``, the model
    card has the metadata that Hugging Face's hub reads. Raises `UserError`: as `load_model`.
    """
    folder, card = read_card(uri)
    with towers_found(folder, card) as towers, tempfile.TemporaryDirectory(prefix="glscl-export-") as scratch:
        whole = read_exportable(uri, towers, folder)
        write_export(whole, scratch, hub=hub)
        upload_folder(scratch, output)
    return whole.card


def write_export(whole: Exportable, folder: str, *, hub: bool) -> None:
    """Write all files of an export into a local folder."""
    from glscl.models.portable import write_folder  # with open_clip, seconds to import

    write_folder(whole.towers, folder, whole=True)
    model = whole.retriever
    weights = {name: tensor.float().contiguous().clone() for name, tensor in model.state_dict().items()}
    for file, tensors in split_weights(weights, model.towers.logit_bias is not None).items():
        metadata = {"format": "pt"} | (model.towers.metadata if file == TOWERS_WEIGHTS else {})
        save_file(tensors, os.path.join(folder, file), metadata=metadata)
    _write_json(os.path.join(folder, CARD), whole.card.model_dump(mode="json"))
    write_page(whole, folder, hub=hub)
    if hub:
        for name, text in _GIT.items():
            with open(os.path.join(folder, name), "w", encoding="utf-8") as target:
                target.write(text)


def write_page(whole: Exportable, folder: str, *, hub: bool, usage: str = "") -> None:
    """Write what an export of any form says of its model: preprocessing, record and page."""
    _write_json(os.path.join(folder, PREPROCESSING), whole.preprocessing.model_dump(mode="json"))
    tests = {"tests": [test.to_json() for test in whole.record.tests]}
    _write_json(os.path.join(folder, RECORD), whole.record.model_dump(mode="json", exclude={"tests"}) | tests)
    page = write_model_card(whole.card, whole.record, whole.preprocessing.frame.size, hub=hub, usage=usage)
    with open(os.path.join(folder, README), "w", encoding="utf-8") as target:
        target.write(page)


def upload_folder(folder: str, output: str) -> None:
    """Copy a local folder's files to a folder or prefix, the model's card last."""
    output = storage.resolve(output)
    if any(name not in os.listdir(folder) for name in (CARD, TOWERS_WEIGHTS)):
        raise ValueError(f"{folder} is no export")
    for name in sorted(os.listdir(folder), key=lambda name: name == CARD):
        storage.upload(os.path.join(folder, name), storage.join(output, name))
    if not os.path.exists(os.path.join(folder, HEAD_WEIGHTS)):
        storage.remove(storage.join(output, HEAD_WEIGHTS))


def _write_json(path: str, value: object) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
