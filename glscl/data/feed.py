"""A rank's batches on the device that trains: while one is computed with, the next is copied there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from glscl.data.stream import Batch, PairStream, make_loader
from glscl.errors import BrokenRunError


class Copies(Protocol):
    """Copies batches to a device beside the computation. `CudaCopies` is the real one; tests have others."""

    def start(self, batch: Batch) -> Batch:
        """Begin to copy; the result must not be computed with before `use`."""

    def use(self, batch: Batch) -> None:
        """Let what is computed from now on see the copy."""

    def settle(self) -> None:
        """Wait until nothing more is read of the last batch's memory on this side."""


class CudaCopies:
    """Copies on a stream of their own, from memory that is pinned where it lies, once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._done = torch.cuda.Event()
        self._pinned: set[int] = set()

    def start(self, batch: Batch) -> Batch:
        """Copy what lies in pages straight from there, the small rest from new pinned memory."""
        *features, words = batch.text
        for large in (batch.frames, *features):
            self._pin(large)
        with torch.cuda.stream(self._stream):
            copied = replace(
                batch,
                text=(*map(self._copy, features), self._copy(words.pin_memory())),
                frames=self._copy(batch.frames),
                frame_mask=self._copy(batch.frame_mask.pin_memory()),
                video_ids=self._copy(batch.video_ids.pin_memory()),
            )
            self._done.record(self._stream)
        return copied

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)

    def use(self, batch: Batch) -> None:
        """Order the present stream behind the copies; their memory is not given away before it is done with them."""
        present = torch.cuda.current_stream(self._device)
        present.wait_event(self._done)
        for tensor in (*batch.text, batch.frames, batch.frame_mask, batch.video_ids):
            tensor.record_stream(present)

    def settle(self) -> None:
        """Wait for the copies; by the time of the next batch they are long done."""
        self._done.synchronize()

    def _pin(self, page: Tensor) -> None:
        storage = page.untyped_storage()
        if storage.data_ptr() not in self._pinned:
            code = int(torch.cuda.cudart().cudaHostRegister(storage.data_ptr(), storage.nbytes(), 0))
            if code:
                raise BrokenRunError(
                    f"the GPU's driver cannot pin {storage.nbytes():,} bytes for batches (error {code})"
                )
            self._pinned.add(storage.data_ptr())


class Feed:
    """Iterator over a rank's batches on its device.

    Args:
        stream: of pairs.
        loader_workers: decoding processes.
        prefetch: batches that each decodes ahead.
        device: of the computation.
        copies: None is the device's own way: `CudaCopies` on a GPU, nothing on a CPU.
    """

    def __init__(
        self,
        stream: PairStream,
        loader_workers: int,
        prefetch: int,
        device: torch.device,
        copies: Copies | None = None,
    ) -> None:
        self._batches = make_loader(stream, loader_workers, prefetch)
        self._copies = CudaCopies(device) if copies is None and device.type == "cuda" else copies
        self._next: Batch | Exception | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._copies is None:
            return next(self._batches)
        self.fetch()
        batch, self._next = self._next, None
        if isinstance(batch, Exception):
            raise batch
        assert batch is not None
        self._copies.use(batch)
        return batch

    def fetch(self) -> None:
        """Take the next batch and begin its copy, if that is not done; call it while the device still computes.

        An error of the next batch is no error of the present step: it is raised when that batch is asked for.
        """
        if self._copies is None or self._next is not None:
            return
        self._copies.settle()  # the loader may write to the last batch's page as soon as another is asked for
        try:
            self._next = self._copies.start(next(self._batches))
        except Exception as error:
            self._next = error
