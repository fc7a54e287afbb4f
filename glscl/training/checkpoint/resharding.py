"""Resharding: sharded state cut anew for another number of workers, through DeepSpeed's universal checkpoint.

ZeRO 1 to 3 leave one file of optimiser state per rank, which fits as many ranks and no others. DeepSpeed's converter
rewrites them as one file per parameter and moment, of which any number of ranks takes its slices. That needs scratch
space and time; the checkpoint itself is only read.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from glscl.errors import RunStoppedError
from glscl.training.checkpoint.format import TAG, IncompleteCheckpointError, TrainState, own_settings
from glscl.training.checkpoint.safe_load import safe_loading
from glscl.training.checkpoint.transfer import one_per_node
from glscl.training.collectives import rank, world_size

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

BYTES_PER_SECOND = 100e6
"""Scratch bytes that a conversion gets through per second, to say how long it will take: ViT-B/32's 4 GB take a core of
an AMD EPYC 23 to 29 s, and a disk is not always idle."""


@contextmanager
def resharded(folder: str, source: str, state: TrainState, node: int, leads: bool) -> Iterator[str]:
    """A checkpoint in a form that any number of ranks can `load` (collective; see `one_per_node`).

    ``source`` is what messages call the checkpoint. Every rank raises a `RunStoppedError` where it cannot be converted.
    """
    with one_per_node(_converted(folder, source, state), node, leads) as (whole, problem):
        if problem:
            raise RunStoppedError(
                f"checkpoint {source} of {state.world_size} workers could not be converted for {world_size()} "
                f"({problem}): mend that, or resume with --training.num-workers {state.world_size}"
            )
        yield whole


@contextmanager
def _converted(folder: str, source: str, state: TrainState) -> Iterator[str]:
    scratch = tempfile.mkdtemp(prefix="convert-", dir=os.getcwd())  # the worker's own, in Ray's session
    try:
        try:
            _convert(folder, scratch, source, state, talks=rank() == 0)
        except Exception as error:  # whatever DeepSpeed or the disk says: the other processes wait for this one
            raise IncompleteCheckpointError(f"{type(error).__name__}: {error}") from error
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load(engine: DeepSpeedEngine, folder: str) -> None:
    """Load what `resharded` gave into an engine of any world size (collective)."""
    with own_settings(engine), safe_loading(folder), _resharded_loading(engine):
        engine.load_checkpoint(folder, tag=TAG)
    # Running statistics are no parameters, so they are not in the converted files, only in the first rank's own.
    buffers = {name: buffer for name, buffer in engine.module.named_buffers() if name in engine.module.state_dict()}
    if buffers:
        path = next(Path(folder, TAG).glob("*mp_rank_00_model_states.pt"))
        with safe_loading(folder):
            saved = torch.load(path, map_location="cpu")["module"]
        for name, buffer in buffers.items():
            buffer.copy_(saved[name])


def _convert(folder: str, scratch: str, source: str, state: TrainState, *, talks: bool) -> None:
    from deepspeed.checkpoint import ds_to_universal

    needed = _scratch_bytes(Path(folder, TAG), state.zero_stage)
    if talks:
        print(
            f"converting {source} of {state.world_size} workers (ZeRO {state.zero_stage}) for "
            f"{distributed.get_world_size()}: about {needed / 1e9:.1f} GB in {scratch} and "
            f"{needed / BYTES_PER_SECOND:.0f} s on each node",
            flush=True,
        )
    free = shutil.disk_usage(scratch).free
    if free < needed:
        raise OSError(
            f"{needed / 1e9:.1f} GB are needed in {scratch} and {free / 1e9:.1f} GB are free; ray start --temp-dir "
            f"moves Ray's session to another disk"
        )
    options = Namespace(
        input_folder=os.path.join(folder, TAG),
        output_folder=os.path.join(scratch, TAG),
        num_extract_workers=1,  # in this process: children of one that holds a process group or a GPU may hang
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,  # this project's models have nothing of what it means
    )
    with (
        safe_loading(folder, source),
        open(os.devnull, "w") as silent,
        redirect_stdout(silent),  # progress bars
        redirect_stderr(silent),
    ):
        ds_to_universal.main(options)


@contextmanager
def _resharded_loading(engine: DeepSpeedEngine) -> Iterator[None]:
    """Make DeepSpeed's loader expect a converted checkpoint.

    It takes that from the configuration that an engine is made with, before anybody knows what will be loaded. Where
    many ranks share a small group of parameters (49 biases, 8 ranks), some hold nothing of it, and the loader of ZeRO
    1 and 2 fails; each such group is given a stand-in of no elements meanwhile.
    """
    from deepspeed.utils import logger

    optimizer = engine.optimizer
    groups = getattr(optimizer, "bit16_groups", [])  # ZeRO 3 has other ones, and no such trouble
    empty = [group for group in groups if all(parameter._hp_mapping is None for parameter in group)]
    stand_in: Any = torch.nn.Parameter(torch.empty(0))
    stand_in._hp_mapping = SimpleNamespace(get_optim_state_keys=list)
    stand_in.load_hp_checkpoint_state = lambda *_, **__: None
    optimizer.param_names[stand_in] = "nothing"
    for group in empty:
        group.append(stand_in)
    level = logger.level
    logger.setLevel(logging.ERROR)  # else every rank warns that there is no model parallelism
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False
        logger.setLevel(level)
        for group in empty:
            group.pop()
        del optimizer.param_names[stand_in]


def _scratch_bytes(folder: Path, zero_stage: int) -> int:
    """The most that a conversion holds on disk: fragments, what they are merged into, one rank's state under ZeRO 3."""
    sizes = [path.stat().st_size for path in folder.glob("*_optim_states.pt")]
    return 2 * sum(sizes) + (max(sizes) if zero_stage == 3 else 0)
