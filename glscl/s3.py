"""S3 with one policy of retries, whoever asks: `glscl.storage`, Ray Train, DataLoader processes.

What may pass (server errors, slow-down, resets, time-outs, answers cut short) is tried again with exponential back-off
and full jitter until ``GLSCL_STORAGE_DEADLINE_S``. What will not pass (no permission, no such bucket, bad signature) is
said at once. Either ends in a `StorageError`. What is not there is a FileNotFoundError, as on a disk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from typing import Any

import aiohttp
import s3fs
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper

from glscl.errors import StorageError, UserError
from glscl.storage import first_answer_due

DEADLINE = "GLSCL_STORAGE_DEADLINE_S"
"""Environment variable: seconds for which one request is tried again."""
DEFAULT_DEADLINE_S = 300.0
FIRST_CONTACT_S = 5.0
"""Seconds that a command gives an endpoint that has not answered it yet."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 20.0
PART_BYTES = 8 << 20
SAY_EVERY_S = 30.0
"""Seconds between two lines about a request that is still being tried."""

NO_ANSWER = (
    HTTPClientError,
    BotoConnectionError,
    IncompleteReadError,
    ResponseParserError,  # an answer cut short in the middle of its XML
    CredentialRetrievalError,
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)
PASSING_CODES = {
    "BadDigest",  # the body changed on its way
    "IncompleteBody",
    "InternalError",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}
CREDENTIALS = "check AWS_PROFILE or AWS_ACCESS_KEY_ID, the bucket's name and its policy"

_logger = logging.getLogger(__name__)
_jitter = random.SystemRandom()  # no part of anybody's seed


class Body:
    """An answer's body, read and measured."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        """All of it."""
        return self._data

    def close(self) -> None:
        """Nothing is open."""


class S3(s3fs.S3FileSystem):  # type: ignore[misc]
    """s3fs with the policy of this module, applied where every one of its requests passes."""

    retries = 1  # s3fs's own, which know neither a deadline nor a server error

    async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
        began = said = time.monotonic()
        attempt = 0
        while True:
            try:
                answer = await self._once(method, *arguments, **options)
            except Exception as error:
                cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
                if isinstance(cause, ClientError):
                    first_answer_due.clear()
                if method == "complete_multipart_upload" and attempt and _code(cause) == "NoSuchUpload":
                    # An earlier attempt went through, and its answer was lost.
                    return await self._call_s3("head_object", Bucket=options["Bucket"], Key=options["Key"])
                if isinstance(error, FileNotFoundError) and _code(cause) != "NoSuchBucket":
                    raise
                where, what = _uri(options), method.replace("_", " ")
                if method == "abort_multipart_upload":  # tidying up after a failure that is being reported
                    _logger.warning(f"{where}: parts of an unfinished upload stay behind ({_words(cause)})")
                    return {}
                if not _may_pass(cause):
                    if isinstance(cause, ClientError | BotoCoreError):
                        raise StorageError(f"{where}: {what}: {_words(cause)}; {CREDENTIALS}") from error
                    raise
                attempt += 1
                now = time.monotonic()
                left = began + _patience() - now
                if left <= 0:
                    raise StorageError(
                        f"{where}: {what} failed for {now - began:.0f} s, {attempt} times; the last time: "
                        f"{_words(cause)}; {_advice()}"
                    ) from error
                if now - said > SAY_EVERY_S:
                    said = now
                    _logger.warning(f"{where}: {what} has failed for {now - began:.0f} s ({_words(cause)}); trying on")
                await asyncio.sleep(min(left, _jitter.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt))))
            else:
                first_answer_due.clear()
                return answer

    async def _once(self, method: str, *arguments: Any, **options: Any) -> Any:
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
        if errors := method == "delete_objects" and answer.get("Errors"):
            raise ClientError({"Error": errors[0]}, method)
        return answer

    call_s3 = sync_wrapper(_call_s3)

    async def _mkdir(self, path: str, *arguments: Any, **options: Any) -> None:
        if not self.split_path(path)[1]:
            await super()._mkdir(path, *arguments, **options)
        # S3 has no folders. s3fs would look for the bucket, and make one where it may not look.

    async def _get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        """In parts, so that one of them is what is tried again and held in memory."""
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


def _advice() -> str:
    if first_answer_due.is_set():
        return "check AWS_ENDPOINT_URL and the network"
    return f"{DEADLINE} ({_patience():g}) says for how long one request is tried"


def _may_pass(error: BaseException) -> bool:
    if not isinstance(error, ClientError):
        return isinstance(error, NO_ANSWER)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return _code(error) in PASSING_CODES or status in (408, 429) or (status >= 500 and status != 501)


def _code(error: BaseException) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ClientError) else f"{type(error).__name__}: {text}"


def _uri(options: dict[str, Any]) -> str:
    parts = [options.get("Bucket"), options.get("Key") or options.get("Prefix")]
    return "s3://" + "/".join(str(part) for part in parts if part).rstrip("/")
