"""The model inside an index: an export of it, known by a fingerprint of its weights and configuration."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile

from glscl.errors import UserError
from glscl.evaluation.locate import CARD
from glscl.index.layout import INDEX, MODEL
from glscl.retrieval.export import export_model
from glscl.system import storage

_BLOCK = 1 << 22


def store_model(run: str, index: str | None) -> str:
    """Export a model into an index, if one is given; returns its fingerprint. Raises `UserError`: as `export_model`."""
    with tempfile.TemporaryDirectory(prefix="glscl-index-") as scratch:
        export_model(run, scratch)
        fingerprint = find_fingerprint(scratch)
        if index is not None:
            where = os.path.join(index, MODEL)
            shutil.rmtree(where, ignore_errors=True)
            shutil.copytree(scratch, where)
    return fingerprint


def find_fingerprint(folder: str) -> str:
    """Hash of a model's weights and of its configuration."""
    digest = hashlib.sha256()
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            digest.update(name.encode())
            with open(os.path.join(folder, name), "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
                digest.update(json.dumps(header, sort_keys=True).encode())  # its order is another in every export
                while block := file.read(_BLOCK):
                    digest.update(block)
    card = storage.read_json(os.path.join(folder, CARD))
    digest.update(repr(sorted((key, repr(card[key])) for key in ("model", "sample_fps"))).encode())
    return digest.hexdigest()


def check_model(index: str, expected: str) -> str:
    """The folder of an index's model. Raises `UserError`: it is missing, or not the one that encoded the videos."""
    folder = os.path.join(index, MODEL)
    if not os.path.exists(os.path.join(folder, CARD)):
        raise UserError(f"{folder}: no model there; copy the index again, as a whole")
    if (found := find_fingerprint(folder)) != expected:
        raise UserError(
            f"{folder}: another model than the one that encoded the videos (fingerprint {found[:12]} where {INDEX} "
            f"says {expected[:12]}); copy the index again, or build it again"
        )
    return folder
