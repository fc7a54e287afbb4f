"""A cluster's dashboard: its address, its token, and the client that submits jobs through it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from glscl.errors import UserError
from glscl.system.environment import TOKEN_KNOB

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT = "http://127.0.0.1:8265"
VARIABLE = "RAY_API_SERVER_ADDRESS"
TIMEOUT_S = 10.0
_REFUSALS = {
    "Authentication required": "the cluster demands a token and got none",
    "Authentication failed": "the cluster refuses this token",
}
"""How Ray's errors begin, and what they mean, without the server's words and without the token."""


def dashboard_address(given: str) -> str:
    """The dashboard's URL: as given, by Ray's variables, or this machine's. Raises `UserError`: not http:// or https://."""
    named = given or os.environ.get(VARIABLE) or os.environ.get("RAY_ADDRESS") or DEFAULT
    url = urlsplit(named)
    if url.username or url.password:  # it would be printed, logged and kept in the shell's history
        raise UserError(f"--address: credentials in an address are refused; for Ray's token, {TOKEN_KNOB}")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(f"{named}: not a dashboard's address; pass --address http://HEAD:8265 or set {VARIABLE}")
    return named.rstrip("/")


def demands_token(url: str) -> bool:
    """Whether the dashboard refuses a request without a token. Raises `UserError`: nobody answers."""
    import requests  # type: ignore[import-untyped]  # comes with ray[default]

    try:
        status: int = requests.get(f"{url}/api/version", timeout=TIMEOUT_S).status_code
    except requests.RequestException as error:
        raise UserError(
            f"no Ray dashboard answers at {url} ({type(error).__name__}): pass --address http://HEAD:8265 or set "
            f"{VARIABLE}, through `ray dashboard`, `kubectl port-forward` or an SSH tunnel"
        ) from None
    return status in (401, 403)


def connect(url: str) -> JobSubmissionClient:
    """A client that the dashboard has accepted. Raises `UserError`: unreachable, token, or no Ray dashboard."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    demands_token(url)  # Ray's client has no time limit, so somebody must have answered before it is asked
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = url  # Ray's client prefers the environment to its own argument
    try:
        return JobSubmissionClient(url)
    except AuthenticationError as error:
        known = (text for start, text in _REFUSALS.items() if error.message.startswith(start))
        problem = next(known, "RAY_AUTH_MODE=token, but no token is there")
        raise UserError(f"{url}: {problem}; {TOKEN_KNOB}") from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # requests' exceptions are OSErrors
        raise UserError(
            f"{url}: not a Ray dashboard ({type(error).__name__}: {str(error)[:200]}); pass --address http://HEAD:8265"
        ) from None
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
