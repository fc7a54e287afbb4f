"""The format of a checkpoint: files per rank with checksums, saved, checked and restored.

Resume rules:

1. The same run name continues from the run directory's newest complete checkpoint; where there never was one it starts
   at step 0. Where there were and none is complete any more, it is refused.
2. A checkpoint is complete when the file list of every rank that saved it is there and every listed file has its size
   and SHA-256. One that is not is named in the log and passed over for the one before (`retention` has the rules of
   what is kept).
3. The same number of workers resumes bit-identically on CPU in fp32: parameters, optimiser state, random number
   generators and the stream's position are those of the moment of saving.
4. Another number of workers resumes with the same parameters, optimiser state and pairs, so with the same losses to
   rounding (`resharding` cuts the sharded state of ZeRO 1 to 3 anew). The ranks' generators, which no longer have one
   counterpart each, start from `seed_generators` of seed, step and rank: dropout draws other masks than it would have.
5. A configuration that changes the model, the loss, the data or the optimisation is refused with the differing keys;
   what only changes logging, evaluation, retention or the machines is free to differ (`FREE_KEYS`), and so are heads
   and loss terms that came later and decide nothing of the run (`add_later_sections`).
6. Frozen weights are in no checkpoint. A run that goes on has them from where it began, ``model.pretrained`` or the
   seed; where their fingerprint is not the checkpoint's, it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import distributed

from glscl.errors import UserError
from glscl.options import Options
from glscl.options.differences import Values, differing_keys
from glscl.options.mistakes import first_mistake
from glscl.system import storage
from glscl.training.checkpoint.safe_load import safe_loading
from glscl.training.config import add_later_sections

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

SELECTION_METRIC = "validation_R@1"
STATE = "state.json"
TAG = "deepspeed"
LIST_PREFIX = "files-"

FREE_KEYS = (
    "name", "storage", "checkpoint", "evaluation", "tracking",
    "data.validation", "data.test", "data.loader_workers", "data.prefetch", "data.cache_mb", "data.decoder",
    "data.cache_dir", "data.max_decode_s", "data.max_bad_fraction", "data.stall_timeout_s",
    "model.grad_checkpointing", "model.trust_pickle", "loss.contrastive.tiled_above",
    "loss.sigmoid.tiled_above",
    "training.compile", "training.accumulate", "training.log_every",
    "training.num_workers", "training.use_gpu", "training.cpus_per_worker",
    "training.wait_for_nodes_s", "training.restart_cost_s", "training.max_failures", "training.hang_timeout_s",
)  # fmt: skip
"""Configuration keys (or sections) in which a resumed run may differ from the run that saved."""


@dataclass(slots=True)
class TrainState:
    """What a checkpoint says beside the tensors."""

    step: int
    """Steps done; the next batch of the stream is this one."""
    world_size: int
    zero_stage: int
    config: dict[str, Any]
    manifests: list[str]
    """Fingerprints of the training shard sets."""
    quarantined: list[dict[str, str]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    """Held-out metrics at this step, where it was scored."""
    frozen: str | None = None
    """Fingerprint of the weights that are not trained, which the files lack; None where everything is in the files."""


class IncompleteCheckpointError(Exception):
    """The files do not match the lists that their writers left."""


def list_files(folder: str, rank: int) -> None:
    """Write the list of a rank's files, which its folder has, with their sizes and checksums."""
    files = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    Path(folder, _list_name(rank)).write_text(json.dumps(files, indent=1), encoding="utf-8")


def _plain(name: str) -> str:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError("leaves the checkpoint's folder")
    return name


class _File(Options):
    bytes: int = Field(ge=0)
    sha256: str


_STATE = TypeAdapter(TrainState)
_LIST = TypeAdapter(dict[Annotated[str, AfterValidator(_plain)], _File])


def _read(uri: str, name: str, kind: TypeAdapter[Any]) -> Any:
    try:
        return kind.validate_json(storage.read_bytes(storage.join(uri, name)), strict=True)
    except FileNotFoundError:
        raise IncompleteCheckpointError(f"{name}: missing") from None
    except ValidationError as error:
        raise IncompleteCheckpointError(f"{name}: unreadable ({first_mistake(error)})") from None


def _read_lists(uri: str) -> tuple[TrainState, list[dict[str, _File]]]:
    """A checkpoint's state, and the listed files of each rank."""
    state = read_state(uri)
    return state, [_read(uri, _list_name(rank), _LIST) for rank in range(state.world_size)]


def file_names(uri: str) -> list[str]:
    """All files of a checkpoint: state, lists, what those name; `IncompleteCheckpointError` if one is unreadable."""
    state, lists = _read_lists(uri)
    listed = (name for files in lists for name in files)
    return list(dict.fromkeys([STATE, *map(_list_name, range(state.world_size)), *listed]))


def read_state(folder: str) -> TrainState:
    """A checkpoint's state; raises `IncompleteCheckpointError` where there is no readable file of it."""
    state: TrainState = _read(folder, STATE, _STATE)
    return state


def check_files(uri: str) -> TrainState:
    """Check that every listed file of a checkpoint exists with its size; an `IncompleteCheckpointError` names one."""
    state, lists = _read_lists(uri)
    expected = {name: entry.bytes for files in lists for name, entry in files.items()}
    for name, size in storage.wrong_sizes(uri, expected).items():
        problem = "missing" if size is None else f"{size} bytes where {expected[name]} were saved"
        raise IncompleteCheckpointError(f"{name}: {problem}")
    return state


def check_complete(folder: str, process: int = 0, processes: int = 1) -> TrainState:
    """Compare a local folder with every rank's files with their lists: all sizes, and this process's checksums.

    Of several processes that share the work, each hashes the files of every ``processes``-th rank. Raises
    `IncompleteCheckpointError`, naming the file.
    """
    state = check_files(folder)
    _, lists = _read_lists(folder)
    for files in lists[process::processes]:
        for name, entry in files.items():
            if _sha256(Path(folder, name)) != entry.sha256:
                raise IncompleteCheckpointError(f"{name}: checksum differs")
    return state


def restore(engine: DeepSpeedEngine, folder: str, state: TrainState, rank: int) -> None:
    """Load a complete checkpoint into an engine of the same world size, or of any under ZeRO 0 (collective)."""
    load_module = None if state.frozen is None else _load_trained
    with own_settings(engine), safe_loading(folder):
        path, _ = engine.load_checkpoint(folder, tag=TAG, custom_load_fn=load_module)
    if path is None:
        raise IncompleteCheckpointError(f"{folder}: DeepSpeed found nothing to load")
    restore_generators(folder, state, rank)


def _load_trained(src: dict[str, torch.Tensor], dst: torch.nn.Module) -> None:
    """Load parameters and buffers of a checkpoint without the frozen ones, as DeepSpeed calls it."""
    missing, unexpected = dst.load_state_dict(src, strict=False)
    frozen = {name for name, parameter in dst.named_parameters() if not parameter.requires_grad}
    if wrong := sorted({*unexpected, *(set(missing) - frozen)}):
        raise IncompleteCheckpointError(f"its weights are not those of this model: {', '.join(wrong[:3])}")


@contextmanager
def own_settings(engine: DeepSpeedEngine) -> Iterator[None]:
    """Let the optimiser keep this run's settings while its state is loaded; DeepSpeed loads those of the saved one too.

    ZeRO 3 even gives every group the first one's, and the groups share one step tensor, which each would count up.
    """
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups
    ]
    yield
    for group, values in zip(engine.optimizer.param_groups, groups, strict=True):
        group.update(values)
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for parameter, moments in optimizer.state.items():
        if "step" in moments:
            moments["step"] = torch.as_tensor(moments["step"]).to(parameter.device, torch.float32, copy=True)


def restore_generators(folder: str, state: TrainState, rank: int) -> None:
    """Let this rank's random numbers go on where they stood, or start anew in a group of another size."""
    if state.world_size != distributed.get_world_size():
        seed_generators(state.config["seed"], state.step, rank)
        return
    generators = load_file(os.path.join(folder, f"generators-{rank:05d}.safetensors"))
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Start this rank's generators from a number that no other rank or step of the run has."""
    torch.manual_seed(seed * 1_000_003 + step * 65_537 + rank)


def run_differences(saved: Values, current: Values) -> list[str]:
    """Name the keys by which two configurations are of different runs (resume rule 5), each with both values."""
    return differing_keys(add_later_sections(saved, current), current, FREE_KEYS)


def check_resumable(
    state: TrainState, config: dict[str, Any], manifests: Sequence[str], frozen: str | None = None
) -> None:
    """Apply resume rules 5 and 6. Raises `UserError`, with every differing key."""
    different = run_differences(state.config, config)
    if different:
        raise UserError(
            f"the run directory holds a run of another configuration: {'; '.join(different)}. "
            f"Choose another --name, or restore these values"
        )
    if list(manifests) != state.manifests:
        raise UserError(
            "data.train: the shards differ from those that the run directory's checkpoint was trained on; "
            "choose another --name, or restore the shards"
        )
    if state.frozen != frozen:
        raise UserError(
            f"model.pretrained: the frozen weights are not those that the run directory's checkpoint was trained on "
            f"(fingerprint {state.frozen}, now {frozen}); restore the weights of {config['model']['pretrained']}, or "
            f"choose another --name"
        )


def directory_name(step: int, world_size: int, attempt: str) -> str:
    """A name no other attempt uses: Ray merges files of equally named checkpoints."""
    return f"step_{step:08d}-w{world_size}-{attempt}"


def _list_name(rank: int) -> str:
    return f"{LIST_PREFIX}{rank:05d}.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
