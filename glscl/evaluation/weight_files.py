"""A saved model's weights on disk: the one file of a run's model, or the two of an export, and what they may be.

An export has the towers under open_clip's own names, so that open_clip loads them, and everything else apart.
"""

from __future__ import annotations

import json
import os
import tempfile

from safetensors.torch import load_file
from torch import Tensor

from glscl.errors import UserError
from glscl.evaluation.locate import CARD
from glscl.system import storage

WEIGHTS = "weights.safetensors"
"""All weights of a run's model that were trained."""
TOWERS_WEIGHTS = "model.safetensors"
"""The towers of an export, with the logit scale and bias that belong to them."""
HEAD_WEIGHTS = "head.safetensors"
"""The rest of an export; not there where a head has no parameters."""
MAX_HEADER_BYTES = 4 << 20  # longest header of a weights file that is read: 20 times that of CLIP's largest towers
_PREFIX = "towers."
_BESIDE = ("logit_scale", "logit_bias")  # parts of open_clip's models, not of their towers


def split_weights(weights: dict[str, Tensor], own_bias: bool) -> dict[str, dict[str, Tensor]]:
    """The weights of a whole model by file of an export; ``own_bias``: the logit bias is the towers' own."""
    beside = _BESIDE if own_bias else _BESIDE[:1]
    towers = {n.removeprefix(_PREFIX): t for n, t in weights.items() if n.startswith(_PREFIX) or n in beside}
    rest = {name: t for name, t in weights.items() if not name.startswith(_PREFIX) and name not in beside}
    return {TOWERS_WEIGHTS: towers} | ({HEAD_WEIGHTS: rest} if rest else {})


def main_file(folder: str) -> str:
    """Name of the file that messages are about."""
    return TOWERS_WEIGHTS if storage.exists(storage.join(folder, TOWERS_WEIGHTS)) else WEIGHTS


def read_shapes(folder: str) -> dict[str, list[int]]:
    """Shapes of a saved model's weights by name, from the headers. Raises `UserError`: no file, or a torn one."""
    shapes: dict[str, list[int]] = {}
    for file in _files(folder):
        found = header_shapes(storage.join(folder, file))
        shapes |= {_name(name, file): shape for name, shape in found.items()}
    return shapes


def read_weights(folder: str) -> dict[str, Tensor]:
    """A saved model's weights by name, on the CPU; `read_shapes` has checked the files."""
    weights: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory(prefix="glscl-model-") as scratch:
        for file in _files(folder):
            path = storage.join(folder, file)
            if storage.is_remote(path):
                storage.download(path, os.path.join(scratch, file))
                path = os.path.join(scratch, file)
            weights |= {_name(name, file): tensor for name, tensor in load_file(path).items()}
    return weights


def _files(folder: str) -> list[str]:
    main = main_file(folder)
    has_head = main == TOWERS_WEIGHTS and storage.exists(storage.join(folder, HEAD_WEIGHTS))
    return [main, HEAD_WEIGHTS] if has_head else [main]


def _name(name: str, file: str) -> str:
    """Name in the model of a tensor in a file."""
    return _PREFIX + name if file == TOWERS_WEIGHTS and name not in _BESIDE else name


def header_shapes(where: str) -> dict[str, list[int]]:
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
