"""The API answers what the index finds, and whatever it refuses has a status and a reason."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from glscl.index import Entry
from tests.service.conftest import HOSTILE, FakeIndex, Service

TEXT = "a red square"


def ids(response: object) -> list[str]:
    return [result["id"] for result in response.json()["results"]]  # type: ignore[attr-defined]


def reason(response: object, status: int) -> str:
    """The reason of a refusal, whose form is always the same."""
    assert response.status_code == status, response.text  # type: ignore[attr-defined]
    body = response.json()  # type: ignore[attr-defined]
    assert set(body) == {"status", "reason"}
    assert body["status"] == status
    return str(body["reason"])


def test_the_lines_of_the_documentation_are_answered(
    start: Callable[..., Service], fake: FakeIndex, clip: bytes
) -> None:
    entry = Entry(
        "beach/0001.mp4", fake.entries[0].source, 2.0, ("a dog catches a frisbee",), {"lang": "en", "duration": 2}
    )
    client = start({"library": [FakeIndex([entry])]}).client
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8").replace("\\\n", " ")
    asked = 0
    for line in page.splitlines():
        if not line.startswith("curl "):
            continue
        url, options = "", []
        words = iter(shlex.split(line)[1:])
        for word in words:
            if word.startswith("-"):
                options.append((word, next(words)))
            else:
                url = word
        given = dict(options)
        headers = dict([given["-H"].split(": ")]) if "-H" in given else {}
        if "-r" in given:
            headers["Range"] = f"bytes={given['-r']}"
        form = dict(value.split("=") for name, value in options if name == "-F" and "@" not in value)
        files = {"file": ("clip.mp4", clip, "video/mp4")} if "-F" in given else None
        method = "POST" if {"-d", "-F"} & given.keys() else "GET"
        answer = client.request(method, url, headers=headers, content=given.get("-d"), data=form, files=files)
        assert answer.status_code in (200, 206), (line, answer.text)
        if "/similar" not in url and "/media" not in url:
            assert ids(answer) == ["beach/0001.mp4"], line
        asked += 1
    assert asked == 5


def test_a_text_finds_the_video_and_its_moment(client: TestClient) -> None:
    answer = client.post("/api/search", json={"query": TEXT, "k": 2})
    assert answer.status_code == 200
    best = answer.json()["results"][0]
    assert (best["id"], best["start"], best["end"], best["segment"]) == ("red", 0.5, 1.0, [0.0, 2.0])
    assert best["weights"] == [0.1, 0.6, 0.2, 0.1]
    assert best["captions"] == ["a red square moves up"]
    assert len(answer.json()["results"]) == 2
    assert client.get("/api/search", params={"q": TEXT, "k": 2}).json()["results"] == answer.json()["results"]
    assert "source" not in best, "paths of the server are nobody's business"


def test_conditions_narrow_a_search(client: TestClient) -> None:
    english = {"red": False, "blue": True, "../../etc/passwd": False, HOSTILE: True, "tar": False, "gone": True}
    found = ids(client.get("/api/search", params={"q": TEXT, "where": "lang=en"}))
    assert set(found) == {name for name, is_english in english.items() if is_english}
    found = ids(client.post("/api/search", json={"query": TEXT, "where": ["lang=en", "year>2001"]}))
    assert set(found) == {HOSTILE, "gone"}


def test_a_clip_finds_videos_and_does_not_stay(client: TestClient, fake: FakeIndex, clip: bytes) -> None:
    answer = client.post("/api/search/clip", files={"file": ("a.mp4", clip, "video/mp4")}, data={"k": 3})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == 3
    assert fake.clips == [4], "the frames of the clip itself were looked at"


def test_videos_like_one_of_the_library_leave_it_out(client: TestClient) -> None:
    everything = ids(client.get("/api/similar", params={"id": "red", "k": 6}))
    assert sorted([*everything, "red"]) == sorted(["red", "blue", "../../etc/passwd", HOSTILE, "tar", "gone"])


def test_captions_of_a_video(client: TestClient) -> None:
    answer = client.get("/api/texts", params={"id": "blue", "k": 2}).json()
    assert [(one["text"], one["id"]) for one in answer["results"]] == [
        ("a red square moves up", "red"),
        ("a blue circle falls", "blue"),
    ]


def test_indexes_and_videos_are_described(client: TestClient) -> None:
    described = client.get("/api/indexes").json()
    (index,) = described["indexes"]
    assert (index["name"], index["videos"], index["head"], index["train_domains"]) == (
        "first",
        6,
        "glscl",
        ["toy_clips"],
    )
    assert index["metadata"] == {"lang": ["de", "en"], "year": [2000, 2001, 2002, 2003, 2004, 2005]}
    assert described["max_results"] == 100
    listed = client.get("/api/videos", params={"first": 1, "count": 2}).json()
    assert (listed["total"], [video["id"] for video in listed["videos"]]) == (6, ["blue", "../../etc/passwd"])
    assert client.get("/api/video", params={"id": "blue"}).json()["captions"] == ["a blue circle falls"]


def test_a_library_in_partitions_is_one(start: Callable[..., Service], fake: FakeIndex) -> None:
    whole = start().client.get("/api/search", params={"q": "a star", "k": 6}).json()["results"]
    cut = {"first": [FakeIndex(fake.entries[:2]), FakeIndex(fake.entries[2:5]), FakeIndex(fake.entries[5:])]}
    client = start(cut).client
    parts = client.get("/api/search", params={"q": "a star", "k": 6}).json()["results"]
    assert [(one["id"], one["score"]) for one in parts] == [(one["id"], one["score"]) for one in whole]
    assert [video["id"] for video in client.get("/api/videos", params={"first": 1, "count": 3}).json()["videos"]] == [
        entry.id for entry in fake.entries[1:4]
    ]
    assert client.get("/api/media", params={"id": "tar"}).status_code == 200
    assert client.get("/api/indexes").json()["indexes"][0]["partitions"] == 3


def test_the_second_index_answers_under_its_name(start: Callable[..., Service], fake: FakeIndex) -> None:
    other = FakeIndex([Entry("only", fake.entries[0].source, 1.0, ("a red square",), {})])
    client = start({"first": [fake], "second": [other]}).client
    assert ids(client.get("/api/search", params={"q": TEXT, "index": "second"})) == ["only"]
    assert ids(client.get("/api/search", params={"q": TEXT, "k": 1})) == ["red"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 422, "body"),
        (b"{", 422, "no JSON"),
        (b"[]", 422, "dict"),
        (b"\xff\xfe", 422, "no JSON"),
        (b'{"query": ""}', 422, "query"),
        (b'{"query": "   "}', 422, "query is empty"),
        (b'{"query": 3}', 422, "query"),
        (b'{"query": "a", "k": 0}', 422, "k"),
        (b'{"query": "a", "k": 101}', 422, "at most 100"),
        (b'{"query": "a", "k": 1e400}', 422, "k"),
        (b'{"query": "a", "kk": 1}', 422, "kk"),
        (b'{"query": "a", "index": "none"}', 404, "no such index"),
        (b'{"query": "a", "where": ["lang"]}', 422, "no condition"),
        (b'{"query": "a", "where": ["year<x"]}', 422, "no number"),
        (b'{"query": "a", "where": "lang=en"}', 422, "where"),
        (b'{"query": "' + b"a" * 1001 + b'"}', 422, "at most 1000"),
        (b'{"query": "' + b"a" * 70000 + b'"}', 413, "more than 65536 bytes"),
        (b"[" * 20000, 400, "parsing the body"),
    ],
)
def test_a_malformed_search_is_refused_with_its_reason(client: TestClient, body: bytes, status: int, says: str) -> None:
    answer = client.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert says in reason(answer, status)


@pytest.mark.parametrize(
    ("address", "status", "says"),
    [
        ("/api/search", 422, "q"),
        ("/api/search?q=a&k=x", 422, "k"),
        ("/api/similar?id=nothing", 404, "no such video"),
        ("/api/video?id=nothing", 404, "no video"),
        ("/api/video", 422, "id"),
        ("/api/video?id=" + "a" * 5000, 422, "id"),
        ("/api/videos?count=1000", 422, "count"),
        ("/api/search?q=a&" + "&".join(["where=a%3D1"] * 30), 422, "at most 20"),
        ("/api/nothing", 404, "Not Found"),
        ("/..%2f..%2fetc/passwd", 404, "Not Found"),
        ("/page.html", 404, "Not Found"),
    ],
)
def test_a_wrong_address_is_refused_with_its_reason(client: TestClient, address: str, status: int, says: str) -> None:
    assert says in reason(client.get(address), status)


def test_a_wrong_method_says_which_are_right(client: TestClient) -> None:
    answer = client.put("/api/search")
    assert "Method Not Allowed" in reason(answer, 405)
    assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("data", "kind", "status", "says"),
    [
        (b"no video at all", "video/mp4", 422, "the clip cannot be used"),
        (b"", "video/mp4", 422, "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(1000), "image/png", 415, "image/png is no video"),
        (b"<html><script>alert(1)</script>", "text/html", 415, "text/html is no video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "video/mp4", 422, "the clip cannot be used"),
        (bytes((2 << 20) + (65 << 10)), "video/mp4", 413, "more than 2 MB"),
    ],
)
def test_a_clip_that_is_none_is_refused(
    start: Callable[..., Service], data: bytes, kind: str, status: int, says: str
) -> None:
    client = start(upload_mb=2).client
    assert says in reason(client.post("/api/search/clip", files={"file": ("a", data, kind)}), status)
    assert client.get("/api/search", params={"q": TEXT}).status_code == 200


def test_a_clip_cut_short_or_too_long_is_refused(
    start: Callable[..., Service], clip: bytes, make_video: Callable[..., bytes]
) -> None:
    client = start(upload_seconds=5).client
    send = lambda data: client.post("/api/search/clip", files={"file": ("a.mp4", data, "video/mp4")})  # noqa: E731
    assert "cannot be used" in reason(send(clip[: len(clip) // 3]), 422)
    assert "at most 5 s" in reason(send(make_video(times=(0.0, 3.0, 6.0))), 422)


def test_a_condition_that_is_none_is_not_the_clip_s_fault(client: TestClient, clip: bytes) -> None:
    for data in (clip, b"no video"):
        answer = client.post("/api/search/clip", files={"file": ("a", data)}, data={"where": ["year<x"]})
        says = reason(answer, 422)
        assert "no number" in says
        assert "clip" not in says


def test_a_form_without_its_clip_or_with_rubbish_is_refused(client: TestClient) -> None:
    assert "file" in reason(client.post("/api/search/clip", data={"k": 1}), 422)
    form = {"content-type": "multipart/form-data; boundary=x"}
    assert reason(client.post("/api/search/clip", content=b"no form", headers=form), 400)
    none = {"content-type": "multipart/form-data"}
    assert reason(client.post("/api/search/clip", content=b"--x", headers=none), 400)


def test_ids_and_captions_are_data(client: TestClient) -> None:
    answer = client.get("/api/search", params={"q": "img", "k": 1})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["results"][0]["id"] == HOSTILE
    assert client.get("/api/video", params={"id": HOSTILE}).json()["captions"] == [HOSTILE]


def test_only_what_was_indexed_can_be_fetched(client: TestClient, fake: FakeIndex, tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"not indexed")
    for name in (
        "secret",
        "secret.mp4",
        str(tmp_path / "secret.mp4"),
        "../secret.mp4",
        "/etc/passwd",
        "\x00",
        "file:///etc/passwd",
    ):
        assert "no such video" in reason(client.get("/api/media", params={"id": name}), 404)
    own = client.get("/api/media", params={"id": "../../etc/passwd"})  # the id of a video, never a path
    assert own.content == Path(fake.entries[2].source).read_bytes()
    assert "no longer" in reason(client.get("/api/media", params={"id": "gone"}), 404)


@pytest.mark.parametrize("name", ["red", "tar"])
def test_a_part_of_a_file(client: TestClient, fake: FakeIndex, name: str) -> None:
    data = Path(fake.entry(name).source.removeprefix("tar::")).read_bytes()
    size = len(data)
    get = lambda value: client.get("/api/media", params={"id": name}, headers={"range": value})  # noqa: E731
    whole = client.get("/api/media", params={"id": name})
    assert (whole.status_code, whole.content, whole.headers["accept-ranges"]) == (200, data, "bytes")
    assert whole.headers["content-type"] == "video/mp4"
    for value, first, last in [
        ("bytes=0-9", 0, 10),
        ("bytes=5-", 5, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=3-{10 * size}", 3, size),
        (f"bytes=-{10 * size}", 0, size),
        (f"bytes={size - 1}-{size - 1}", size - 1, size),
    ]:
        answer = get(value)
        assert answer.status_code == 206
        assert answer.content == data[first:last]
        assert answer.headers["content-range"] == f"bytes {first}-{last - 1}/{size}"
        assert answer.headers["content-length"] == str(last - first)
    for value in (f"bytes={size}-", f"bytes={size + 5}-{size + 9}", "bytes=-0"):
        answer = get(value)
        assert str(size) in reason(answer, 416)
        assert answer.headers["content-range"] == f"bytes */{size}"
    for value in ("bytes=9-3", "bytes=-", "bytes=0-1,3-4", "lines=0-3", "bytes=a-b", "bytes=" + "9" * 40 + "-"):
        assert get(value).content == data, value


def test_a_file_of_another_type_is_sent_as_bytes(client: TestClient, fake: FakeIndex) -> None:
    fake.open_media = lambda video_id: (b"<script>alert(1)</script>", "text/html")  # type: ignore[method-assign]
    answer = client.get("/api/media", params={"id": "red"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_fault_of_the_server_shows_nothing_of_it(client: TestClient, fake: FakeIndex) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("/home/someone/secret")

    fake.search_texts = fail  # type: ignore[assignment, method-assign]
    assert "secret" not in reason(client.get("/api/search", params={"q": "a"}), 500)
    assert client.get("/health").status_code == 200
