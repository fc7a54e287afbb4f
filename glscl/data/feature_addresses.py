"""Find the frame features that others published for each video: a folder of ``.npy``, one HDF5 or safetensors file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable

from glscl.data.feature_facts import BETWEEN, HDF5, KNOB, SAFETENSORS
from glscl.data.locate import walk_files
from glscl.data.records import compose_accents, list_some
from glscl.errors import UserError
from glscl.system import storage


def locate_features(video_ids: Iterable[str], where: str) -> tuple[dict[str, str], list[str]]:
    """Find the array of every id, under its name or its name without a video's extension.

    Returns addresses (a path, or a file and a name in it) by id, and the ids that have none. Raises `UserError`: no
    such folder or file, one that cannot be read, or two arrays of one name.
    """
    names = _index_file(where) if where.lower().endswith(HDF5 + SAFETENSORS) else _index_folder(where)
    located: dict[str, str] = {}
    missing: list[str] = []
    for video_id in dict.fromkeys(video_ids):
        plain = compose_accents(video_id)
        address = next((names[name] for name in (plain, os.path.splitext(plain)[0]) if name in names), None)
        if address is None:
            missing.append(video_id)
        else:
            located[video_id] = address
    return located, missing


def _index_folder(folder: str) -> dict[str, str]:
    """Paths of the ``.npy`` files at any depth, by their names without extension."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in walk_files(folder, KNOB):
        if path.lower().endswith(".npy"):
            found[compose_accents(path.rpartition("/")[2][:-4])].append(path)
    if twice := [", ".join(sorted(paths)) for paths in found.values() if len(paths) > 1]:
        raise UserError(f"{folder}: several arrays of one name ({list_some(twice, 3, between='; ')}); {KNOB}")
    root = storage.resolve(folder)
    return {name: storage.join(root, paths[0]) for name, paths in found.items()}


def _index_file(where: str) -> dict[str, str]:
    """Addresses in one file, by the names in it."""
    if storage.is_remote(where):
        raise UserError(f"{where}: a file of features is read where it lies: copy it to a disk of this machine")
    path = storage.resolve(where)
    if not os.path.isfile(path):
        raise UserError(f"{where}: no such file; {KNOB}")
    from glscl.data.feature_files import list_arrays  # with torch, seconds to import

    return {compose_accents(name): f"{path}{BETWEEN}{name}" for name in list_arrays(path)}
