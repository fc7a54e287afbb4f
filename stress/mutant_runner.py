"""Run tests again and again on a copy of the tree that is changed in between, without importing the libraries anew."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PRELOAD = "import numpy, torch, scipy.stats, av, pydantic, pytest, s3fs, moto.server, boto3, open_clip, ray.train.torch"
"""What a runner imports before it forks a process per mutant: minutes over a whole sample."""

LIMIT_S = 600.0
"""A mutant that hangs is killed, and counts as killed."""


class Runner:
    """A copy of the tree, and a process that has the libraries in memory and forks one child per mutant."""

    def __init__(self, scratch: Path, number: int) -> None:
        self.tree = scratch / str(number) / "tree"
        files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, files.split("\0")):
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.tree / name)
        if (ROOT.parent / "shared").is_dir():
            (self.tree.parent / "shared").symlink_to((ROOT.parent / "shared").resolve())
        environment = os.environ | {
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1",  # a stale one would be the code before the change
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER.format(preload=PRELOAD)],
            cwd=self.tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def passes(self, tests: tuple[str, ...]) -> bool:
        """Run tests in a fresh child; whether they pass within the limit."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"tests": tests, "limit": LIMIT_S}), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline()) == 0  # type: ignore[no-any-return]

    def survives(self, name: str, changed: str, tests: tuple[str, ...]) -> bool:
        """Change a file of the copy, run tests, change it back; whether they pass."""
        path = self.tree / name
        source = path.read_text(encoding="utf-8")
        path.write_text(changed, encoding="utf-8")
        try:
            return self.passes(tests)
        finally:
            path.write_text(source, encoding="utf-8")

    def close(self) -> None:
        """End the process, and the tests that it is running."""
        family = [*psutil.Process(self._process.pid).children(recursive=True), self._process]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


_SERVER = """
import json, os, signal, sys, time
{preload}
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not exhaustive", *job["tests"]])
        os._exit(int(status))
    end = time.monotonic() + job["limit"]
    done = 0
    while not done and time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.02)
    try:
        os.killpg(child, signal.SIGKILL)  # processes that the tests left, or a child that hangs
    except ProcessLookupError:
        pass
    if not done:
        os.waitpid(child, 0)
    print(json.dumps(os.waitstatus_to_exitcode(status) if done else -1), flush=True)
"""
