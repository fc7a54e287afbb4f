"""Files at local paths and ``s3://`` URIs, through one set of functions.

Credentials and endpoints come from the standard variables of AWS, never from a configuration. Every request to S3
goes through `glscl.system.s3.S3`, which has the policy of retries. A listing of an S3-compatible store may be out of
date, so nothing is decided by what a listing lacks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import fsspec

from glscl.errors import StorageError, UserError
from glscl.system.environment import check_s3

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyarrow.fs import PyFileSystem

S3_OPTIONS: dict[str, object] = {
    "use_listings_cache": False,  # other processes (Ray tasks, other workers) write what this one lists
    "max_concurrency": 4,  # parts of a file held in memory at once: 50 MB each on the way up
    "config_kwargs": {"retries": {"total_max_attempts": 1}, "connect_timeout": 5, "read_timeout": 60},
}


def is_remote(uri: str) -> bool:
    """True for ``s3://...``."""
    return "://" in uri and not uri.startswith("file://")


def resolve(uri: str) -> str:
    """An absolute local path (Ray workers run in another directory), or the URI itself, refused with credentials."""
    if not is_remote(uri):
        return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))
    scheme = uri.split("://", 1)[0]
    if scheme != "s3":
        raise UserError(f"{uri}: '{scheme}://' is not supported; use a local path or s3://bucket/key")
    if "@" in uri.split("/")[2]:
        raise UserError(
            f"s3://...@{uri.split('@', 1)[1]}: credentials do not belong in an address, where logs and reports "
            f"would repeat them; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    return uri.rstrip("/")


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The file system of an address, and the path on it."""
    uri = resolve(uri)
    if is_remote(uri):
        check_s3()
        from glscl.system.s3 import S3  # lazy: takes a second, which commands on local paths need not wait for

        return S3(**S3_OPTIONS), uri.removeprefix("s3://")
    return fsspec.filesystem("file"), uri


def ray_storage(uri: str) -> tuple[str, PyFileSystem | None]:
    """``storage_path`` and ``storage_filesystem`` for Ray Train and Tune."""
    if not is_remote(uri):
        return resolve(uri), None
    import pyarrow.fs

    fs, path = filesystem(uri)
    return path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))


def join(uri: str, *components: str) -> str:
    """Append path components to a path or URI."""
    return "/".join([uri.rstrip("/"), *components])


def exists(uri: str) -> bool:
    """Whether there is a file or folder of that name."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def open_read(uri: str) -> IO[bytes]:
    """Open for reading, with read-ahead for remote files."""
    fs, path = filesystem(uri)
    ahead = {"block_size": 8 << 20, "cache_type": "readahead"} if is_remote(uri) else {}
    return fs.open(path, "rb", **ahead)  # type: ignore[no-any-return]


def size(uri: str) -> int:
    """Bytes of a file."""
    fs, path = filesystem(uri)
    return int(fs.size(path) or 0)


def read_bytes(uri: str) -> bytes:
    """Read a whole file."""
    fs, path = filesystem(uri)
    return fs.cat_file(path)  # type: ignore[no-any-return]


def read_json(uri: str) -> Any:
    """Read and parse a JSON file; a `UserError` says that it is missing or not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file") from None
    except (ValueError, RecursionError) as error:  # ValueError also covers integers of thousands of digits
        raise UserError(f"{uri}: not valid JSON ({error})") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file. Readers see the old file or the new one, never half of it."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        fs.pipe_file(path, data)  # one PUT, or parts that appear when the last is there: atomic per object
        return
    with _atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def _atomic_file(path: str) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets its name once it is whole and on the disk."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{os.path.basename(path)}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:  # not mkstemp: its files are the owner's alone, whatever the umask
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_json(uri: str, value: object) -> None:
    """Write ``value`` as indented JSON."""
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def check_writable(folder: str, knob: str) -> None:
    """Write a small file into a folder, made if it does not exist, and remove it; ``knob`` is the folder's option.

    Where nothing may be deleted, the file stays and a line says so.
    """
    probe = join(folder, f".glscl-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
    except Exception as error:  # file systems and S3 clients have no exception in common
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}: cannot be written ({reason}); change {knob}") from error
    tidy(probe, remove)


def upload(local_path: str, uri: str) -> None:
    """Copy a local file to a path or URI, whole or not at all."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        fs.put_file(local_path, path)
        return
    with open(local_path, "rb") as source, _atomic_file(path) as target:
        shutil.copyfileobj(source, target, 8 << 20)


def download(uri: str, local_path: str) -> None:
    """Copy a file at a path or URI to a local file, whole or not at all."""
    fs, path = filesystem(uri)
    try:
        fs.get_file(path, local_path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(local_path)
        raise


def wrong_sizes(folder: str, expected: Mapping[str, int]) -> dict[str, int | None]:
    """The real bytes of the files of a folder that have not the ``expected`` ones, by name; None for a missing file.

    It takes one listing, then a request for each file that differs.
    """
    fs, root = filesystem(folder)
    listed = {path: info["size"] for path, info in fs.find(root, detail=True).items()}
    wrong: dict[str, int | None] = {}
    for name, size in expected.items():
        path = join(root, name)
        if listed.get(path) == size:
            continue
        try:
            info = fs.info(path)
        except FileNotFoundError:
            info = {"type": "missing"}
        actual = info["size"] if info["type"] == "file" else None
        if actual != size:
            wrong[name] = actual
    return wrong


def remove(uri: str) -> None:
    """Delete one file; a missing one is no error."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def remove_folder(uri: str) -> None:
    """Delete a folder or prefix with everything under it; a missing one is no error."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def tidy(uri: str, delete: Callable[[str], None] = remove_folder) -> bool:
    """Delete something that is no longer needed, and tell whether it is gone; no run should end for a failure."""
    try:
        delete(uri)
    except (StorageError, OSError) as error:
        reason = str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"
        print(f"{uri} stays behind, because it cannot be removed ({' '.join(reason.split())})", flush=True)
        return False
    return True


def list_names(uri: str) -> list[str]:
    """Sorted names directly under a folder; empty for a missing one."""
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    try:
        entries = {entry.rstrip("/") for entry in fs.ls(path, detail=False)}
    except FileNotFoundError:
        return []
    return sorted(os.path.basename(entry) for entry in entries - {path})  # consoles make an object of the folder's name
