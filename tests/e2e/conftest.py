"""Command lines as users type them, on real clips, with real Ray and DeepSpeed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from glscl.data.build import Encoding
from glscl.data.prepare import build_from_annotations

LIMIT_S = 420


@dataclass
class Command:
    """A ``glscl`` command line that runs in its own session, its output in a file."""

    process: subprocess.Popen[bytes]
    output: Path

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> str:
        """Wait for the end; returns the output. Fails the test on a non-zero exit."""
        status = self.process.wait(LIMIT_S)
        assert status == 0, self.text()[-5000:]
        return self.text()

    def wait_for_step(self, step: int) -> None:
        """Wait until the log shows at least this step."""
        self._wait_until(lambda: max((int(n) for n in re.findall(r"step=(\d+)/", self.text())), default=0) >= step)

    def wait_for(self, words: str) -> None:
        """Wait until the log shows these words."""
        self._wait_until(lambda: words in self.text())

    def _wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            assert self.process.poll() is None, self.text()[-5000:]
            assert time.monotonic() < deadline, self.text()[-5000:]
            time.sleep(0.1)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        """The training workers' processes."""
        found = []
        for process in self.descendants():
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self) -> None:
        """End the driver with SIGKILL, and wait until everything it started is gone."""
        family = self.descendants()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=60)
        for process in alive:
            process.kill()


@pytest.fixture
def glscl(tmp_path: Path) -> Callable[..., Command]:
    """Start ``python -m glscl ...`` with a local Ray of its own, or with another environment (``hosts.Hosts``)."""
    count = 0

    def start(*words: str, environment: dict[str, str] | None = None, before: Sequence[str] = ()) -> Command:
        nonlocal count
        count += 1
        output = tmp_path / f"output-{count}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*before, sys.executable, "-m", "glscl", *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment or os.environ | {"RAY_ADDRESS": "local"},
                start_new_session=True,
            )
        return Command(process, output)

    return start


@pytest.fixture(scope="session")
def clips(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shard sets of the real clips, re-encoded small: ``msrvtt/train``, ``msrvtt/test``, ``activitynet/test``."""
    root = tmp_path_factory.mktemp("clips")
    for benchmark, split, name in (
        ("msrvtt", "train_9k", "train"),
        ("msrvtt", "test_1k_a", "test"),
        ("activitynet", "val_1", "test"),
    ):
        folder = shared / "clips" / benchmark
        build_from_annotations(
            benchmark,
            str(folder),
            split,
            str(folder / "videos"),
            str(root / benchmark / name),
            domain=benchmark,
            samples_per_shard=8,
            encoding=Encoding(short_side=64, rate=4.0),
            workers=0,
        )
    return root


@pytest.fixture(scope="session")
def train_words() -> Callable[[str, str, str], list[str]]:
    """The run that all end-to-end tests repeat: two workers, ZeRO-2, fp32; 9 steps an epoch, 162 steps."""
    return _train_words


def _train_words(shards: str, storage: str, name: str) -> list[str]:
    options = {
        "name": name,
        "storage": storage,
        "data.train": f"{shards}/msrvtt/train",
        "data.loader-workers": "0",
        "data.virtual-streams": "4",
        "data.sample-fps": "4",
        "model.clip": "glscl-tiny",
        "model.max-frames": "2",
        "training.global-batch": "20",
        "training.epochs": "18",
        "training.num-workers": "2",
        "training.zero-stage": "2",
        "training.precision": "fp32",
        "training.lr-towers": "1e-3",
        "training.lr-head": "1e-3",
        "training.log-every": "3",
        "checkpoint.every-steps": "12",
    }
    tests = [f"{shards}/msrvtt/train", f"{shards}/msrvtt/test", f"{shards}/activitynet/test"]
    return ["train", *(word for key, value in options.items() for word in (f"--{key}", value)), "--data.test", *tests]
