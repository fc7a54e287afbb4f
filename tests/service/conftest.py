"""A service over an index that the tests make up, and one over a real index of toy clips."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from glscl.data.video import FrameSampling
from glscl.data.video.arrays import take_decoded
from glscl.errors import UserError
from glscl.index import Entry, Found, TextFound
from glscl.index.where import Where, compile_where
from glscl.service.app import create_app
from glscl.service.decoding import ClipDecoder, ClipLimits
from glscl.service.guard import names_of
from glscl.service.library import Library, LocalPartition
from glscl.service.metrics import Meters
from glscl.service.options import Limits
from glscl.service.partition import Partition
from tests.service.library import build_indexes

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"


@dataclass
class FakeIndex:
    """An index whose scores are known: of a text, the share of its words that a caption has."""

    entries: list[Entry]
    gate: threading.Event | None = None  # searches wait for it
    batches: list[list[str]] = field(default_factory=list)
    clips: list[int] = field(default_factory=list)  # frames that each clip gave

    def __post_init__(self) -> None:
        card = SimpleNamespace(
            model=SimpleNamespace(head="glscl", clip="ViT-B-32"), run="first", step=7, train_domains=("toy_clips",)
        )
        self.model = SimpleNamespace(card=card, retriever=SimpleNamespace(frame_size=32))
        self.stats = SimpleNamespace(videos=len(self.entries), segments=len(self.entries))

    def videos(self) -> Iterator[Entry]:
        return iter(self.entries)

    def entry(self, video_id: str) -> Entry:
        for entry in self.entries:
            if entry.id == video_id:
                return entry
        raise UserError(f"no video '{video_id}' in the index")

    def open_media(self, video_id: str) -> tuple[bytes | str, str]:
        source = self.entry(video_id).source
        return (Path(source[5:]).read_bytes() if source.startswith("tar::") else source), "video/mp4"

    def search_texts(self, texts: Sequence[str], k: int, where: Where | None = None) -> list[list[Found]]:
        if self.gate is not None:
            assert self.gate.wait(30)
        self.batches.append(list(texts))
        return [self._best(lambda entry, text=text: self._score(text, entry), k, where) for text in texts]  # type: ignore[misc]

    def search_video(self, source: ClipDecoder, k: int, where: Where | None = None) -> list[Found]:
        if self.gate is not None:
            assert self.gate.wait(30)
        frames = take_decoded(source, FrameSampling(4, 2.0, 32)).frames
        self.clips.append(len(frames))
        bright = float(frames.float().mean())
        return self._best(lambda entry: -abs(bright - len(entry.id)), k, where)

    def find_texts(self, source: ClipDecoder, texts: Sequence[str] | None = None, k: int = 10) -> list[TextFound]:
        take_decoded(source, FrameSampling(4, 2.0, 32))
        pairs = [(entry.id, caption) for entry in self.entries for caption in entry.captions]
        return [TextFound(caption, 1 / (1 + n), name) for n, (name, caption) in enumerate(pairs[:k])]

    @staticmethod
    def _score(text: str, entry: Entry) -> float:
        words = text.lower().split()
        return sum(word in " ".join(entry.captions) for word in words) / len(words)

    def _best(self, score: Callable[[Entry], float], k: int, where: Where | None) -> list[Found]:
        tests = compile_where(where or {})
        left = [entry for entry in self.entries if all(test(entry.metadata.get(key)) for key, test in tests.items())]
        scored = sorted(((score(entry), entry) for entry in left), key=lambda pair: -pair[0])[:k]
        return [
            Found(
                entry.id, value, 0.5, 1.0, (0.0, 2.0), (0.25, 0.75, 1.25, 1.75), (0.1, 0.6, 0.2, 0.1), (0.3, 0.1), entry
            )
            for value, entry in scored
        ]


@pytest.fixture(scope="session")
def clip(make_video: Callable[..., bytes]) -> bytes:
    """A video file."""
    return make_video(seed=3)


@pytest.fixture
def fake(tmp_path: Path, make_video: Callable[..., bytes]) -> FakeIndex:
    """Six videos: one has a hostile id and caption, one lies in a tar, one is gone, one has an id like a path."""
    texts = ["a red square moves up", "a blue circle falls", "a green star spins", HOSTILE, "two rings", "a gone one"]
    names = ["red", "blue", "../../etc/passwd", HOSTILE, "tar", "gone"]
    entries = []
    for number, (name, text) in enumerate(zip(names, texts, strict=True)):
        path = tmp_path / f"{number}.mp4"
        if name != "gone":
            path.write_bytes(make_video(seed=number))
        source = f"tar::{path}" if name == "tar" else str(path)
        entries.append(Entry(name, source, 2.0, (text,), {"lang": "en" if number % 2 else "de", "year": 2000 + number}))
    return FakeIndex(entries)


@dataclass
class Service:
    """A service in this process, and its log."""

    client: TestClient
    lines: list[str]
    indexes: dict[str, list[FakeIndex]]


@pytest.fixture
def start(fake: FakeIndex) -> Iterator[Callable[..., Service]]:
    """Start a service: with other limits, other indexes, or another address that it listens at."""
    opened: list[TestClient] = []

    def begin(
        indexes: dict[str, list[FakeIndex]] | None = None,
        host: str = "127.0.0.1",
        allowed: Sequence[str] = (),
        **limits: float,
    ) -> Service:
        indexes = indexes or {"first": [fake]}
        bounds, meters = Limits.model_validate(limits), Meters()
        clips = ClipLimits(bounds.decode_s, bounds.upload_seconds)
        libraries = [
            Library(
                name,
                [LocalPartition(Partition(index, name, clips), bounds.clips) for index in partitions],  # type: ignore[arg-type]
                bounds,
                meters,
            )
            for name, partitions in indexes.items()
        ]
        lines: list[str] = []
        app = create_app(libraries, bounds, meters, names_of(host, allowed), lines.append)
        client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        return Service(client, lines, indexes)

    yield begin
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(start: Callable[..., Service]) -> TestClient:
    """A client of a service with default limits."""
    return start().client


@dataclass
class Served:
    """A `glscl serve` that runs: its address, its process, and the lines that it has printed."""

    url: str
    process: subprocess.Popen[str]
    lines: list[str]
    reader: threading.Thread

    def end(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; returns the exit status."""
        self.process.send_signal(signum)
        status = self.process.wait()
        self.reader.join()
        return status


def serve(*words: str) -> Served:
    """Start `glscl serve` on a free port, and wait until it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "glscl", "serve", *words, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if " at http://" in line:
            break
    else:
        raise AssertionError("".join(lines))
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    return Served(lines[-1].split(" at ")[1].split()[0], process, lines, reader)


@pytest.fixture(scope="session")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two real indexes of one library of toy clips."""
    return build_indexes(tmp_path_factory.mktemp("served"), indexes=2)


@pytest.fixture(scope="session")
def served(indexes: list[str]) -> Iterator[Served]:
    """A server of both."""
    running = serve(f"in-domain={indexes[0]}", f"cross-domain={indexes[1]}")
    yield running
    assert running.end(signal.SIGINT) == 0
    assert running.lines[-1].endswith("ended by SIGINT\n")
