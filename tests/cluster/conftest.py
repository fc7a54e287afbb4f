"""A dashboard as far as the checks of address and token see one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray

TOKEN = "a-token-of-this-test"
SetToken = Callable[[str | None], None]


@pytest.fixture
def set_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SetToken]:
    """Give Ray's client a token, or token mode without one; it reads both only once unless told to."""
    from ray._raylet import AuthenticationTokenLoader, Config

    def reread() -> None:
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()

    def set_to(token: str | None) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("HOME", str(tmp_path))  # nobody's ~/.ray/auth_token
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        reread()

    yield set_to
    monkeypatch.undo()
    reread()


@pytest.fixture
def no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def guarded(no_addresses: None) -> Iterator[str]:
    """URL of a dashboard that demands ``TOKEN``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            status = 401 if given is None else 200 if given == f"Bearer {TOKEN}" else 403
            body = json.dumps({"ray_version": ray.__version__}).encode() if status == 200 else b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent() -> str:
    """URL at which nobody listens."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}"
