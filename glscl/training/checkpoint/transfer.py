"""Transfer of checkpoints: a local copy to read, the upload of one rank's files, and the error of a full disk."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import distributed

from glscl.errors import UserError
from glscl.system import storage
from glscl.training.checkpoint.format import LIST_PREFIX, IncompleteCheckpointError, file_names
from glscl.training.collectives import gather_objects

_TORCH_CANNOT_WRITE = ("inline_container.cc", "PytorchStreamWriter", "iostream error")  # it has no type for that


@contextmanager
def local_copy(uri: str, scratch: str | None = None) -> Iterator[str]:
    """A checkpoint's files in a local folder: where they are, or fetched by the names that its lists give.

    What is fetched, or a link, lies in a folder in ``scratch``, which goes with the end of the block. An
    `IncompleteCheckpointError` names the file that is not there.
    """
    if not storage.is_remote(uri):
        if glob.escape(uri) == uri:
            yield uri
            return
        with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=scratch) as folder:
            link = Path(folder, "files")  # DeepSpeed takes paths for patterns
            link.symlink_to(uri)
            yield str(link)
        return
    names = file_names(uri)
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=scratch) as folder:

        def fetch(name: str) -> None:
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                storage.download(storage.join(uri, name), str(target))
            except FileNotFoundError:
                raise IncompleteCheckpointError(f"{name}: missing") from None

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(fetch, names))
        yield folder


@contextmanager
def one_per_node(made: AbstractContextManager[str], node: int, leads: bool) -> Iterator[tuple[str, str | None]]:
    """A folder that one process per node makes for all of them (collective; entered and left by all ranks together).

    The process that leads on its ``node`` enters ``made``, which makes it and removes it at the end. Yields the folder
    and None, or what an `IncompleteCheckpointError` said, the same on every rank.
    """
    with ExitStack() as stack:
        folder = problem = None
        if leads:
            try:
                folder = stack.enter_context(made)
            except IncompleteCheckpointError as error:
                problem = str(error)
        copies = gather_objects((node, folder, problem))
        problem = next((text for *_, text in copies if text), None)
        yield "" if problem else next(path for on, path, _ in copies if on == node and path), problem
        distributed.barrier()  # others on this machine may still be reading


def upload(folder: str, uri: str) -> None:
    """Copy one rank's files to storage, its list last; a `UserError` where the disk there is full."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: path.name.startswith(LIST_PREFIX)):
        try:
            storage.upload(str(path), storage.join(uri, path.relative_to(folder).as_posix()))
        except OSError as error:
            raise UserError(
                f"{uri}: the checkpoint could not be written ({_reason(error)}): free space there or lower "
                f"checkpoint.keep, then start the same run again; the checkpoints before it are intact"
            ) from error


@contextmanager
def explained_full_disk(folder: str) -> Iterator[None]:
    """Turn the error of a full disk, where a checkpoint is first written, into one that says what to do."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _TORCH_CANNOT_WRITE):
            raise
        raise UserError(
            f"{folder}: a checkpoint could not be written ({_reason(error)}; "
            f"{shutil.disk_usage(os.path.dirname(folder)).free / 1e6:.0f} MB are free): free space there, or let Ray's "
            f"session lie on another disk (ray start --temp-dir, or RAY_TMPDIR), then start the same run again"
        ) from error


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0][:200]
