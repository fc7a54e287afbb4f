"""Snapshots: a checkpoint is copied to host memory while training waits, and written to disk while it goes on."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from glscl.training.checkpoint.format import STATE, TAG, TrainState, list_files

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class HostMemory:
    """Memory for the copies of one snapshot at a time: the pages (pinned beside a GPU) serve the next one again."""

    def __init__(self) -> None:
        self._pages: list[Tensor] = []
        self._used = 0

    def copy(self, value: object) -> object:
        """A copy of plain values and tensors; on a GPU they are there after its next synchronisation."""
        copies: dict[int, object] = {}
        for tensor in _tensors(value):
            if id(tensor) not in copies:
                copies[id(tensor)] = self._page(tensor).copy_(tensor.detach(), non_blocking=True)
        return copy.deepcopy(value, copies)

    def _page(self, tensor: Tensor) -> Tensor:
        self._used += 1
        page = self._pages[self._used - 1] if self._used <= len(self._pages) else None
        if page is None or (page.shape, page.dtype, page.stride()) != (tensor.shape, tensor.dtype, tensor.stride()):
            page = torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.is_cuda)
            self._pages[self._used - 1 :] = [page]
        return page

    def reuse(self) -> None:
        """The copies so far are not needed any more."""
        self._used = 0


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A rank's files of a checkpoint, in host memory until they are written."""

    folder: str
    rank: int
    state: str
    generators: dict[str, Tensor]
    files: list[tuple[object, str]]
    """Contents and paths of what DeepSpeed saves."""
    save: Callable[[object, str], None]
    """DeepSpeed's way to write one of them."""

    def write(self) -> None:
        """Write them, and last the list of this rank's files with their checksums."""
        for content, path in self.files:
            self.save(content, path)
        save_file(self.generators, os.path.join(self.folder, f"generators-{self.rank:05d}.safetensors"))
        if self.rank == 0:
            Path(self.folder, STATE).write_text(self.state, encoding="utf-8")
        list_files(self.folder, self.rank)


def take_snapshot(
    engine: DeepSpeedEngine, folder: str, state: TrainState, rank: int, memory: HostMemory | None = None
) -> Snapshot:
    """Copy what this rank saves in a folder of its own (collective); later steps do not change the copy."""
    memory = memory or HostMemory()
    memory.reuse()
    files: list[tuple[object, str]] = []
    writer = engine.checkpoint_engine
    save = writer.save

    def hold(state_dict: object, path: str) -> None:
        files.append((memory.copy(state_dict), path))

    writer.save = hold
    writer.preserves_storage_sharing = lambda: False  # else DeepSpeed copies the parameters first
    try:
        engine.save_checkpoint(folder, tag=TAG, exclude_frozen_parameters=state.frozen is not None)
    finally:
        del writer.save, writer.preserves_storage_sharing
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
        torch.cuda.synchronize()
    return Snapshot(folder, rank, json.dumps(asdict(state), indent=1), generators, files, save)
