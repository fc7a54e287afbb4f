"""Files that a text tower needs beside its weights: a tokenizer, and a Hugging Face text model's configuration.

Where they are looked for, in this order: in what ``model.tokenizer`` names; beside the architecture, where it is a
folder or a repository; in Hugging Face's cache on this machine. They are fetched only where the configuration names
something on the network: a repository, or weights by a tag.
"""

import os
from collections.abc import Sequence
from importlib.util import find_spec

import open_clip
from open_clip.hf_configs import arch_dict

from glscl.errors import UserError
from glscl.models.architectures import Architecture
from glscl.models.hub import TEXT_CONFIG, TOKENIZER_FILES, find_repository, holds_any
from glscl.models.options import HUB
from glscl.options import MAX_LAYERS, MAX_SIZE
from glscl.system import storage

_LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")


def find_tokenizer(architecture: Architecture, pretrained: str | None, tokenizer: str | None, *, fetch: bool) -> str:
    """Folder with the tokenizer of an architecture that does not read CLIP's tokens.

    Without ``fetch`` nothing is fetched, whatever the names ask for. Raises `UserError`: not found, or not fetched.
    """
    repository = str(architecture.text.hf_tokenizer_name)
    if tokenizer and os.path.isdir(tokenizer) and not holds_any(tokenizer, TOKENIZER_FILES):
        raise UserError(f"model.tokenizer: {tokenizer} has none of {', '.join(TOKENIZER_FILES)}")
    remote = fetch and _names_network(architecture, pretrained)
    return _find(architecture, repository, tokenizer, TOKENIZER_FILES, remote=remote, fetch=fetch)


def find_text_config(
    architecture: Architecture, pretrained: str | None, tokenizer: str | None, *, fetch: bool
) -> str | None:
    """Folder with the configuration of a Hugging Face text tower; None for other text towers.

    Raises `UserError`: not found, not fetched, of a kind that open_clip does not know, or without `transformers`.
    """
    repository = architecture.text.hf_model_name
    if not repository:
        return None
    require_transformers(architecture)
    remote = fetch and _names_network(architecture, pretrained)
    folder = _find(architecture, repository, tokenizer, [TEXT_CONFIG], remote=remote, fetch=fetch)
    _check_text_config(os.path.join(folder, TEXT_CONFIG))
    return folder


def require_transformers(architecture: Architecture) -> None:
    """Raise a `UserError` where the text side of an architecture needs `transformers`, which is not installed."""
    if find_spec("transformers") is None:  # an extra: most towers do without, and open_clip's import is slower with it
        raise UserError(
            f"model.clip: '{architecture.clip}' needs the package transformers for its text; pip install 'glscl[hf]'"
        )


def _names_network(architecture: Architecture, pretrained: str | None) -> bool:
    """Whether a configuration names something on the network, which its text tower's files then come from, too."""
    is_tag = pretrained is not None and open_clip.get_pretrained_cfg(architecture.name, pretrained)
    return architecture.clip.startswith(HUB) or bool(is_tag)


def _find(
    architecture: Architecture,
    repository: str,
    named: str | None,
    needed: Sequence[str],
    *,
    remote: bool,
    fetch: bool,
) -> str:
    folders = [named, architecture.folder, repository]
    if named and named.startswith(HUB):
        remote, repository = fetch, named.removeprefix(HUB)
        folders = []
    elif named and not os.path.isdir(named):
        raise UserError(f"model.tokenizer: no folder at {named}")
    for folder in folders:
        if folder and _holds(folder, needed):
            return folder
    knob = "model.tokenizer" if named else "model.clip"
    try:
        found = find_repository(repository, needed, fetch=remote)
    except UserError as error:
        raise UserError(f"{knob}: '{architecture.clip}' needs {needed[0]} of its text tower: {error}") from None
    if found is None:
        raise UserError(
            f"{knob}: '{architecture.clip}' needs {needed[0]} of {repository}, which is not in Hugging Face's cache on "
            f"this machine, and nothing is fetched that the configuration does not name: set model.tokenizer to "
            f"{HUB}{repository}, or to a folder with its files"
        )
    return found


def _holds(folder: str, needed: Sequence[str]) -> bool:
    """Whether a folder has one of these files, and where that is a configuration, one of a text tower."""
    if needed[0] != TEXT_CONFIG or not holds_any(folder, needed):
        return holds_any(folder, needed)
    values = storage.read_json(os.path.join(folder, TEXT_CONFIG))
    return isinstance(values, dict) and values.get("model_type") in arch_dict


def _check_text_config(path: str) -> None:
    """Refuse a text model that open_clip cannot adapt, whose code lies elsewhere, or that no memory holds."""
    values = storage.read_json(path)
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(values, dict) or kind not in arch_dict or "auto_map" in values:
        raise UserError(f"model.clip: {path} is of no text model that open_clip knows ({', '.join(arch_dict)})")
    for key, value in values.items():
        most = MAX_LAYERS if key in _LAYERS else MAX_SIZE
        if isinstance(value, int | float) and value > most:
            raise UserError(f"model.clip: {path} has {key} {value}; at most {most} is supported")
