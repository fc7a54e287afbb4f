"""What stands in front of every request: whose it may be, how large, how long it may take; and its line in the log.

It is plain ASGI, outside the routes, so that nothing of a refused body is read into memory.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from glscl.errors import printable
from glscl.service.metrics import Meters
from glscl.service.options import Limits
from glscl.service.refusals import Refusal, answer_problem

SMALL_BODY = 64 << 10
"""Largest body in bytes where no clip is sent."""
FORM = 64 << 10
"""Bytes that the form around a clip may take."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "media-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def is_loopback(host: str) -> bool:
    """Whether a server that listens at this address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_of(host: str, allowed: Iterable[str]) -> frozenset[str] | None:
    """The names under which a server may be asked, in lower case; None: any."""
    names = frozenset(name.lower() for name in allowed)
    if not names and not is_loopback(host):
        return None
    return names | set(LOOPBACK_NAMES) | ({host.lower()} if is_loopback(host) else set())


@dataclass(slots=True)
class _Exchange:
    """One request and what has become of it."""

    scope: Scope
    number: str = field(default_factory=lambda: secrets.token_hex(4))
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    sent: int = 0

    @property
    def route(self) -> str:
        """The route's path, as the code has it; the path itself is the client's word."""
        path: str = getattr(self.scope.get("route"), "path", "other")
        return path


class Guard:
    """The outermost layer of the service.

    Args:
        app: the routes.
        limits: of the server.
        names: under which the server may be asked; None: any. A page of another site whose name was rebound to this
            machine asks under its own.
        meters: what is counted.
        write_line: takes a line of the log.
        uploads: paths of routes that take a clip.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        names: frozenset[str] | None,
        meters: Meters,
        write_line: Callable[[str], None],
        uploads: frozenset[str],
    ) -> None:
        self._app, self._limits, self._names = app, limits, names
        self._meters, self._write_line, self._uploads = meters, write_line, uploads
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket
            await send({"type": "websocket.close", "code": 1000})
            return
        exchange = _Exchange(scope)
        self._active += 1
        self._meters.active.set(self._active)
        try:
            await self._answer(exchange, receive, send)
        finally:
            self._active -= 1
            self._meters.active.set(self._active)
            self._record(exchange)

    async def _answer(self, exchange: _Exchange, receive: Receive, send: Send) -> None:
        scope, headers = exchange.scope, Headers(scope=exchange.scope)
        sends_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        body = _Body(receive, self._most_bytes(scope["path"]), self._limits.timeout_s)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                found = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    found[name] = value
                found["X-Request-Id"] = exchange.number
                if sends_body and not body.whole:  # what is left of it is not read
                    found["Connection"] = "close"
            elif message["type"] == "http.response.body":
                exchange.sent += len(message.get("body", b""))
            async with asyncio.timeout(self._limits.timeout_s):  # who reads no further frees the place
                await send(message)

        try:
            self._check(headers, body.most)
            await self._app(scope, body.receive, send_guarded)
        except Refusal as refusal:
            if exchange.status:
                raise
            answer = answer_problem(refusal.status_code, refusal.detail, dict(refusal.headers or {}))
            await answer(scope, receive, send_guarded)
        except TimeoutError:
            if not exchange.status:
                raise

    def _most_bytes(self, path: str) -> int:
        return (self._limits.upload_mb << 20) + FORM if path in self._uploads else SMALL_BODY

    def _check(self, headers: Headers, most: int) -> None:
        """Refuse what can be refused before anything is read."""
        host = headers.get("host", "")
        if self._names is not None and _name_in(host) not in self._names:
            raise Refusal(421, "asked for under a name that is not this server's; --allowed-hosts adds names")
        origin = headers.get("origin")
        if headers.get("sec-fetch-site") == "cross-site" or (origin and urlsplit(origin).netloc != host):
            raise Refusal(403, "sent by a page of another site")
        if self._active > self._limits.requests:
            raise Refusal(503, f"{self._limits.requests} requests are being answered; ask again in a moment")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise Refusal(400, "Content-Length is no number")
        if int(length[:20]) > most:
            raise Refusal(413, _too_large(most))

    def _record(self, exchange: _Exchange) -> None:
        seconds = time.perf_counter() - exchange.began
        self._meters.requests.labels(exchange.route, str(exchange.status)).inc()
        self._meters.seconds.labels(exchange.route).observe(seconds)
        self._meters.sent.labels(exchange.route).inc(exchange.sent)
        client, path = exchange.scope.get("client"), exchange.scope["path"][:200]
        path = path if printable(path) else ascii(path)[1:-1]
        self._write_line(
            f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {client[0] if client else '-'} {exchange.scope['method']} {path} "
            f"{exchange.status or 'unanswered'} {exchange.sent} bytes {1000 * seconds:.1f} ms {exchange.number}"
        )


class _Body:
    """The body of a request as it arrives, within its size and its time.

    Attributes:
        most: bytes that it may have.
        whole: whether all of it has arrived.
    """

    def __init__(self, receive: Receive, most: int, timeout_s: float) -> None:
        self._receive, self.most, self._read = receive, most, 0
        self._last = time.monotonic() + timeout_s
        self.whole = False

    async def receive(self) -> Message:
        """The next piece. Raises `Refusal`: too many bytes, or too late."""
        if self.whole:
            return await self._receive()  # waits for the client to leave
        try:
            async with asyncio.timeout(max(0.0, self._last - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(408, "the body did not arrive in time") from None
        self._read += len(message.get("body", b""))
        if self._read > self.most:
            raise Refusal(413, _too_large(self.most))
        self.whole = not message.get("more_body", False)
        return message


def _too_large(most: int) -> str:
    return f"the body has more than {most} bytes" if most <= SMALL_BODY else f"more than {(most - FORM) >> 20} MB"


def _name_in(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
