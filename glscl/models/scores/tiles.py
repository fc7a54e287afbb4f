"""Tiles of a texts × videos matrix, and the scratch that they are computed in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CPU_TILE = 2**20
"""Numbers in the largest tensor of a tile on a CPU: 4 MiB in float32, so that a few such tensors stay in cache."""
DEVICE_TILE = 2**24
"""The same elsewhere: 64 MiB, so that launching kernels is not what takes the time. What is kept for a backward pass
may have as many on a CPU, too."""
MOST_TEXTS = 1024


def may_look(mask: Tensor) -> bool:
    """Whether code may ask what is in a mask: on a GPU it would have to wait, in an exported graph are none."""
    return mask.device.type == "cpu" and not torch.compiler.is_exporting()


def tile_numbers(device: torch.device) -> int:
    """Numbers in the largest tensor of a tile on this device."""
    return CPU_TILE if device.type == "cpu" else DEVICE_TILE


def tiles(
    texts: int, videos: int, per_pair: int, numbers: int, rows: int = MOST_TEXTS
) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of tiles that cover texts × videos.

    Args:
        texts: rows.
        videos: columns.
        per_pair: numbers of the largest tensor of a tile, per pair.
        numbers: how many of them a tile may have.
        rows: most rows of a tile.
    """
    rows = max(1, min(texts, rows, numbers // per_pair))
    columns = max(1, min(videos, numbers // (rows * per_pair)))
    for row in range(0, texts, rows):
        for column in range(0, videos, columns):
            yield slice(row, min(row + rows, texts)), slice(column, min(column + columns, videos))


class Scratch:
    """Memory that is used again by every tile: taking new memory from the system costs more than computing in it.

    Args:
        like: a tensor of the type and on the device that is wanted.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor with any content; it shares its memory with the last one of this name."""
        numbers = 1
        for size in shape:
            numbers *= size
        if name not in self._buffers or self._buffers[name].numel() < numbers:
            self._buffers[name] = self._like.new_empty(numbers)
        return self._buffers[name][:numbers].view(shape)
