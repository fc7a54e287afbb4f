"""The page: three files of this package, sent as they are, in the colours of every other page of the house."""

from __future__ import annotations

import hashlib
from functools import partial
from importlib.resources import files

from fastapi import FastAPI, Request, Response

from glscl.reporting.page import environment

PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("service.css.j2", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/results.js": ("results.js", "text/javascript; charset=utf-8"),
    "/player.js": ("player.js", "text/javascript; charset=utf-8"),
    "/theme.js": ("theme.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Addresses, and what is there."""


def add_page(app: FastAPI) -> None:
    """Add the page's addresses to the service. The style sheet alone is a template."""
    for address, (name, kind) in PAGE.items():
        if name.endswith(".j2"):
            content = environment("glscl.service").get_template(name).render(narrow="screen").encode()
        else:
            content = files("glscl.service").joinpath("templates", name).read_bytes()
        app.add_api_route(address, partial(_send, content, kind), include_in_schema=False, response_class=Response)


async def _send(content: bytes, kind: str, request: Request) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)
