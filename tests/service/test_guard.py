"""Who may ask, how much, how long; and what every answer carries."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from glscl.service.guard import is_loopback, names_of
from glscl.service.library import Library
from glscl.service.metrics import Meters
from glscl.service.options import Limits
from glscl.service.partition import Refused, TextQuestion
from glscl.service.refusals import Refusal
from glscl.service.schemas import Result
from tests.service.conftest import FakeIndex, Service
from tests.service.test_api import reason


@pytest.mark.parametrize("path", ["/", "/api/indexes", "/api/nothing", "/api/media?id=red", "/page.js"])
def test_every_answer_has_the_headers_that_keep_a_browser_safe(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["media-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers
    assert "server" not in headers


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "localhost.", "", "[", "a@127.0.0.1b"]
)
def test_another_name_for_this_machine_is_refused(client: TestClient, host: str) -> None:
    assert "name" in reason(client.get("/api/indexes", headers={"host": host}), 421)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_this_machine_s_own_names_are_taken(client: TestClient, host: str) -> None:
    assert client.get("/api/indexes", headers={"host": host}).status_code == 200


def test_names_follow_the_address() -> None:
    assert names_of("0.0.0.0", []) is None
    assert "search.example.org" in (names_of("0.0.0.0", ["Search.example.org"]) or ())
    assert "evil.example" not in (names_of("127.0.0.5", []) or ())
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1")] == [True] * 3 + [
        False
    ] * 2


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}],
)
def test_a_page_of_another_site_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    assert "another site" in reason(client.post("/api/search", json={"query": "a"}, headers=headers), 403)
    own = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    assert client.post("/api/search", json={"query": "a"}, headers=own).status_code == 200


def test_a_body_that_says_it_is_too_large_is_not_read(client: TestClient) -> None:
    def body():  # type: ignore[no-untyped-def]
        yield b"{"
        pytest.fail("the server read on")

    answer = client.post("/api/search", content=body(), headers={"content-length": str(1 << 40)})
    assert reason(answer, 413)
    assert answer.headers["connection"] == "close"


def test_a_body_that_does_not_say_its_size_is_counted(start: Callable[..., Service]) -> None:
    client = start(upload_mb=1).client
    form = {"content-type": "multipart/form-data; boundary=x"}
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: video/mp4\r\n\r\n'
    chunks = [head] + [bytes(64 << 10)] * 40
    assert "1 MB" in reason(client.post("/api/search/clip", content=iter(chunks), headers=form), 413)


def test_every_request_is_a_line_without_what_was_asked(start: Callable[..., Service]) -> None:
    service = start()
    service.client.get("/api/search", params={"q": "my private words"})
    service.client.get("/no%1b%5b31mthing")
    (first, second) = service.lines
    assert "GET /api/search 200" in first
    assert "private" not in first
    assert "\x1b" not in second
    assert "404" in second


def test_requests_beyond_what_is_taken_on_at_once_are_refused(start: Callable[..., Service], fake: FakeIndex) -> None:
    fake.gate = threading.Event()
    client = start(requests=2).client
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(client.get, "/api/search", params={"q": "a"}) for _ in range(2)]
        while "glscl_requests_active 2.0" not in _metrics(client):
            pass
        answer = client.get("/health")
        fake.gate.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
    assert "at once" not in reason(answer, 503)
    assert answer.headers["retry-after"] == "1"


def _metrics(client: TestClient) -> str:
    """The figures, which a busy server does not give."""
    meters = client.app._meters  # type: ignore[attr-defined]
    return str(meters.write().decode())


def test_metrics_count_what_was_answered(client: TestClient) -> None:
    client.get("/api/search", params={"q": "a"})
    client.get("/no such route")
    text = client.get("/metrics").text
    assert 'glscl_requests_total{route="/api/search",status="200"} 1.0' in text
    assert 'glscl_requests_total{route="other",status="404"} 1.0' in text
    assert 'glscl_batch_texts_count{index="first"} 1.0' in text
    assert 'glscl_index_videos{index="first"} 6.0' in text


def test_health_is_of_the_process_and_ready_of_the_indexes(client: TestClient) -> None:
    assert client.get("/health").json() == client.get("/ready").json() == {"status": "ok"}


class Slow:
    """A partition that answers when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()

    async def search_texts(self, questions: list[TextQuestion]) -> list[list[Result] | Refused]:
        self.batches.append([question.text for question in questions])
        await self.open.wait()
        return [Refused(question.text) if question.text == "bad" else [] for question in questions]


def library(slow: Slow, **limits: float) -> Library:
    return Library("first", [slow], Limits.model_validate(limits), Meters())  # type: ignore[list-item]


def run_queue(slow: Slow, use: Callable[[Library], object], **limits: float) -> None:
    async def main() -> None:
        asked = library(slow, **limits)
        worker = asyncio.create_task(asked._answer_queue())
        try:
            await use(asked)  # type: ignore[misc]
        finally:
            worker.cancel()

    asyncio.run(main())


def test_texts_that_come_together_are_encoded_together() -> None:
    slow = Slow()

    async def use(asked: Library) -> None:
        slow.open.set()
        answers = await asyncio.gather(
            *(asked.search_text(TextQuestion(text, 1)) for text in ("a", "b", "bad", "c", "d")), return_exceptions=True
        )
        assert [isinstance(answer, Refusal) for answer in answers] == [False, False, True, False, False]
        assert isinstance(answers[2], Refusal)
        assert (answers[2].status_code, answers[2].detail) == (422, "bad")

    run_queue(slow, use, batch=4, batch_ms=100)
    assert slow.batches == [["a", "b", "bad", "c"], ["d"]]


def test_a_full_queue_and_a_late_answer_are_503() -> None:
    slow = Slow()

    async def use(asked: Library) -> None:
        first = asyncio.create_task(asked.search_text(TextQuestion("a", 1)))
        while not slow.batches:
            await asyncio.sleep(0)
        others = [asyncio.create_task(asked.search_text(TextQuestion(text, 1))) for text in "bc"]
        await asyncio.sleep(0)
        with pytest.raises(Refusal, match="2 texts wait already") as full:
            await asked.search_text(TextQuestion("d", 1))
        assert full.value.status_code == 503
        assert full.value.headers == {"Retry-After": "1"}
        for late in (first, *others):
            with pytest.raises(Refusal, match="no answer within") as refused:
                await late
            assert refused.value.status_code == 503

    run_queue(slow, use, queue=2, batch=1, batch_ms=0, timeout_s=0.2)


def test_who_waits_no_more_is_passed_by() -> None:
    slow = Slow()

    async def use(asked: Library) -> None:
        first = asyncio.create_task(asked.search_text(TextQuestion("a", 1)))
        while not slow.batches:
            await asyncio.sleep(0)
        left = asyncio.create_task(asked.search_text(TextQuestion("left", 1)))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        last = asyncio.create_task(asked.search_text(TextQuestion("last", 1)))
        slow.open.set()
        await first
        await last

    run_queue(slow, use, batch=1, batch_ms=0)
    assert slow.batches == [["a"], ["last"]]


@pytest.mark.parametrize(
    ("limits", "status", "says"),
    [({"clips_per_client": 1}, 429, "of this client"), ({"clips": 1, "clips_per_client": 9}, 503, "wait already")],
)
def test_clips_are_bounded_for_a_client_and_for_all(
    start: Callable[..., Service], fake: FakeIndex, clip: bytes, limits: dict[str, int], status: int, says: str
) -> None:
    fake.gate = threading.Event()
    client = start(**limits).client

    def send() -> Response:
        return client.post("/api/search/clip", files={"file": ("a.mp4", clip, "video/mp4")})

    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(send) for _ in range(4)]
        refused = next(as_completed(waiting)).result()
        fake.gate.set()
        statuses = [one.result().status_code for one in waiting]
    assert says in reason(refused, status)
    assert refused.headers["retry-after"] == "1"
    assert 200 in statuses
