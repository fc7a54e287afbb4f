"""The service under Ray Serve answers as in one process, from partitions in processes of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest

from glscl.commands import index_build
from tests.service.library import build_indexes
from tests.service.test_server import get

pytest.importorskip("watchfiles", reason="Ray Serve is not installed: pip install 'glscl[ray-serve]'")
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


class Running:
    """A server at an address."""

    def __init__(self, url: str) -> None:
        self.url = url


def test_partitions_on_ray_answer_as_one_index(tmp_path: Path) -> None:
    (whole,) = build_indexes(tmp_path, videos=8)
    halves = []
    for number in range(2):
        folder = tmp_path / f"half-{number}"
        folder.mkdir()
        for path in sorted((tmp_path / "library").iterdir())[number::2]:
            shutil.copy(path, folder)
        halves.append(str(tmp_path / f"half-{number}.index"))
        words = [str(folder), "--run", str(tmp_path / "0" / "run"), "--output", halves[-1]]
        index_build.run([*words, "--metadata", str(tmp_path / "rows.jsonl")], "glscl index build")
    port = free_port()
    served = ("--ray", "--replica-cpus", "0.5", "--port", str(port), f"whole={whole}", f"cut={','.join(halves)}")
    process = subprocess.Popen(
        [sys.executable, "-m", "glscl", "serve", *served],
        stdout=(tmp_path / "log").open("w"),
        stderr=subprocess.STDOUT,
        env=os.environ | {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"},
    )
    running = Running(f"http://127.0.0.1:{port}/")
    try:
        while "on Ray Serve" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        for question in ("api/search?q=a+red+circle&k=6", "api/search?q=img&k=8&where=parity%3Dodd"):
            one, other = (get(running, f"{question}&index={name}") for name in ("whole", "cut"))  # type: ignore[arg-type]
            assert [r["id"] for r in one["results"]] == [r["id"] for r in other["results"]]  # type: ignore[attr-defined]
            scores = [[r["score"] for r in answer["results"]] for answer in (one, other)]  # type: ignore[attr-defined]
            assert scores[1] == pytest.approx(scores[0], abs=1e-6)
        best = one["results"][0]  # type: ignore[index]
        with urllib.request.urlopen(running.url + best["media"]) as media:
            assert media.read(12)[4:8] == b"ftyp"
        with pytest.raises(URLError, match="421"):
            urllib.request.urlopen(urllib.request.Request(running.url, headers={"Host": "evil.example"}))
    finally:
        process.terminate()
        status = process.wait()
    assert status == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().splitlines()[-1] == "glscl: OK ended by SIGTERM"
