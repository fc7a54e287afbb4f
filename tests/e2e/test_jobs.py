"""Jobs on a real cluster that demands a token: a command that follows a job ends with its verdict and exit status."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from glscl.data.shards import ShardSet
from glscl.system.session import PATIENCE

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Head:
    """A cluster of one node, and how to reach it."""

    url: str
    address: str
    environment: dict[str, str]

    def glscl(self, where: Path, *words: str, token: str | None = None) -> tuple[int, list[str]]:
        """Exit status and lines of a command that is run in another directory than the cluster's."""
        return self.run(where, sys.executable, "-m", "glscl", *words, token=token)

    def run(self, where: Path, *words: str, token: str | None = None) -> tuple[int, list[str]]:
        """The same of any command."""
        environment = self.environment | ({"RAY_AUTH_TOKEN": token} if token else {})
        environment |= {key: os.environ[key] for key in ("GLSCL_TEST", "TMPDIR")}
        done = subprocess.run(
            words,
            cwd=where,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert environment["RAY_AUTH_TOKEN"] not in done.stdout
        return done.returncode, done.stdout.splitlines()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """``ray start --head`` on ports and in a directory of its own; ended by its process id."""
    folder = tempfile.mkdtemp(prefix="glscl-ray-")  # short: sockets lie in it
    gcs, dashboard, listen, grpc, runtime_env, metrics, client = _free_ports(7)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "token-of-the-end-to-end-test",
        **PATIENCE,
    }
    ports = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": listen,
        "dashboard-agent-grpc-port": grpc,
        "runtime-env-agent-port": runtime_env,
        "metrics-export-port": metrics,
        "ray-client-server-port": client,
    }
    words = ["ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}/ray"]
    words += ["--object-store-memory=100000000", *(f"--{name}={port}" for name, port in ports.items())]
    with open(f"{folder}/head.log", "wb") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait_for(url, process, Path(folder) / "head.log")
        yield Head(url, f"127.0.0.1:{gcs}", environment)
    finally:
        head = psutil.Process(process.pid)
        family = [head, *head.children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=5)  # Ray itself gives idle workers 30 s
        for one in alive:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        _, alive = psutil.wait_procs(alive, timeout=600)
        shutil.rmtree(folder, ignore_errors=True)
        assert not alive, alive


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=2).close()
        except urllib.error.HTTPError as error:
            if error.code == 401:  # it is there, and asks for the token
                return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail(f"no dashboard at {url}: {log.read_text(encoding='utf-8', errors='replace')[-3000:]}")


def last(lines: Sequence[str]) -> str:
    assert sum(line.startswith("glscl: ") for line in lines) == 1, lines
    return lines[-1]


def test_a_failed_job_fails_with_its_own_reason(head: Head, tmp_path: Path) -> None:
    status, lines = head.glscl(
        tmp_path, "submit", "--address", head.url, "--name", "fails", "--", "shards", "info", "/nowhere"
    )
    assert status == 2, lines
    assert last(lines).startswith("glscl: FAILED /nowhere/manifest.json: no such file")
    assert "job fails" in lines


def test_a_job_succeeds_in_the_folder_that_was_sent(
    head: Head, tmp_path: Path, make_shards: Callable[..., ShardSet]
) -> None:
    make_shards("sent/toy", captions=[1] * 4, per_shard=2)
    words = ["submit", "--address", head.url, "--working-dir", "sent", "--", "shards", "info", "toy"]
    status, lines = head.glscl(tmp_path, *words)
    assert status == 0, lines
    assert last(lines) == "glscl: OK toy: 4 videos, 4 pairs in 2 shards"
    assert any(line.startswith("fingerprint: ") for line in lines)


RUN: dict[str, Any] = {
    "data": {"virtual_streams": 2, "loader_workers": 0, "sample_fps": 4.0},
    "model": {"clip": "glscl-tiny", "max_frames": 2, "max_words": 16, "head": "mean_pool"},
    "training": {"global_batch": 4, "max_steps": 2, "precision": "fp32", "zero_stage": 0},
}


@pytest.fixture
def sent(make_shards: Callable[..., ShardSet], tmp_path: Path) -> Path:
    """A folder with shards of two domains, to be sent along with a job."""
    for domain in ("one", "two"):
        for split, videos in (("train", 8), ("test", 6)):
            make_shards(domain, captions=[1] * videos, per_shard=2, root=str(tmp_path / "sent" / split), ids=split)
    return tmp_path / "sent"


@pytest.mark.slow
def test_a_training_by_rays_own_command(head: Head, sent: Path, tmp_path: Path) -> None:
    """Its first status is 0, with the verdict as the last line of the command's own; that of a failure is not 0."""
    run = RUN | {
        "storage": str(tmp_path / "runs"),
        "data": RUN["data"] | {"train": ["train/one"], "test": ["test/two"]},
    }
    (sent / "run.yaml").write_text(yaml.safe_dump(run))
    ray = ["ray", "job", "submit", "--address", head.url, "--working-dir", str(sent), "--"]
    train = [*ray, "python", "-m", "glscl", "train", "--config", "run.yaml", "--name"]
    status, lines = head.run(Path("/"), *train, "good")
    assert status == 0, lines
    assert sum(line.startswith("glscl: OK run=good step=2 ") for line in lines) == 1, lines
    assert (tmp_path / "runs" / "good" / "report.html").exists()
    status, lines = head.run(Path("/"), *train, "bad", "--data.test", "test/three")
    assert status == 1
    assert any("test/three/manifest.json: no such file" in line for line in lines if line.startswith("glscl: FAILED"))


@pytest.mark.exhaustive
def test_a_study_as_a_job(head: Head, sent: Path, tmp_path: Path) -> None:
    domains = {"one": {"train": ["train/one"], "test": "test/one"}}
    mean = {"group": "pooling", "what": "a mean", "run": {"model": {"head": "mean_pool"}}}
    wti = {"group": "attention", "what": "token-wise", "run": {"model": {"head": "wti"}}}
    study = {
        "storage": str(tmp_path / "runs"),
        "label": "two steps",
        "seeds": [1],
        "domains": domains,
        "comparisons": [["wti", "mean_pool"]],
        "union": False,
        "zero_shot": False,
        "conditions": {"short": {}},
        "variants": {"mean_pool": mean, "wti": wti},
        "run": RUN,
        "examples": 0,
        "resamples": 100,
    }
    (sent / "study.yaml").write_text(yaml.safe_dump(study))
    words = ["submit", "--address", head.url, "--working-dir", str(sent), "--", "study", "--config", "study.yaml"]
    status, lines = head.glscl(tmp_path, *words)
    assert status == 0, "\n".join(lines[-12:])
    assert last(lines).startswith("glscl: OK study=study cells=2/2")
    assert (tmp_path / "runs" / "study" / "report.html").exists()


@pytest.mark.exhaustive
def test_a_sweep_as_a_job(head: Head, sent: Path, tmp_path: Path) -> None:
    """Its dashboard asks for the token too, and is what gives the room of trials back."""
    sweep = {
        "storage": str(tmp_path / "runs"),
        "label": "two steps",
        "domains": {"one": {"train": ["train/one"], "validation": ["test/one"]}},
        "run": RUN,
        "space": {"training.lr_head": {"loguniform": [1e-4, 1e-2]}},
        "trials": 2,
        "scheduler": "none",
        "confirm_seeds": 0,
    }
    (sent / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    words = ["submit", "--address", head.url, "--working-dir", str(sent), "--", "sweep", "--config", "sweep.yaml"]
    status, lines = head.glscl(tmp_path, *words)
    assert status == 0, "\n".join(lines[-12:])
    assert last(lines).startswith("glscl: OK sweep=sweep trials=2/2")
    assert (tmp_path / "runs" / "sweep" / "best.yaml").exists()


def test_a_job_is_left_alone_listed_and_stopped(head: Head, tmp_path: Path) -> None:
    at = ["--address", head.url]
    toy = ["toy", "--domain", "toy_clips", "--split", "train", "--count", "100000", "--processes", "1"]
    status, lines = head.glscl(
        tmp_path, "submit", *at, "--name", "long", "--no-wait", "--", *toy, "--output", str(tmp_path)
    )
    assert status == 0, lines
    assert last(lines).startswith("glscl: OK job long submitted")
    status, lines = head.glscl(tmp_path, "jobs", "stop", "long", *at)
    assert (status, last(lines)) == (0, "glscl: OK job long: STOPPED")
    status, lines = head.glscl(tmp_path, "jobs", "logs", "long", *at)
    assert status == 143
    assert last(lines).startswith("glscl: FAILED job long was stopped")


def test_a_wrong_token_is_one_line(head: Head, tmp_path: Path) -> None:
    words = ["submit", "--address", head.url, "--", "presets"]
    status, lines = head.glscl(tmp_path, *words, token="not-the-token-of-the-cluster")
    assert status == 2
    assert len(lines) == 1
    assert "the cluster refuses this token; set RAY_AUTH_MODE=token" in lines[0]


def test_a_command_on_a_node_names_the_token_and_takes_it_without_being_told_to(
    head: Head, tmp_path: Path, make_shards: Callable[..., ShardSet]
) -> None:
    """``RAY_ADDRESS`` alone: Ray itself would send no token, and give up after a minute."""
    make_shards("there", captions=[1] * 4, per_shard=2)
    (tmp_path / "rows.csv").write_text("video_id,caption\n" + "".join(f"v{n:03d},text {n}\n" for n in range(4)))
    build = ["shards", "build", "--benchmark", "csv", "--annotations", str(tmp_path / "rows.csv"), "--split", "all"]
    build += ["--videos", str(tmp_path / "videos" / "there"), "--output"]
    alone = {key: value for key, value in head.environment.items() if key != "RAY_AUTH_MODE"}
    here = Head(head.url, head.address, alone | {"RAY_ADDRESS": head.address})
    status, lines = here.glscl(tmp_path, *build, str(tmp_path / "out"))
    assert status == 0, lines
    here.environment["RAY_AUTH_TOKEN"] = "not-the-token-of-the-cluster"
    status, lines = here.glscl(tmp_path, *build, str(tmp_path / "none"))
    assert status == 2, lines
    assert len(lines) == 1
    assert "the cluster refuses this token; set RAY_AUTH_MODE=token" in lines[0]


def test_doctor_finds_what_the_cluster_lacks(head: Head, tmp_path: Path, make_shards: Callable[..., ShardSet]) -> None:
    shards = make_shards(captions=[1] * 4, per_shard=2).uri
    words = ["doctor", "--address", head.url, "--storage", str(tmp_path / "runs"), "--shards", shards]
    status, lines = head.glscl(tmp_path, *words, "--workers", "3")
    rows = (re.split(r"  +", line) for line in lines)
    found = {row[0]: row[1:] for row in rows}
    assert status == 1, lines
    assert last(lines).startswith("glscl: FAILED ")
    for name in ("versions", "network", "clocks", "dashboard", "storage", "storage of nodes"):
        assert found[name][0] == "ok", lines
    assert found["cluster"][0] == "fail"
    assert found["cluster"][1].startswith("3 workers need 3 CPU (there: 2)")
    assert found["shards"][:2] == ["fail", "too few: 2 shards for 3 workers x 2 loader workers"]
