"""S3 client with one policy of retries, for `glscl.system.storage`, Ray Train and DataLoader processes.

A passing error (server errors, slow-down, resets, time-outs, answers cut short) is tried again with exponential
back-off and full jitter until ``GLSCL_STORAGE_DEADLINE_S``. A permanent error (no permission, no such bucket, bad
signature, a request that the store does not know) is raised at once, with the knob (`glscl.system.s3_errors`). Both
end in a `StorageError`. A missing object is a FileNotFoundError, as on a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import random
import time
from collections.abc import Mapping
from typing import Any

import s3fs
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.asyn import sync_wrapper

from glscl.errors import StorageError, UserError
from glscl.system.environment import first_answer_due
from glscl.system.s3_errors import advise, advise_on_checksums, code_of, describe_error, may_pass

DEADLINE = "GLSCL_STORAGE_DEADLINE_S"  # environment variable: seconds for which one request is tried again
DEFAULT_DEADLINE_S = 300.0
FIRST_CONTACT_S = 5.0  # seconds that a command gives an endpoint that has not answered it yet
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 20.0
PART_BYTES = 8 << 20
DELETIONS = 16  # objects that are deleted at once
SAY_EVERY_S = 30.0  # seconds between two lines about a request that is still being tried

_logger = logging.getLogger(__name__)
_jitter = random.SystemRandom()  # no part of anybody's seed


class Body(io.BytesIO):
    """The body of an answer, already read."""

    async def read(self) -> bytes:  # type: ignore[override]
        """The whole body."""
        return self.getvalue()


class S3(s3fs.S3FileSystem):  # type: ignore[misc]
    """s3fs with the policy of this module, in the one method that every request passes.

    A name is a key and nothing else. s3fs would take ``*``, ``?`` and ``[`` for patterns, which may match objects of
    other people, and ``?versionId=`` for a version.
    """

    retries = 1  # s3fs's own, which know neither a deadline nor a server error

    async def _call_s3(self, method: str, *arguments: object, **options: object) -> Any:
        began = last_warning = time.monotonic()
        attempt = 0
        while True:
            try:
                return await self._once(method, *arguments, **options)
            except Exception as error:
                cause = _cause_of(error)
                if method == "complete_multipart_upload" and attempt and code_of(cause) == "NoSuchUpload":
                    # An earlier attempt went through, and its answer was lost.
                    return await self._call_s3("head_object", Bucket=options["Bucket"], Key=options["Key"])
                if isinstance(error, FileNotFoundError) and code_of(cause) != "NoSuchBucket":
                    raise
                where, what = _uri(options), method.replace("_", " ")
                if method == "abort_multipart_upload":  # tidying up after a failure that is being reported
                    _logger.warning(f"{where}: parts of an unfinished upload stay behind ({describe_error(cause)})")
                    return {}
                attempt += 1
                if not may_pass(cause, attempt) and not isinstance(cause, ClientError | BotoCoreError):
                    raise
                now = time.monotonic()
                left = began + _patience() - now
                if reason := _reason_to_end(cause, method, attempt, now - began, left):
                    raise StorageError(f"{where}: {what}{reason}") from error
                if now - last_warning > SAY_EVERY_S:
                    last_warning = now
                    _logger.warning(
                        f"{where}: {what} has failed for {now - began:.0f} s ({describe_error(cause)}); trying on"
                    )
                await asyncio.sleep(min(left, _jitter.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt))))

    async def _once(self, method: str, *arguments: object, **options: object) -> Any:
        answer = await super()._call_s3(method, *arguments, **options)
        if method == "get_object":  # the body is part of what is tried again
            body = answer["Body"]
            try:
                data = await body.read()
            finally:
                body.close()
            if len(data) != answer["ContentLength"]:
                raise ConnectionError(f"{len(data)} of {answer['ContentLength']} bytes arrived")
            answer["Body"] = Body(data)
        first_answer_due.clear()
        return answer

    call_s3 = sync_wrapper(_call_s3)

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Bucket and key, as they stand, and no version."""
        bare = self._strip_protocol(path).lstrip("/")
        if "/" not in bare:
            return bare, "", None
        bucket, key = self._find_bucket_key(bare)
        return bucket, key + path[len(path.rstrip("/")) :], None

    async def _expand_path(
        self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None, assume_literal: bool = True
    ) -> Any:
        return await super()._expand_path(path, recursive, maxdepth, assume_literal=True)

    async def _lsdir(
        self, path: str, *_: object, max_items: int | None = None, delimiter: str = "/", prefix: str = "", **__: object
    ) -> list[dict[str, object]]:
        """List a folder anew. s3fs itself leaves out a key's first slashes, and lists another folder."""
        bucket, key = self.split_path(path)[:2]
        below = f"{key}/" if key else ""
        entries = [entry async for entry in self._iterdir(bucket, max_items, delimiter, below + prefix)]
        return sorted(entries, key=lambda entry: str(entry["name"]))

    async def _rm(self, path: str | list[str], recursive: bool = False, **options: object) -> None:
        """Delete the object of this very name or, recursively, everything under it.

        One request each: many stores refuse to delete several at once where AWS's client sends no Content-MD5.
        """
        for one in [path] if isinstance(path, str) else path:
            bucket, key, _ = self.split_path(one)
            if not key:
                raise ValueError(f"s3://{bucket}: a whole bucket is not deleted")
            names = [one]
            if recursive:
                names = [str(entry["name"]) for entry in await self._lsdir(one.rstrip("/"), delimiter="")]
                if not names:
                    raise FileNotFoundError(one)
            for first in range(0, len(names), DELETIONS):
                await asyncio.gather(*map(self._delete, names[first : first + DELETIONS]))

    async def _delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            await self._rm_file(path)

    # S3 has no folders: s3fs would look for the bucket to put one into, and make a bucket where it may not look.
    async def _mkdir(self, path: str, *arguments: object, **options: object) -> None:
        if not self.split_path(path)[1]:
            await super()._mkdir(path, *arguments, **options)

    async def _get_file(self, rpath: str, lpath: str, **options: object) -> None:
        """Download in parts: one part is held in memory, and tried again."""
        if os.path.isdir(lpath):
            return
        bucket, key, version = self.split_path(rpath)
        info = await self._info(rpath)
        if info["type"] != "file":
            raise FileNotFoundError(rpath)
        await self._download_file_part_concurrent(bucket, key, lpath, info["size"], PART_BYTES, version_id=version)


def _patience() -> float:
    if first_answer_due.is_set():
        return FIRST_CONTACT_S
    text = os.environ.get(DEADLINE, "")
    try:
        return float(text) if text else DEFAULT_DEADLINE_S
    except ValueError:
        raise UserError(f"{DEADLINE}={text}: not a number of seconds") from None


def _advise_on_patience() -> str:
    if first_answer_due.is_set():
        return "check AWS_ENDPOINT_URL and the network"
    return f"{DEADLINE} ({_patience():g}) says for how long one request is tried"


def _uri(options: Mapping[str, object]) -> str:
    names = [options.get("Bucket"), options.get("Key") or options.get("Prefix")]
    return "s3://" + "/".join(str(name) for name in names if name).rstrip("/")


def _cause_of(error: Exception) -> BaseException:
    """The store's own error behind s3fs's, which is also its first answer; else the error itself."""
    cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
    if isinstance(cause, ClientError):
        first_answer_due.clear()
    return cause


def _reason_to_end(cause: BaseException, method: str, attempt: int, seconds: float, left_s: float) -> str:
    """Why a request is not tried again, and what to change; empty if it is."""
    if not may_pass(cause, attempt):
        return f": {describe_error(cause)}; {advise(cause, method)}"
    if left_s <= 0:
        return (
            f" failed for {seconds:.0f} s, {attempt} times; the last time: {describe_error(cause)}; "
            f"{advise_on_checksums(cause, method) or _advise_on_patience()}"
        )
    return ""
