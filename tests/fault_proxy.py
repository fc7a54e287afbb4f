"""An HTTP proxy that misbehaves, in front of a storage server.

    python -m tests.fault_proxy --upstream http://127.0.0.1:9000 --port 0 --fail 0.2 --kinds reset,truncate --seed 1

prints ``listening on http://127.0.0.1:PORT`` and serves until it is killed (``kill -9`` and a new start on the same
port are part of its use). ``GET /-/counts`` answers what it did so far, as JSON. In a process of one's own::

    with FaultProxy(upstream, kinds=("error500",), rate=0.2, seed=1) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        ...
    assert proxy.injected["error500"]

Requests are forwarded as they are, the Host header included, which signatures cover. Kinds of fault:

- ``error500``, ``error503``, ``slow_down``: S3's InternalError, ServiceUnavailable and SlowDown; nothing is forwarded.
- ``reset``: the connection is reset before the request is forwarded, or after it was, in the middle of the answer.
- ``truncate``: the answer's body ends after half of what its Content-Length says (answers without a body pass).
- ``stale_list``: a listing is answered as it was at some earlier time (the first of each passes).

Beside faults it can be another kind of store (``--store``, `FaultProxy.store`): one that knows nothing of the checksums
that AWS's client adds, refuses requests that carry them in one of the ways of `STORES`, and wants Content-MD5 where
several objects are deleted at once.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import signal
import socket
import struct
import threading
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

KINDS = ("error500", "error503", "slow_down", "reset", "truncate", "stale_list")
COUNTS = "/-/counts"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "te", "trailer", "upgrade"}
ERRORS = {
    "error500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "error503": (503, "ServiceUnavailable", "Service is unable to handle request."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
}
STORES = {  # as OCI and R2, Backblaze, older Ceph, and some gateways do
    "not_implemented": (501, "NotImplemented", "A header you provided implies functionality that is not implemented"),
    "invalid": (400, "InvalidArgument", "Unsupported header 'x-amz-sdk-checksum-algorithm' received for this API call"),
    "mismatch": (400, "XAmzContentSHA256Mismatch", "The provided x-amz-content-sha256 header does not match"),
    "breaks": (500, "InternalError", "We encountered an internal error. Please try again."),
}
NO_MD5 = (400, "MissingContentMD5", "Missing required header for this request: Content-MD5")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the storage server said; ``length`` differs from ``len(body)`` for HEAD."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    length: int

    def head(self) -> bytes:
        """Status line and headers as they go over the wire."""
        lines = [f"HTTP/1.1 {self.status} {http.client.responses.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return ("\r\n".join([*lines, f"Content-Length: {self.length}"]) + "\r\n\r\n").encode("latin-1")


class FaultProxy:
    """The proxy, in threads of this process.

    Args:
        upstream: ``http://host:port`` of the storage server.
        kinds: faults to choose from, one for each request that is to fail.
        rate: share of requests that fail. May be changed while it runs.
        seed: of the choices.
        port: 0 takes a free one, and keeps it over `stop` and `start`.
        host: address that it listens at.

    Attributes:
        requests: how many came.
        injected: faults that happened, by kind; what ``store`` refused is ``refused``.
        store: one of `STORES`; empty is the store behind it, as it is.
        denied: HTTP methods for which nobody has permission.
    """

    def __init__(
        self,
        upstream: str,
        kinds: Sequence[str] = KINDS,
        rate: float = 0.2,
        seed: int = 0,
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"unknown kinds of fault: {', '.join(sorted(unknown))}; known are {', '.join(KINDS)}")
        parts = urllib.parse.urlsplit(upstream)
        self.upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.kinds, self.rate = tuple(kinds), rate
        self.requests, self.injected = 0, Counter[str]()
        self.store, self.denied = "", frozenset[str]()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._lists: dict[str, list[Answer]] = {}
        self._forced: list[tuple[str, str]] = []
        self._port, self._host = port, host
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self._host}:{self._port}"

    def force(self, kind: str, times: int = 1, only: str = "") -> None:
        """Let the next ``times`` requests fail that this fault can befall, whatever the rate.

        Args:
            kind: one of `KINDS`.
            times: how many requests.
            only: part of ``METHOD /path?query`` of the requests that are meant.
        """
        with self._lock:
            self._forced += [(kind, only)] * times

    def relent(self) -> None:
        """Forget what was forced and has not happened."""
        with self._lock:
            self._forced.clear()

    def start(self) -> FaultProxy:
        """Listen."""
        self._server = _Server((self._host, self._port), _Handler)
        self._server.proxy = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening and cut every connection: the storage is down until `start`."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut()
            self._server = None

    def __enter__(self) -> FaultProxy:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def choose(self, method: str, path: str, listing: bool) -> str | None:
        """The fault that this request is to suffer."""
        with self._lock:
            self.requests += 1
            for item in self._forced:
                kind, only = item
                if only in f"{method} {path}" and (listing or kind != "stale_list"):
                    self._forced.remove(item)
                    return kind
            if not self.kinds or self._random.random() >= self.rate:
                return None
            return self._random.choice(self.kinds)

    def refusal(self, method: str, path: str, headers: Message) -> tuple[int, str, str] | None:
        """What a store of this kind says to a request that it does not take."""
        if method in self.denied:
            return 403, "AccessDenied", "Access Denied"
        if not self.store:
            return None
        if method == "POST" and path.endswith("?delete") and "Content-MD5" not in headers:
            return NO_MD5
        added = [name for name in headers if re.match("x-amz-(checksum-(?!mode)|sdk-checksum|trailer)", name, re.I)]
        return STORES[self.store] if added else None

    def chance(self, choices: int) -> int:
        """A number below ``choices``."""
        with self._lock:
            return self._random.randrange(choices)

    def count(self, kind: str) -> None:
        """A fault has happened."""
        with self._lock:
            self.injected[kind] += 1

    def earlier_list(self, path: str, now: Answer) -> Answer | None:
        """Remember this answer; return an earlier one to the same request, if there is one."""
        with self._lock:
            answers = self._lists.setdefault(path, [])
            earlier = self._random.choice(answers) if answers else None
            answers.append(now)
            return earlier


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: FaultProxy

    def __init__(self, *args: object) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)  # type: ignore[arg-type]

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        self._open.add(request)
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away in the middle are none of a test's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        proxy = self.server.proxy
        if self.path == COUNTS:
            text = json.dumps({"requests": proxy.requests, "injected": dict(proxy.injected)}).encode()
            self._send(Answer(200, (("Content-Type", "application/json"),), text, len(text)))
            return
        body = self._body()
        listing = self.command == "GET" and _is_listing(self.path)
        fault = proxy.choose(self.command, self.path, listing)
        refusal = proxy.refusal(self.command, self.path, self.headers)
        if refusal or fault in ERRORS:
            proxy.count("refused" if refusal else str(fault))
            status, code, words = refusal or ERRORS[str(fault)]
            xml = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{words}</Message></Error>'.encode()
            sent = b"" if self.command == "HEAD" else xml
            self._send(Answer(status, (("Content-Type", "application/xml"),), sent, len(sent)))
            return
        when = proxy.chance(3) if fault == "reset" else None
        if when == 0:
            proxy.count("reset")
            self._reset()
            return
        answer = self._forward(body)
        if listing:
            earlier = proxy.earlier_list(self.path, answer)
            if fault == "stale_list" and earlier is not None:
                proxy.count("stale_list")
                answer = earlier
        if fault == "reset":
            proxy.count("reset")
            head = answer.head()
            self.wfile.write(head[: len(head) // 2] if when == 1 else head + answer.body[: len(answer.body) // 2])
            self._reset()
        elif fault == "truncate" and len(answer.body) > 1:
            proxy.count("truncate")
            self.wfile.write(answer.head() + answer.body[: len(answer.body) // 2])
            self.close_connection = True
        else:
            self._send(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return data

    def _forward(self, body: bytes) -> Answer:
        upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            response = upstream.getresponse()
            data = response.read()
        finally:
            upstream.close()
        headers = tuple((name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP)
        stated = response.getheader("Content-Length")
        return Answer(response.status, headers, data, int(stated) if stated and self.command == "HEAD" else len(data))

    def _send(self, answer: Answer) -> None:
        self.wfile.write(answer.head() + answer.body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def _is_listing(path: str) -> bool:
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(path).query, keep_blank_values=True)
    return "list-type" in query or "prefix" in query


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upstream", required=True, metavar="URL", help="the storage server")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--fail", type=float, default=0.2, help="share of requests that fail")
    parser.add_argument("--kinds", default=",".join(KINDS), help="faults to choose from, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=["", *STORES], default="", help="a store that knows no checksums")
    options = parser.parse_args()
    kinds = [kind for kind in options.kinds.split(",") if kind]
    with FaultProxy(options.upstream, kinds, options.fail, options.seed, options.port, options.host) as proxy:
        proxy.store = options.store
        print(f"listening on {proxy.url}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
