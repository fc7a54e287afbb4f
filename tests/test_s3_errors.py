"""Which errors of a store may pass, and what is said of the others."""

from __future__ import annotations

import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    FlexibleChecksumError,
    NoCredentialsError,
    SSLError,
    UnauthorizedSSOTokenError,
)

from glscl.errors import StorageError
from glscl.system import s3, s3_errors, storage
from glscl.system.s3 import S3
from glscl.system.s3_errors import DAMAGED_TRIES, REQUEST_CHECKSUMS, RESPONSE_CHECKSUMS, advise, may_pass
from tests.fault_proxy import STORES, FaultProxy

BOTH = f"{REQUEST_CHECKSUMS}=when_required and {RESPONSE_CHECKSUMS}=when_required"


def _error(status: int, code: str = "", message: str = "") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, ""
    )


@pytest.mark.parametrize(
    "error",
    [
        *(_error(status) for status in (307, 408, 425, 429, 500, 502, 503, 504, 507, 509)),
        *(_error(400, code) for code in ("RequestTimeout", "ThrottlingException", "RequestLimitExceeded")),
        _error(409, "OperationAborted"),
        _error(503, "SlowDown"),
        _error(403, "RequestThrottled"),
        EndpointConnectionError(endpoint_url="http://x"),
        SSLError(endpoint_url="https://x", error="EOF occurred in violation of protocol"),
        ConnectionResetError("reset"),
        TimeoutError(),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert may_pass(error, 1)
    assert may_pass(error, 1000)


@pytest.mark.parametrize(
    ("error", "knob"),
    [
        (_error(301, "PermanentRedirect"), "AWS_DEFAULT_REGION"),
        (_error(301, "301"), "AWS_DEFAULT_REGION"),
        (_error(400, "AuthorizationHeaderMalformed", "expecting 'eu-west-1'"), "AWS_DEFAULT_REGION"),
        (_error(400, "IllegalLocationConstraintException"), "AWS_DEFAULT_REGION"),
        (_error(403, "RequestTimeTooSkewed"), "clock"),
        (_error(400, "ExpiredToken"), "AWS_SESSION_TOKEN"),
        (_error(400, "TokenRefreshRequired"), "AWS_SESSION_TOKEN"),
        (_error(400, "InvalidToken"), "AWS_SESSION_TOKEN"),
        (_error(400, "KeyTooLongError"), "--storage or --name"),
        (_error(403, "QuotaExceeded"), "free space"),
        (_error(405, "MethodNotAllowed"), "AWS_ENDPOINT_URL"),
        (_error(403, "AccessDenied"), "its policy"),
        (_error(403, "InvalidAccessKeyId"), "AWS_ACCESS_KEY_ID"),
        (_error(403, "403"), "its policy"),
        (_error(404, "NoSuchBucket"), "the bucket's name"),
        (_error(412, "PreconditionFailed"), "its policy"),
        (_error(501, "NotImplemented"), BOTH),
        (_error(501, "501"), BOTH),
        (_error(505, "HTTPVersionNotSupported"), "its policy"),
        (_error(411, "MissingContentLength"), BOTH),
        (_error(400, "MissingContentMD5"), BOTH),
        (_error(400, "InvalidRequest", "Missing required header for this request: Content-MD5"), BOTH),
        (_error(400, "InvalidArgument", "Unsupported header 'x-amz-sdk-checksum-algorithm'"), BOTH),
        (_error(400, "InvalidArgument", "aws-chunked encoding is not supported"), BOTH),
        (NoCredentialsError(), "AWS_ACCESS_KEY_ID"),
        (UnauthorizedSSOTokenError(), "AWS_PROFILE"),
        (SSLError(endpoint_url="https://x", error="[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), "AWS_CA_BUNDLE"),
        (SSLError(endpoint_url="https://x", error="[SSL: WRONG_VERSION_NUMBER]"), "http:// or https://"),
    ],
)
def test_what_will_not_pass_names_its_knob(error: Exception, knob: str) -> None:
    assert not may_pass(error, 1)
    assert knob in advise(error, "list_objects_v2")


@pytest.mark.parametrize("code", ["BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"])
def test_damage_on_the_way_is_no_damage_for_ever(code: str) -> None:
    error = _error(400, code)
    assert may_pass(error, DAMAGED_TRIES - 1)
    assert not may_pass(error, DAMAGED_TRIES)
    assert BOTH in advise(error, "put_object")
    answer = FlexibleChecksumError(error_msg="expected crc32")
    assert may_pass(answer, DAMAGED_TRIES - 1)
    assert not may_pass(answer, DAMAGED_TRIES)
    assert f"{RESPONSE_CHECKSUMS}=when_required" in advise(answer, "get_object")


def test_checksums_are_suspected_where_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (_error(403, "SignatureDoesNotMatch"), _error(400, "InvalidArgument", "Invalid argument.")):
        assert BOTH in advise(error, "put_object")
        assert BOTH not in advise(error, "get_object")
    assert "AWS_PROFILE" in advise(_error(403, "SignatureDoesNotMatch"), "put_object")
    assert BOTH in s3_errors.advise_on_checksums(_error(500, "InternalError"), "upload_part")
    assert s3_errors.advise_on_checksums(_error(500, "InternalError", "checksum store is down"), "get_object") == ""
    assert s3_errors.advise_on_checksums(_error(403, "AccessDenied"), "put_object") == ""
    assert s3_errors.advise_on_checksums(ConnectionResetError(), "put_object") == ""
    monkeypatch.setenv(REQUEST_CHECKSUMS, "when_required")
    assert BOTH not in advise(_error(501, "NotImplemented"), "put_object")


@pytest.mark.parametrize("store", STORES)
def test_a_store_without_checksums(store: str, bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told apart at once, and works with the knob: writing, deleting, as Ray does it."""
    monkeypatch.setattr(s3, "FIRST_PAUSE_S", 0.001)
    storage.exists(f"{bucket}/x")  # it has answered
    proxy.store = store
    before = proxy.requests
    if store == "breaks":
        monkeypatch.setenv(s3.DEADLINE, "0")
    with pytest.raises(StorageError, match=f"s3://data/run/x: put object.*{BOTH}$"):
        storage.write_bytes(f"{bucket}/run/x", b"1")
    assert proxy.requests - before == (DAMAGED_TRIES if store == "mismatch" else 1)
    assert "refused" in proxy.injected
    monkeypatch.setenv(REQUEST_CHECKSUMS, "when_required")
    monkeypatch.setenv(RESPONSE_CHECKSUMS, "when_required")
    S3.clear_instance_cache()
    refused = proxy.injected["refused"]
    storage.write_bytes(f"{bucket}/run/x", b"1")
    assert storage.read_bytes(f"{bucket}/run/x") == b"1"
    fs, path = storage.filesystem(f"{bucket}/run/big")
    fs.pipe_file(path, bytes(11 << 20), chunksize=5 << 20)
    storage.remove_folder(f"{bucket}/run")
    assert not storage.exists(f"{bucket}/run")
    assert proxy.injected["refused"] == refused
