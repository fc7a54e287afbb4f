"""Command lines as users type them, on real clips, with real Ray and DeepSpeed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from glscl.data.build import BuildOptions, Encoding
from glscl.data.prepare import Source, prepare
from glscl.training.checkpoint.retention import Retention

LOCAL = {"RAY_ADDRESS": "local"}
"""A cluster of the command's own."""


@dataclass
class Command:
    """A ``glscl`` command line that runs in its own session, its output in a file."""

    process: subprocess.Popen[bytes]
    output: Path

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait(self) -> str:
        """Wait for the end; returns the output. Fails the test on a non-zero exit."""
        status = self.process.wait()
        assert status == 0, self.text()[-5000:]
        return self.text()

    def wait_for_step(self, step: int, after: str = "") -> None:
        """Wait until the log shows at least this step, after the last ``after``."""

        def reached() -> bool:
            said = self.text().rpartition(after)[2] if after else self.text()
            return max((int(n) for n in re.findall(r"step=(\d+)/", said)), default=0) >= step

        self.wait_until(reached)

    def wait_for(self, words: str) -> None:
        """Wait until the log shows these words."""
        self.wait_until(lambda: words in self.text())

    def wait_until(self, holds: Callable[[], bool], pause_s: float = 0.1) -> None:
        """As long as the command runs; what hangs is ended by the test run's own limit."""
        while not holds():
            assert self.process.poll() is None or holds(), self.text()[-5000:]
            time.sleep(pause_s)

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
        """End the driver with SIGKILL, and wait until what it started is gone, by itself.

        Ray's agents are not waited for: they look for their cluster for a minute, in which users start the command
        again. `leaves_nothing` waits for them.
        """
        family = []
        for process in self.descendants():
            with suppress(psutil.NoSuchProcess):
                if not AGENT.search(" ".join(process.cmdline())):
                    family.append(process)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=GONE_S)
        assert not alive, alive


AGENT = re.compile("ray::(Dashboard|RuntimeEnv)Agent")


CACHES = re.compile(r"^torchinductor_|wandb-(artifacts|media)$")
"""Torch's own, one for all of a user's processes; wandb's, made where it is imported and removed at exit."""
GONE_S = 600  # until what should be gone counts as left behind; nothing waits for it where all is well
tempfile.gettempdir()  # decided now for this process, not by the first test's folder


@pytest.fixture(autouse=True)
def leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """After a test the machine is as before: processes, shared memory, temporary files.

    Another test runs at the same time: a variable that every process inherits tells this test's processes, a folder
    of its own its files; shared memory that nobody holds any longer is an orphan, whoever made it.
    """
    folder = Path(tempfile.mkdtemp(prefix="glt-", dir="/tmp"))  # short: Ray's sockets lie in it
    monkeypatch.setenv("GLSCL_TEST", folder.name)
    monkeypatch.setenv("TMPDIR", str(folder))
    shared = set(os.listdir("/dev/shm"))
    yield folder
    deadline = time.monotonic() + GONE_S
    while left := [*_processes(folder.name), *_files(folder), *_orphans(set(os.listdir("/dev/shm")) - shared)]:
        if time.monotonic() > deadline:
            pytest.fail("left behind: " + "; ".join(left))
        time.sleep(0.2)
    shutil.rmtree(folder)


def _processes(mark: str) -> Iterator[str]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # gone, or somebody else's
            if process.pid != os.getpid() and process.environ().get("GLSCL_TEST") == mark:
                yield f"process {process.pid} {' '.join(process.cmdline())[:150]}"


def _files(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if not CACHES.search(path.name):
            yield f"file {path}"


def _orphans(names: set[str]) -> Iterator[str]:
    """Those of /dev/shm that no process has open or mapped."""
    held: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            held.update(re.findall(r"/dev/shm/(\S+)", (process / "maps").read_text()))
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    held.add(os.readlink(link).removeprefix("/dev/shm/"))
    for name in names - held:
        if Path("/dev/shm", name).exists():
            yield f"shared memory {name}"


@pytest.fixture
def glscl(tmp_path: Path, leaves_nothing: Path) -> Iterator[Callable[..., Command]]:
    """Start ``python -m glscl ...`` with a local Ray of its own, or with another environment (``hosts.Hosts``)."""
    commands: list[Command] = []

    def start(*words: str, environment: dict[str, str] | None = None, before: Sequence[str] = ()) -> Command:
        output = tmp_path / f"output-{len(commands)}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*before, sys.executable, "-m", "glscl", *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment or os.environ | LOCAL,
                start_new_session=True,
            )
        commands.append(Command(process, output))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:  # the test has failed before its end
            command.kill()


@pytest.fixture(scope="session")
def clips(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shard sets of real clips, stored as small pictures: ``msrvtt/train``, ``msrvtt/test``, ``activitynet/test``."""
    root = tmp_path_factory.mktemp("clips")
    for benchmark, split, name in (
        ("msrvtt", "train_9k", "train"),
        ("msrvtt", "test_1k_a", "test"),
        ("activitynet", "val_1", "test"),
    ):
        folder = shared / "clips" / benchmark
        source = Source(
            benchmark=benchmark,
            annotations=str(folder),
            split=split,
            videos=str(folder / "videos"),
            domain=benchmark,
        )
        how = BuildOptions(samples_per_shard=8, encoding=Encoding(short_side=64, frames=4.0), workers=0)
        prepare(source, str(root / benchmark / name), how)
    return root


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An architecture that learns 60 clips by heart in seconds."""
    vision = {"image_size": 32, "patch_size": 16, "width": 48, "head_width": 16, "layers": 2, "pool_type": "avg"}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    path = tmp_path_factory.mktemp("clip") / "small.json"
    path.write_text(json.dumps({"embed_dim": 48, "vision_cfg": vision, "text_cfg": text}))
    return str(path)


@pytest.fixture(scope="session")
def train_words(clip: str) -> Callable[[str, str, str], list[str]]:
    """The run that all end-to-end tests repeat: two workers, ZeRO-2, fp32; 9 steps an epoch, 162 steps."""
    return partial(_train_words, clip)


def wait_for_checkpoint(run: str, command: Command) -> None:
    """Wait until a run directory holds a complete one."""
    command.wait_until(
        lambda: bool(Retention(run, keep=1).known()), pause_s=0.5
    )  # the server is a thread of this process


def _train_words(clip: str, shards: str, storage: str, name: str) -> list[str]:
    options = {
        "name": name,
        "storage": storage,
        "data.train": f"{shards}/msrvtt/train",
        "data.loader-workers": "0",
        "data.virtual-streams": "4",
        "data.sample-fps": "4",
        "model.clip": clip,
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
