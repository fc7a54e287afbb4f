"""Codes of four bits per number of a projection, and their search by faiss."""

from __future__ import annotations

from types import ModuleType
from typing import cast

import numpy as np
import numpy.typing as npt

from glscl.errors import UserError

LEVELS = 16
_ROUNDS = 25
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]


def fit_levels(vectors: Floats) -> Floats:
    """Sixteen levels (M, 16) for each of the M numbers of vectors (N, M), ascending: a Lloyd-Max quantiser."""
    levels = np.quantile(vectors, (np.arange(LEVELS) + 0.5) / LEVELS, axis=0).T.astype(np.float32)
    for _ in range(_ROUNDS):
        borders = (levels[:, 1:] + levels[:, :-1]) / 2
        for column in range(vectors.shape[1]):
            own = np.searchsorted(borders[column], vectors[:, column])
            counts = np.bincount(own, minlength=LEVELS)
            sums = np.bincount(own, weights=vectors[:, column], minlength=LEVELS)
            levels[column] = np.where(counts > 0, sums / np.maximum(counts, 1), levels[column])
        levels.sort(axis=1)
    return levels


def encode(vectors: Floats, levels: Floats) -> Codes:
    """Codes (N, M / 2) of vectors (N, M): number 2 j is the low half of byte j."""
    borders = (levels[:, 1:] + levels[:, :-1]) / 2
    nearest = np.empty(vectors.shape, np.uint8)
    for column in range(vectors.shape[1]):
        nearest[:, column] = np.searchsorted(borders[column], vectors[:, column])
    codes: Codes = np.bitwise_or(nearest[:, 0::2], np.left_shift(nearest[:, 1::2], 4)).astype(np.uint8)
    return codes


class CodeSearch:
    """Maximum inner product search over codes: faiss's product quantiser of one number each, by fast scan.

    Raises `UserError`: faiss is not installed.
    """

    def __init__(self, codes: Codes, levels: Floats) -> None:
        faiss = load_faiss()
        width = len(levels)
        plain = faiss.IndexPQ(width, width, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.ascontiguousarray(levels, np.float32).ravel(), plain.pq.centroids)
        plain.is_trained = True
        faiss.copy_array_to_vector(np.ascontiguousarray(codes).ravel(), plain.codes)
        plain.ntotal = len(codes)
        self._index = faiss.IndexPQFastScan(plain)
        self._size = len(codes)

    def search(self, query: Floats, count: int) -> Rows:
        """The rows of the ``count`` largest inner products with a query (M,), best first."""
        _, rows = self._index.search(np.ascontiguousarray(query[None]), min(count, self._size))
        return cast(Rows, rows[0][rows[0] >= 0].astype(np.int64))


def load_faiss() -> ModuleType:
    """The library. Raises `UserError`: it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError("an index of this size is searched by faiss: pip install 'glscl[index]'") from None
    module: ModuleType = faiss
    return module


def has_faiss() -> bool:
    """Whether the library is installed."""
    from importlib.util import find_spec

    return find_spec("faiss") is not None
