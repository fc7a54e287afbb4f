"""Answers that are not what was asked for: their status, their reason, and how the API describes them."""

from __future__ import annotations

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

RETRY_S = 1
"""Seconds after which a client may ask again."""


class Problem(BaseModel):
    """Why a request was not done."""

    status: int = Field(description="The HTTP status.")
    reason: str = Field(description="What is wrong, and what to change.")


class Refusal(HTTPException):
    """Ends a request with a status and a reason; 429 and 503 say when to ask again."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        retry = {"Retry-After": str(RETRY_S)} if status in (429, 503) else {}
        super().__init__(status, reason, headers={**retry, **(headers or {})})


def answer_problem(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response that says so."""
    return JSONResponse(Problem(status=status, reason=reason).model_dump(), status, headers)


_MEANINGS = {
    400: "No sound HTTP request or form.",
    403: "Sent by a page of another site.",
    404: "No such index, or no such video in it.",
    408: "The body did not arrive in time.",
    413: "Larger than the server takes.",
    415: "Of a type that the server does not take.",
    416: "Not a part of the file.",
    421: "Asked for under a name that is not this server's.",
    422: "Not as the API describes it, or a clip that cannot be used.",
    429: "Too many clips of one client at once.",
    503: "Too busy, or it took too long; ask again after `Retry-After` seconds.",
}
EVERYWHERE = (400, 403, 408, 413, 421, 503)
"""Statuses with which any request may be refused."""

Responses = dict[int | str, dict[str, object]]


def describe_problems(*statuses: int) -> Responses:
    """What a route's description says of these statuses, and of those with which any request may be refused."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in sorted({*statuses, *EVERYWHERE})}
