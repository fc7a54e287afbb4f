"""What a head keeps of segments on disk: one file of raw numbers per tensor, mapped into memory, in three precisions.

int8 has one scale per vector: the largest number of each vector becomes 127. Masks, Gram matrices and other small
tensors are not vectors and stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glscl.evaluation.caches import Cache
from glscl.index.layout import Precision

SHORTEST = 32  # numbers of what counts as a vector
_SCALE = ".scale"
_LEAST_SCALE = 6e-8  # the smallest number of half precision
_NO_VECTORS = ("gram", "increment_frames")
"""In the names of products of vectors with each other."""
Array = npt.NDArray[np.generic]


def is_vectors(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is vectors, which may be stored in fewer bits; products of them are not."""
    long = tensor.is_floating_point() and tensor.ndim > 1 and tensor.shape[-1] >= SHORTEST
    return long and not any(word in name for word in _NO_VECTORS)


def to_arrays(cache: Cache, precision: Precision) -> dict[str, Array]:
    """The arrays that are stored of a cache, by file name without its ending."""
    arrays: dict[str, Array] = {}
    for name, tensor in cache.items():
        values = tensor.detach().cpu()
        if values.dtype == torch.bfloat16:
            values = values.float()
        if precision == "fp32" or not is_vectors(name, values):
            arrays[name] = values.contiguous().numpy()
        elif precision == "fp16":
            arrays[name] = values.half().contiguous().numpy()
        else:
            scale = (values.float().abs().amax(-1, keepdim=True) / 127).half().clamp_min(_LEAST_SCALE)
            whole = (values.float() / scale.float()).round().clamp(-127, 127)
            arrays[name] = whole.to(torch.int8).contiguous().numpy()
            arrays[name + _SCALE] = scale.squeeze(-1).numpy()
    return arrays


def write_arrays(folder: str, arrays: dict[str, Array]) -> None:
    """Write arrays as ``.npy`` files, without pickles."""
    for name, array in arrays.items():
        np.save(os.path.join(folder, f"{name}.npy"), np.ascontiguousarray(array), allow_pickle=False)


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """Caches of a part's segments, mapped into memory."""

    arrays: dict[str, Array]
    rows: npt.NDArray[np.int64] | None = None
    """Those that count; None for all."""

    @classmethod
    def open(cls, folder: str, names: Sequence[str]) -> StoredVectors:
        """Map the files of these tensors (and scales)."""
        path = {name: os.path.join(folder, f"{name}.npy") for name in names}
        return cls({name: np.load(where, mmap_mode="r", allow_pickle=False) for name, where in path.items()})

    @property
    def tensors(self) -> list[str]:
        """Names of the head's tensors."""
        return [name for name in self.arrays if not name.endswith(_SCALE)]

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()))) if self.rows is None else len(self.rows)

    def read(self, rows: range) -> Cache:
        """Consecutive rows of the files, in float32."""
        return self._widen({name: array[rows.start : rows.stop] for name, array in self.arrays.items()})

    def take(self, rows: npt.NDArray[np.int64]) -> Cache:
        """Any rows of the files, in float32."""
        return self._widen({name: array[rows] for name, array in self.arrays.items()})

    def _widen(self, arrays: dict[str, Array]) -> Cache:
        cache: Cache = {}
        for name in self.tensors:
            tensor = torch.from_numpy(np.array(arrays[name]))
            if tensor.dtype == torch.int8:
                scale = torch.from_numpy(np.array(arrays[name + _SCALE])).float()
                tensor = tensor.float().mul_(scale.unsqueeze(-1))
            cache[name] = tensor.float() if tensor.dtype == torch.float16 else tensor
        return cache


def gather(parts: Sequence[StoredVectors], owner: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Cache:
    """Rows of several parts, in the order given: of each its part, and its place among the rows that count there."""
    pieces: list[Cache] = []
    order: list[npt.NDArray[np.int64]] = []
    for number in np.unique(owner):
        (here,) = np.nonzero(owner == number)
        part = parts[number]
        pieces.append(part.take(rows[here] if part.rows is None else part.rows[rows[here]]))
        order.append(here)
    if len(pieces) == 1:
        return pieces[0]
    place = torch.from_numpy(np.argsort(np.concatenate(order)))
    return {name: torch.cat([piece[name] for piece in pieces])[place] for name in pieces[0]}
