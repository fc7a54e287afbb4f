"""Meaning of an S3 store's errors: whether a request may succeed later, and what a user can change."""

from __future__ import annotations

import os
import re

import aiohttp
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError

REQUEST_CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"
"""Environment variable of AWS's client: ``when_required`` leaves out the CRC32 that it adds since botocore 1.36."""
RESPONSE_CHECKSUMS = "AWS_RESPONSE_CHECKSUM_VALIDATION"

NO_ANSWER = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    ResponseParserError,  # an answer cut short in the middle of its XML
    boto.CredentialRetrievalError,
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)
PASSING_CODES = {
    *("BandwidthLimitExceeded", "InternalError", "LimitExceededException", "OperationAborted"),
    *("PriorRequestNotComplete", "ProvisionedThroughputExceededException", "RequestLimitExceeded"),
    *("RequestThrottled", "RequestThrottledException", "RequestTimeout", "RequestTimeoutException"),
    *("ServiceUnavailable", "SlowDown", "TemporaryRedirect", "ThrottledException", "Throttling", "ThrottlingException"),
    *("TooManyRequests", "TooManyRequestsException"),
}
"""Those of botocore's retry handlers, whatever status they come with, and S3's own."""
PASSING_STATUS = {307, 408, 425, 429}
PERMANENT_STATUS = {501, 505}  # of the server's errors: it does not know how, and will not learn it
DAMAGED_CODES = {"BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
"""The body is not what its checksum says: it changed on its way, or the store does not read the client's form."""
DAMAGED_TRIES = 5  # after so many the way is not to blame

WRITES = {"put_object", "upload_part", "create_multipart_upload", "complete_multipart_upload"}
"""Requests that carry the client's checksums."""
_VAGUE = {"400", "InvalidArgument", "InvalidRequest", "NotImplemented", "SignatureDoesNotMatch"}
_ABOUT_CHECKSUMS = re.compile("checksum|crc32|sha256|md5|digest|trailer|chunked", re.IGNORECASE)
_WRONG_TLS = re.compile("certificate|wrong.version|unknown.protocol", re.IGNORECASE)

CREDENTIALS = "check AWS_PROFILE or AWS_ACCESS_KEY_ID, the bucket's name and its policy"
_RENEW = "renew the credentials (AWS_SESSION_TOKEN, or `aws sso login`), then give the same command again"
_REGION = "the bucket is elsewhere: set AWS_DEFAULT_REGION to its region, and AWS_ENDPOINT_URL to one of that region"
_SPACE = "free space there or raise the quota, then give the same command again"
_ENDPOINT = "check AWS_ENDPOINT_URL: it must be the address of the S3 interface, not of a console or web page"
_ADVICE = {
    "RequestTimeTooSkewed": "set this machine's clock (chrony or another NTP client)",
    "KeyTooLongError": "shorten --storage or --name",
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"), _RENEW),
    **dict.fromkeys(("301", "AuthorizationHeaderMalformed", "PermanentRedirect"), _REGION),
    "IllegalLocationConstraintException": _REGION,
    **dict.fromkeys(("EntityTooLarge", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded"), _SPACE),
    **dict.fromkeys(("405", "MethodNotAllowed"), _ENDPOINT),
}


def may_pass(error: BaseException, attempt: int) -> bool:
    """Whether a request may succeed later that has failed for the ``attempt``-th time with this error."""
    if isinstance(error, boto.FlexibleChecksumError) or code_of(error) in DAMAGED_CODES:
        return attempt < DAMAGED_TRIES
    if isinstance(error, boto.SSLError) and _WRONG_TLS.search(str(error)):
        return False
    if not isinstance(error, boto.ClientError):
        return isinstance(error, NO_ANSWER)
    status = _status(error)
    return (
        code_of(error) in PASSING_CODES
        or status in PASSING_STATUS
        or (status >= 500 and status not in PERMANENT_STATUS)
    )


def advise(error: BaseException, method: str) -> str:
    """What a user can change after the client's ``method`` (``put_object``) was refused."""
    if isinstance(error, boto.SSLError):
        return "check AWS_ENDPOINT_URL (http:// or https://) and AWS_CA_BUNDLE, the file of certificates to trust"
    return advise_on_checksums(error, method) or _ADVICE.get(code_of(error), CREDENTIALS)


def advise_on_checksums(error: BaseException, method: str) -> str:
    """Which variables to set, if the store may have refused the checksums of AWS's client; else an empty string."""
    if isinstance(error, boto.FlexibleChecksumError):
        return f"if that comes again, the store's checksums are of another kind: set {RESPONSE_CHECKSUMS}=when_required"
    if os.environ.get(REQUEST_CHECKSUMS, "").lower() == "when_required" or not isinstance(error, boto.ClientError):
        return ""
    code, status = code_of(error), _status(error)
    knobs = f"set {REQUEST_CHECKSUMS}=when_required and {RESPONSE_CHECKSUMS}=when_required"
    if (
        code in DAMAGED_CODES
        or status in (411, 501)
        or (status < 500 and _ABOUT_CHECKSUMS.search(describe_error(error)))
    ):
        return f"the store may not know the checksums that AWS's client adds: {knobs}"
    if method in WRITES and (code in _VAGUE or status >= 500):
        other = CREDENTIALS if code == "SignatureDoesNotMatch" else "see what the store says"
        return f"{other}; or, where only writing fails, it does not know the checksums that AWS's client adds: {knobs}"
    return ""


def code_of(error: BaseException) -> str:
    """The store's code of an error; empty if it has none."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def describe_error(error: BaseException) -> str:
    """An error on one line."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, boto.ClientError) else f"{type(error).__name__}: {text}"


def _status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
