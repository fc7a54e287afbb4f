"""A trial of a storage folder: list, write, read and delete a small file, and say what is wrong."""

import errno
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from botocore.exceptions import (  # type: ignore[import-untyped]  # comes with s3fs
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from glscl.errors import StorageError, UserError
from glscl.system import storage

NETWORK = "AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, and the network between"
CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine"
_WRONG_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
                      "TokenRefreshRequired")  # fmt: skip
_RIGHTS = {"list": "s3:ListBucket", "write": "s3:PutObject", "read": "s3:GetObject", "delete": "s3:DeleteObject"}
_REQUESTS = {"list": "list_objects_v2", "write": "put_object", "read": "get_object", "delete": "delete_object"}


@dataclass(frozen=True, slots=True)
class StorageProblem:
    """What is wrong with a folder, and what to change."""

    what: str
    knob: str


def storage_problem(uri: str, others: str | None = None) -> StorageProblem | None:
    """List, write, read and delete a small file in a folder or prefix; returns what is wrong, or None.

    ``others`` is a file that somebody else wrote there, which must be visible.
    """
    probe, content = f".glscl-{uuid.uuid4().hex}", uuid.uuid4().bytes
    where, step = storage.join(uri, probe), "list"
    try:
        storage.list_names(uri)
        if others and not storage.exists(others):
            knob = "--storage: s3:// or a file system that all nodes mount"
            return StorageProblem("what the driver wrote there is not seen", knob)
        step = "write"
        storage.write_bytes(where, content)
        step = "read"
        if storage.read_bytes(where) != content or probe not in storage.list_names(uri):
            knob = "--storage: a store that keeps what it is given"
            return StorageProblem("what was just written is not what is read or listed", knob)
        step = "delete"
        storage.remove(where)
    except StorageError as error:
        return _explain(error.__cause__ or error, step)
    except UserError:
        raise
    except Exception as error:  # file systems and S3 clients have no exception in common
        return _explain(error, step)
    return None


def _explain(error: BaseException, step: str) -> StorageProblem:
    """Tell apart what a user would mend in different places."""
    # Lazy, because it brings aiohttp, which a misspelt option need not wait for.
    from glscl.system.s3_errors import advise, code_of

    causes = list(_causes(error))
    code = next(filter(None, map(code_of, causes)), "")
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if any(isinstance(cause, NoCredentialsError | PartialCredentialsError) for cause in causes):
        return StorageProblem("no credentials", CREDENTIALS)
    if any(isinstance(cause, HTTPClientError | ConnectionError | TimeoutError) for cause in causes):
        return StorageProblem(f"unreachable ({type(error).__name__}: {shorten(error)})", NETWORK)
    if problem := _explain_known(code, numbers, error, step):
        return problem
    if refused := next((cause for cause in causes if isinstance(cause, ClientError)), None):
        return StorageProblem(f"cannot {step}: {shorten(refused)}", advise(refused, _REQUESTS[step]))
    return StorageProblem(f"cannot {step}: {type(error).__name__}: {shorten(error)}", "--storage")


def _explain_known(code: str, numbers: set[int | None], error: BaseException, step: str) -> StorageProblem | None:
    """Explain an object store's code or the system's numbers, if they say what only the user can mend."""
    if code in ("NoSuchBucket", "404") or (isinstance(error, FileNotFoundError) and code):
        return StorageProblem("no such bucket", "--storage")
    if code == "RequestTimeTooSkewed":
        return StorageProblem("refused: this machine's clock is wrong", "chrony or another NTP client")
    if code in _WRONG_CREDENTIALS:
        return StorageProblem(f"wrong credentials ({code})", CREDENTIALS)
    if numbers & {errno.ENOSPC, errno.EDQUOT}:
        return StorageProblem("full", "remove files there, or another --storage")
    if numbers & {errno.EROFS, errno.EACCES, errno.EPERM} or isinstance(error, PermissionError):
        read_only = "read-only: " if step in ("write", "delete") else ""
        knob = f"{_RIGHTS[step]} for this prefix, or the folder's owner, mode and mount"
        return StorageProblem(f"{read_only}may not {step}", knob)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def shorten(error: BaseException) -> str:
    """The text of an error on one line, cut where it is long; its type if it has no text."""
    return " ".join(str(error).split())[:300] or type(error).__name__
