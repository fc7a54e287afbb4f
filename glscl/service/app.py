"""The ASGI application: the API, the page, health and metrics, behind the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from glscl.service.api import CLIP, Api
from glscl.service.guard import Guard
from glscl.service.library import Library
from glscl.service.metrics import CONTENT_TYPE, Meters
from glscl.service.options import Limits
from glscl.service.page import add_page
from glscl.service.refusals import Refusal, Responses, answer_problem, describe_problems
from glscl.service.schemas import Health
from glscl.version import __version__


@dataclass(slots=True)
class State:
    """Whether the libraries are open, and the server has not begun to end."""

    ready: bool = False


def create_app(
    libraries: Sequence[Library],
    limits: Limits,
    meters: Meters,
    names: frozenset[str] | None,
    write_line: Callable[[str], None],
) -> ASGIApp:
    """The service for some libraries, which run from its start to its end.

    Args:
        libraries: the first one answers where none is named.
        limits: of the server.
        meters: what the libraries count in, too.
        names: see `Guard`.
        write_line: see `Guard`.
    """
    state = State()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for library in libraries:
                await stack.enter_async_context(library.running())
            state.ready = True
            yield
            state.ready = False

    app = FastAPI(
        title="glscl",
        version=__version__,
        summary="Search in videos, down to the moment.",
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts of other hosts
        redoc_url=None,
    )
    app.include_router(Api({library.name: library for library in libraries}, limits).router())
    _add_health(app, state, meters)
    add_page(app)
    app.add_exception_handler(HTTPException, _answer_refusal)
    app.add_exception_handler(RequestValidationError, _answer_mistake)
    app.add_exception_handler(Exception, _answer_error)
    return Guard(app, limits, names, meters, write_line, frozenset({CLIP}))


def _add_health(app: FastAPI, state: State, meters: Meters) -> None:
    async def health() -> Health:
        """The process lives."""
        return Health(status="ok")

    async def ready() -> Health:
        """The indexes are open: questions are answered."""
        if not state.ready:
            raise Refusal(503, "the indexes are not open")
        return Health(status="ok")

    async def metrics() -> Response:
        """What the server counts, in Prometheus' text format."""
        return Response(meters.write(), media_type=CONTENT_TYPE)

    app.add_api_route("/health", health, responses=describe_problems())
    app.add_api_route("/ready", ready, responses=describe_problems())
    text: Responses = {200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}}
    app.add_api_route("/metrics", metrics, response_class=Response, responses={**describe_problems(), **text})


async def _answer_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = str(error.detail or HTTPStatus(error.status_code).phrase)
    return answer_problem(error.status_code, reason, dict(error.headers or {}))


async def _answer_mistake(_: Request, error: Exception) -> Response:
    """The first mistake of a request, in one line."""
    assert isinstance(error, RequestValidationError)
    return answer_problem(422, _describe_mistakes(error.errors()))


def _describe_mistakes(errors: Iterable[object]) -> str:
    for first in errors:
        assert isinstance(first, dict)
        if first["type"] == "json_invalid":
            return f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][1]}"
        place = [str(step) for step in first["loc"][1:]]
        return f"{'.'.join(place)[:200] or first['loc'][0]}: {first['msg']}"
    return "not as the API describes it"


async def _answer_error(_: Request, error: Exception) -> Response:
    """A fault of the server: uvicorn's log has its traceback, the client nothing of it."""
    return answer_problem(500, "the server has made a mistake; its log says which")
