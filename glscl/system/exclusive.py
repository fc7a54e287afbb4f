"""Files that exactly one of many processes can create, on a disk or on S3. Ownership is built on them.

On a disk this is ``O_EXCL``. On S3 it is a conditional write (``If-None-Match: *``). On stores that refuse or ignore
the condition, the file is written, left for `SETTLE_S` seconds, and belongs to the process that it names then.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from botocore.exceptions import ClientError

from glscl.errors import StorageError
from glscl.system import storage

SETTLE_S = 3.0  # seconds in which two writers of one object, on a store without conditional writes, have both written

_TAKEN = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_NO_CONDITIONS = {"NotImplemented", "501", "InvalidArgument", "InvalidRequest", "400", "MethodNotAllowed", "405"}


class Seen(NamedTuple):
    """Content of a file, and on a disk its time: one of the two differs after every `renew`."""

    data: bytes
    time_ns: int = 0


def create(uri: str, data: bytes) -> bool:
    """Write a file that does not exist yet; of all processes that try at once, one succeeds and gets True.

    ``data`` must be different for every process. A `StorageError` or OSError: it is refused for another reason.
    """
    if not storage.is_remote(uri):
        return _create_locally(storage.resolve(uri), data)
    created = _put_if_absent(uri, data)
    if created is False:
        return _holds(uri, data)  # by an attempt whose answer was lost
    if created and _put_if_absent(uri, data) is False:
        return True
    # The store has no conditions, or would have let this call replace anybody's file.
    if created is None and read(uri) is not None:
        return False
    storage.write_bytes(uri, data)
    time.sleep(SETTLE_S)
    return _holds(uri, data)


def _holds(uri: str, data: bytes) -> bool:
    return (seen := read(uri)) is not None and seen.data == data


def _create_locally(path: str, data: bytes) -> bool:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(path)
        raise
    return True


def _put_if_absent(uri: str, data: bytes) -> bool | None:
    """Whether the object was created; None if the store knows no conditions."""
    fs, path = storage.filesystem(uri)
    try:
        fs.pipe_file(path, data, mode="create")
    except (StorageError, OSError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ClientError):
            cause = cause.__cause__
        code = cause.response.get("Error", {}).get("Code") if cause is not None else None
        if code in _TAKEN:
            return False
        if code in _NO_CONDITIONS:
            return None
        raise
    return True


def read(uri: str) -> Seen | None:
    """The file, or None if there is none. It is asked for by its name, never by a listing."""
    if storage.is_remote(uri):
        fs, path = storage.filesystem(uri)
        with suppress(FileNotFoundError):
            return Seen(fs.cat_file(path))
        return None
    with suppress(FileNotFoundError), open(storage.resolve(uri), "rb") as file:
        return Seen(file.read(), os.fstat(file.fileno()).st_mtime_ns)
    return None


def renew(uri: str, data: bytes) -> None:
    """Change what `read` sees: on S3 by new content; on a disk, where it must exist, by its time (no space needed)."""
    if storage.is_remote(uri):
        storage.write_bytes(uri, data)
    else:
        os.utime(storage.resolve(uri))


def age_s(uri: str) -> float:
    """Seconds since a file was written or renewed, by the storage's clock; clocks of two hosts may differ."""
    if storage.is_remote(uri):
        fs, path = storage.filesystem(uri)
        bucket, _, key = path.partition("/")
        answer = fs.call_s3("head_object", Bucket=bucket, Key=key)
        now = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
        return (parsedate_to_datetime(now) - answer["LastModified"]).total_seconds() if now else 0.0
    path = storage.resolve(uri)
    with tempfile.TemporaryFile(dir=os.path.dirname(path)) as probe:
        return os.fstat(probe.fileno()).st_mtime - os.stat(path).st_mtime
