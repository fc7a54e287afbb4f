"""One address layer: every path the project takes is a local path or an ``s3://`` URI.

Credentials and endpoints come from the standard variables (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_ENDPOINT_URL``, ``AWS_PROFILE``, instance roles ...): nothing of the kind is ever part of a configuration.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from typing import IO, Any

import fsspec

from glscl.errors import UserError

S3_OPTIONS: dict[str, Any] = {
    "use_listings_cache": False,  # other processes (Ray tasks, other workers) write what this one lists
    "config_kwargs": {"retries": {"max_attempts": 8, "mode": "adaptive"}},
}


def is_remote(uri: str) -> bool:
    """True for ``s3://...``."""
    return "://" in uri and not uri.startswith("file://")


def resolve(uri: str) -> str:
    """Return an absolute local path or the URI itself (Ray workers run in another directory than the driver)."""
    if is_remote(uri):
        scheme = uri.split("://", 1)[0]
        if scheme != "s3":
            raise UserError(f"{uri}: '{scheme}://' is not supported; use a local path or s3://bucket/key")
        return uri.rstrip("/")
    return os.path.abspath(os.path.expanduser(uri.removeprefix("file://")))


def filesystem(uri: str) -> tuple[Any, str]:
    """Return ``(fsspec filesystem, path on it)``."""
    uri = resolve(uri)
    if is_remote(uri):
        return fsspec.filesystem("s3", **S3_OPTIONS), uri.removeprefix("s3://")
    return fsspec.filesystem("file"), uri


def ray_storage(uri: str) -> tuple[str, Any | None]:
    """Return ``(storage_path, storage_filesystem)`` as Ray Train and Tune want them."""
    if not is_remote(uri):
        return resolve(uri), None
    import pyarrow.fs

    fs, path = filesystem(uri)
    return path, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))


def join(uri: str, *parts: str) -> str:
    """Append path components to a path or URI."""
    return "/".join([uri.rstrip("/"), *parts])


def exists(uri: str) -> bool:
    """True if a file or folder is there."""
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def open_read(uri: str) -> IO[bytes]:
    """Open for reading, with read-ahead for remote files."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        return fs.open(path, "rb", block_size=8 << 20, cache_type="readahead")  # type: ignore[no-any-return]
    return fs.open(path, "rb")  # type: ignore[no-any-return]


def size(uri: str) -> int:
    """Bytes of a file."""
    fs, path = filesystem(uri)
    return int(fs.size(path) or 0)


def read_bytes(uri: str) -> bytes:
    """Read a whole file."""
    fs, path = filesystem(uri)
    return fs.cat_file(path)  # type: ignore[no-any-return]


def read_json(uri: str) -> Any:
    """Read and parse a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(read_bytes(uri))
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file") from None
    except (ValueError, RecursionError) as error:  # ValueError also covers integers of thousands of digits
        raise UserError(f"{uri}: not valid JSON ({error})") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file; readers see the old file or the new one, never half of it."""
    fs, path = filesystem(uri)
    if is_remote(uri):
        fs.pipe_file(path, data)  # one PUT: atomic per object
        return
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(uri: str, value: Any) -> None:
    """Write ``value`` as indented JSON."""
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def check_writable(folder: str, knob: str) -> None:
    """Write and remove a small file.

    Args:
        folder: path or URI; made if it is not there.
        knob: the option that chose it.

    Raises:
        UserError: it cannot be written.
    """
    probe = join(folder, f".glscl-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        remove(probe)
    except Exception as error:  # file systems and S3 clients have no exception in common
        raise UserError(f"{folder}: cannot be written ({type(error).__name__}: {error}); change {knob}") from error


def upload(local_path: str, uri: str) -> None:
    """Copy a local file to a path or URI."""
    fs, path = filesystem(uri)
    if not is_remote(uri):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    fs.put_file(local_path, path)


def download(uri: str, local_path: str) -> None:
    """Copy a file at a path or URI to a local file."""
    fs, path = filesystem(uri)
    fs.get_file(path, local_path)


def remove(uri: str) -> None:
    """Delete one file; it is no error if it is not there."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def remove_folder(uri: str) -> None:
    """Delete a folder or prefix and everything under it; it is no error if it is not there."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def list_names(uri: str) -> list[str]:
    """Sorted names directly under a folder; empty if it is not there."""
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)
    try:
        return sorted(os.path.basename(entry.rstrip("/")) for entry in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []
