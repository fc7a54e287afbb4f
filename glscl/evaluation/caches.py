"""What a head caches of many texts or videos, in pieces that stay where they were made.

Whoever scores reads some rows at a time, on the device where they are used. What it reads does not depend on where the
pieces lie: in this process (`LocalPiece`), in Ray's object store (`actors.StoredPiece`), or in the training workers
(`glscl.training.rank_caches`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

Cache = dict[str, Tensor]
"""What a head caches: tensors of one leading dimension, one row per text or per video."""

PIECE_BYTES = 64 << 20  # about as much as `join_batches` puts into one piece


@dataclass(frozen=True, slots=True)
class Layout:
    """What is cached of one text or video: name, type and shape of every tensor."""

    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...] = ()

    @classmethod
    def of(cls, cache: Cache) -> Layout:
        """The layout of a cache's rows."""
        return cls(tuple((name, tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in cache.items()))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(dtype.itemsize * torch.Size(shape).numel() for _, dtype, shape in self.tensors)

    def empty(self, rows: int, device: torch.device) -> Cache:
        """Memory for so many rows."""
        return {name: torch.empty(rows, *shape, dtype=dtype, device=device) for name, dtype, shape in self.tensors}


class Piece(Protocol):
    """Caches of consecutive rows that one process keeps."""

    @property
    def layout(self) -> Layout:
        """What a row is."""

    def __len__(self) -> int: ...

    def read(self, rows: range, device: torch.device) -> Cache:
        """Some rows, not to be written to, on the ``device`` or where they can be copied to it from."""


@dataclass(frozen=True, slots=True)
class LocalPiece:
    """A piece in this process. Raises `ValueError`: its tensors have different leading dimensions, or there is none."""

    cache: Cache

    def __post_init__(self) -> None:
        lengths = {key: len(value) for key, value in self.cache.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a cache needs tensors of one common leading dimension, not {lengths}")

    @property
    def layout(self) -> Layout:
        """What a row is."""
        return Layout.of(self.cache)

    def __len__(self) -> int:
        return len(next(iter(self.cache.values())))

    def read(self, rows: range, device: torch.device) -> Cache:
        """Views of the rows."""
        return {name: tensor[rows.start : rows.stop] for name, tensor in self.cache.items()}


@dataclass(frozen=True, slots=True)
class _Selected:
    """Some rows of a piece, in its order."""

    piece: Piece
    index: Tensor  # (R,) int64, increasing

    @property
    def layout(self) -> Layout:
        return self.piece.layout

    def __len__(self) -> int:
        return len(self.index)

    def read(self, rows: range, device: torch.device) -> Cache:
        index = self.index[rows.start : rows.stop]
        first = int(index[0])
        span = self.piece.read(range(first, int(index[-1]) + 1), device)
        return {name: tensor[(index - first).to(tensor.device)] for name, tensor in span.items()}


@dataclass(frozen=True, slots=True)
class Caches:
    """Caches of consecutive texts or videos, of all pieces."""

    pieces: tuple[Piece, ...] = ()
    apart: bool = False  # no block has rows of two pieces

    @classmethod
    def of(cls, cache: Cache) -> Caches:
        """Those of tensors in this process."""
        return cls((LocalPiece(cache),))

    @classmethod
    def join(cls, parts: Sequence[Caches]) -> Caches:
        """Those of all parts, in order."""
        return cls(tuple(chain.from_iterable(part.pieces for part in parts)))

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def layout(self) -> Layout:
        """What a row is; of no tensors where there is no piece."""
        return self.pieces[0].layout if self.pieces else Layout()

    def blocks(self, size: int) -> Iterator[range]:
        """All rows, at most ``size`` at a time."""
        first = 0
        for rows in [len(piece) for piece in self.pieces] if self.apart else [len(self)]:
            yield from cut(range(first, first + rows), size)
            first += rows

    def read(self, rows: range, device: torch.device) -> Cache:
        """Some rows on a device, not to be written to; what lies there in one piece is not copied."""
        parts = list(self._parts(rows, device))
        if len(parts) == 1:
            return {name: tensor.to(device) for name, tensor in parts[0][1].items()}
        whole = self.layout.empty(len(rows), device)
        for place, part in parts:
            for name, tensor in part.items():
                whole[name][place].copy_(tensor)
        return whole

    def _parts(self, rows: range, device: torch.device) -> Iterator[tuple[slice, Cache]]:
        """What each piece has of the rows, and its place among them."""
        before = 0
        for piece in self.pieces:
            first, last = max(rows.start - before, 0), min(rows.stop - before, len(piece))
            if first < last:
                place = slice(before + first - rows.start, before + last - rows.start)
                yield place, piece.read(range(first, last), device)
            before += len(piece)

    def select(self, keep: Tensor) -> Caches:
        """Those rows for which ``keep``, (R,) bool, is true; nothing is read."""
        pieces: list[Piece] = []
        for piece, kept in zip(self.pieces, keep.split([len(piece) for piece in self.pieces]), strict=True):
            if kept.all():
                pieces.append(piece)
            elif kept.any():
                pieces.append(_Selected(piece, kept.nonzero()[:, 0]))
        return Caches(tuple(pieces), self.apart)


@dataclass(frozen=True, slots=True)
class PairCaches:
    """Caches of N consecutive videos of a set and of all their captions, these in the order of their videos."""

    text: Caches = Caches()
    video: Caches = Caches()
    captions: tuple[int, ...] = ()  # (N,) of each video
    text_to_video: Tensor = field(init=False)  # (A,) int64, the video of each caption

    def __post_init__(self) -> None:
        counts = torch.tensor(self.captions, dtype=torch.int64)
        object.__setattr__(self, "text_to_video", torch.arange(len(counts)).repeat_interleave(counts))

    @classmethod
    def join(cls, parts: Sequence[PairCaches]) -> PairCaches:
        """Those of all parts, in order."""
        captions = tuple(chain.from_iterable(part.captions for part in parts))
        return cls(Caches.join([part.text for part in parts]), Caches.join([part.video for part in parts]), captions)

    def select(self, keep: Tensor) -> PairCaches:
        """Those videos for which ``keep``, (N,) bool, is true, and their captions."""
        captions = tuple(torch.tensor(self.captions, dtype=torch.int64)[keep].tolist())
        return PairCaches(self.text.select(keep[self.text_to_video]), self.video.select(keep), captions)


def cut(rows: range, size: int) -> Iterator[range]:
    """Consecutive parts of a range, of ``size`` each but the last."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def join_batches(batches: dict[int, Cache], keep: Callable[[Cache], Piece]) -> Caches:
    """Join caches of consecutive rows, in order of their keys, to larger pieces, and hand each to ``keep``.

    The dictionary is emptied on the way: one piece is the most that memory holds twice.
    """
    pieces: list[Piece] = []
    run: list[Cache] = []
    size = 0
    for key in sorted(batches):
        run.append(batches.pop(key))
        size += sum(tensor.nbytes for tensor in run[-1].values())
        if size >= PIECE_BYTES or not batches:
            pieces.append(keep({name: torch.cat([cache[name] for cache in run]) for name in run[0]}))
            run, size = [], 0
    return Caches(tuple(pieces))
