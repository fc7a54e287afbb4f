"""`glscl serve` as users start it, on a real index: it answers, refuses what a socket can send, and ends in order."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil
import pytest

import glscl
from glscl.cli import main
from glscl.errors import UserError
from glscl.service.server import listen, name_libraries
from tests.service.conftest import Served, serve
from tests.service.library import HOSTILE

pytestmark = pytest.mark.e2e


def get(served: Served, path: str) -> dict[str, object]:
    with urllib.request.urlopen(served.url + path) as answer:
        found: dict[str, object] = json.load(answer)
    return found


def raw(served: Served, request: bytes) -> tuple[int, str]:
    """What comes back for bytes as they are: the status and the body."""
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(1 << 16):
            answer += chunk
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2].decode()


def test_answers_are_those_of_the_index(served: Served, indexes: list[str]) -> None:
    text = "a red circle rises"
    for name, folder in zip(("in-domain", "cross-domain"), indexes, strict=True):
        found = glscl.open_index(folder, device="cpu").search(text, k=5)
        answer = get(served, f"api/search?q={quote(text)}&index={name}&k=5")["results"]
        assert isinstance(answer, list)
        assert [(one["id"], one["start"], one["end"]) for one in answer] == [(o.id, o.start, o.end) for o in found]
        assert [one["score"] for one in answer] == pytest.approx([one.score for one in found], abs=1e-6)
        assert answer[0]["weights"] == pytest.approx(found[0].weights, abs=1e-6)


def test_a_clip_of_the_library_finds_itself(served: Served, indexes: list[str]) -> None:
    entry = next(glscl.open_index(indexes[0], device="cpu").videos())
    data = Path(entry.source).read_bytes()
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\nContent-Type: video/mp4\r\n\r\n'
    request = urllib.request.Request(served.url + "api/search/clip", body + data + b"\r\n--x--\r\n")
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    with urllib.request.urlopen(request) as answer:
        best = json.load(answer)["results"][0]
    same = glscl.open_index(indexes[0], device="cpu").search_video(entry.source, k=1)[0]
    assert best["id"] == entry.id
    assert best["score"] == pytest.approx(same.score, abs=1e-6), "its own process gave the frames of the file"


def test_hostile_names_and_captions_are_data(served: Served) -> None:
    answer = get(served, "api/search?q=img&k=8")["results"]
    assert isinstance(answer, list)
    (one,) = (result for result in answer if result["captions"] == [HOSTILE])
    with urllib.request.urlopen(served.url + one["media"]) as media:
        assert media.headers["content-type"] == "video/mp4"
        assert media.read(12)[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /../../../../etc/passwd HTTP/1.1", 404),
        (b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1", 404),
        (b"GET /api/media?id=%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1", 404),
        (b"GET /api/media?id=/etc/passwd HTTP/1.1", 404),
        (b"GET /api/media?id=%00 HTTP/1.1", 404),
        (b"GET /api/media?id=%ff%fe HTTP/1.1", 404),
        (b"GET http://evil.example/api/indexes HTTP/1.1", 404),
        (b"BREW /api/search HTTP/1.1", 405),
        (b"GET /api/search?q=%e0%a4%a HTTP/1.1", 200),
    ],
)
def test_bytes_that_no_client_library_sends(served: Served, line: bytes, status: int) -> None:
    answered, body = raw(served, line + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    assert answered == status, body
    assert "root:" not in body
    if status != 200:
        assert set(json.loads(body)) == {"status", "reason"}


def test_rubbish_and_two_hosts_are_no_request(served: Served) -> None:
    assert raw(served, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")[0] == 400
    assert raw(served, b"GET / HTTP/1.1\r\nHost: evil.example\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")[0] in (
        400,
        421,
    )
    assert get(served, "health") == {"status": "ok"}


def test_a_signal_ends_it_in_order(indexes: list[str]) -> None:
    running = serve(indexes[0])
    assert get(running, "ready") == {"status": "ok"}
    assert running.url.startswith("http://127.0.0.1:")
    entry = next(glscl.open_index(indexes[0], device="cpu").videos())
    get(running, f"api/similar?id={quote(entry.id)}")
    children = psutil.Process(running.process.pid).children(recursive=True)
    assert children, "decoders come from a process of its own"
    assert running.end(signal.SIGTERM) == 0
    assert running.lines[-1] == "glscl: OK 2 requests answered; ended by SIGTERM\n"
    assert not any("Traceback" in line for line in running.lines)
    assert psutil.wait_procs(children, timeout=60)[1] == [], "none outlives the server"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "takes one index or more"),
        (["none.index"], "no such file"),
        (["a=x", "a=y"], "two indexes are called 'a'"),
        (["x", "--limits.qeue", "3"], "did you mean"),
        (["x", "--port", "70000"], "port"),
    ],
)
def test_what_cannot_be_served_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert main(["serve", *words, *([] if "--port" in words else ["--port", "0"])]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("glscl: FAILED")
    assert says in line


def test_names_of_libraries() -> None:
    named = name_libraries(["/data/first.index", "cross=b.index", "whole=c/0,c/1", "/with=sign/d"])
    assert named == {
        "first": ["/data/first.index"],
        "cross": ["b.index"],
        "whole": ["c/0", "c/1"],
        "d": ["/with=sign/d"],
    }
    with pytest.raises(UserError, match="names no index"):
        name_libraries(["a="])


def test_an_address_that_is_taken_is_said() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="choose another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
