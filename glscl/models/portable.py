"""What towers need beside weights, as one folder: the description, the tokenizer, a text model's configuration.

The folder is what open_clip calls a local directory. A trained model brings it along where the name of its architecture
does not say all, so that it is used on machines that have none of these files, and without a network.
"""

import json
import os
import shutil

import torch

from glscl.models.architectures import find_architecture
from glscl.models.hub import DESCRIPTION, SMALL_FILES, TEXT_CONFIG
from glscl.models.options import LOCAL_DIR, ModelConfig
from glscl.models.text_files import find_text_config, find_tokenizer
from glscl.models.towers import Towers


def write_folder(config: ModelConfig, folder: str, *, whole: bool = False) -> list[str]:
    """Write the folder of a model's towers, which is made; returns the names of its files.

    Towers that their name describes wholly need none: nothing is written, unless the folder is to be ``whole``. Raises
    `UserError`: files that are needed are no longer found.
    """
    architecture = find_architecture(config.clip)
    text, named = architecture.text, (config.pretrained, config.tokenizer)
    if not whole and not (architecture.folder or text.hf_tokenizer_name or text.hf_model_name):
        return []
    with torch.device("meta"):  # what a tag of weights sets is known of the built towers
        towers = Towers(config.clip, config.pretrained, load_weights=False, tokenizer=config.tokenizer)
    os.makedirs(folder, exist_ok=whole)
    custom = {"custom_text": True} if whole else {}  # names of tensors are those of its text tower apart
    described = {
        "model_cfg": architecture.config | {"quick_gelu": towers.quick_gelu} | custom,
        "preprocess_cfg": towers.colours,
    }
    with open(os.path.join(folder, DESCRIPTION), "w", encoding="utf-8") as file:
        json.dump(described, file, indent=2)
    if text.hf_tokenizer_name:
        _copy(find_tokenizer(architecture, *named, fetch=True), folder, set(SMALL_FILES) - {DESCRIPTION, TEXT_CONFIG})
    if source := find_text_config(architecture, *named, fetch=True):
        _copy(source, folder, {TEXT_CONFIG})
    return sorted(os.listdir(folder))


def read_from(config: ModelConfig, folder: str, *, load_weights: bool = False) -> ModelConfig:
    """The same model, to be given its weights, whose towers are described in a folder that `write_folder` wrote.

    With ``load_weights`` they come from where the configuration says, and from the folder only what is beside them.
    """
    if load_weights:
        return config.model_copy(update={"tokenizer": folder})
    update = {"clip": LOCAL_DIR + folder, "pretrained": None, "tokenizer": None, "position_std": None}
    return config.model_copy(update=update)


def _copy(source: str, folder: str, names: set[str]) -> None:
    for name in names:
        if os.path.isfile(os.path.join(source, name)):
            shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))
