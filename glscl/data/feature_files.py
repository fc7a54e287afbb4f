"""Read arrays of frame features that others published, out of ``.npy``, HDF5 and safetensors files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from glscl.data.feature_facts import BETWEEN, HDF5, KNOB, SAFETENSORS
from glscl.data.features import MOST_ARRAY, check_array, load_array
from glscl.data.limits import VideoError
from glscl.errors import UserError
from glscl.system import storage

if TYPE_CHECKING:
    import h5py


def list_arrays(path: str) -> list[str]:
    """Names in an HDF5 or safetensors file; a `UserError` says that it cannot be read."""
    if path.lower().endswith(HDF5):
        with _open_hdf5(path) as file:
            return list(file)
    try:
        with safe_open(path, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); {KNOB}") from None


def read_published(address: str) -> bytes:
    """Frame features (N, D) at an address of `locate_features`, as the bytes of a ``.npy`` file.

    Raises `VideoError`: there is no such array, or it is none of frames x width.
    """
    file, _, name = address.partition(BETWEEN)
    if name and file.lower().endswith(HDF5):
        frames = _read_hdf5(file, name)
    elif name and file.lower().endswith(SAFETENSORS):
        frames = _read_safetensors(file, name)
    else:
        if storage.size(address) > MOST_ARRAY:
            raise VideoError(f"an array of more than {MOST_ARRAY >> 20} MiB")
        frames = load_array(storage.read_bytes(address))
    data = io.BytesIO()
    np.save(data, frames, allow_pickle=False)
    return data.getvalue()


def _read_safetensors(path: str, name: str) -> npt.NDArray[np.float32]:
    with safe_open(path, framework="pt") as tensors:
        tensor = tensors.get_tensor(name)
    return check_array(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())


@contextmanager
def _open_hdf5(path: str) -> Iterator[h5py.File]:
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: HDF5 files need h5py: pip install 'glscl[hdf5]'") from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: not a readable HDF5 file ({error}); {KNOB}") from None
    with file:
        yield file


def _read_hdf5(path: str, name: str) -> npt.NDArray[np.float32]:
    """The data set of that name, or the only one in the group of that name; nothing in another file is opened."""
    import h5py

    with _open_hdf5(path) as file:
        found = _hard(file, name)
        if isinstance(found, h5py.Group):
            names = list(found)
            if len(names) != 1:
                raise VideoError(f"{len(names)} arrays where one is expected")
            found = _hard(found, names[0])
        if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
            raise VideoError("no array in the file itself")
        if found.nbytes > MOST_ARRAY:
            raise VideoError(f"an array of more than {MOST_ARRAY >> 20} MiB")
        try:
            return check_array(found[()])
        except (OSError, TypeError, ValueError) as error:
            raise VideoError(f"an array that cannot be read ({type(error).__name__})") from None


def _hard(group: Any, name: str) -> Any:
    """A member of a group that is in the same file."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise VideoError("a link where an array is expected")
    return group[name]
