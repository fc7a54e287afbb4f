"""A run on S3 whose worker hangs and that is then stopped: it names who, saves, says so, and keeps its secrets."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import s3fs

from glscl.system import storage
from glscl.training.checkpoint.retention import Retention
from tests.e2e.conftest import wait_for_checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Words = Callable[[str, str, str], list[str]]
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "recognisable/secret/of/the/test",
    "AWS_SESSION_TOKEN": "recognisable-session-token",
}


@pytest.fixture
def secret(bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return bucket


def test_a_frozen_worker_is_named_and_sigterm_saves(
    glscl: Callable[..., Any], train_words: Words, clips: Path, secret: str, leaves_nothing: Path, tmp_path: Path
) -> None:
    words = [*train_words(str(clips), f"{secret}/runs", "stopped"), "--data.loader-workers", "1"]
    words += ["--training.epochs", "100"]  # it must not end before it is told to
    command = glscl(*words, "--training.hang-timeout-s", "15", "--training.max-failures", "1")
    command.wait_for_step(15)
    wait_for_checkpoint(f"{secret}/runs/stopped", command)
    rank = next(one for one in command.workers() if "RayTrainWorker" not in " ".join(one.parent().cmdline()))
    rank.send_signal(signal.SIGSTOP)
    second = glscl(*words)  # while the first has a worker to wait for
    assert second.process.wait(120) == 2
    said = second.text().splitlines()[-1]
    assert said.startswith(
        f"glscl: FAILED {secret}/runs/stopped is in use: glscl train on host {socket.gethostname()}, "
        f"pid {command.process.pid}, last heartbeat "
    )
    command.wait_for("resumed step=")
    resumed = int(command.text().partition("resumed step=")[2].split()[0])
    said = next(line for line in command.text().splitlines() if line.startswith("watchdog: "))
    assert f", pid {rank.pid}) has not been heard of for" in said
    assert "waiting for it in a collective: rank" in said
    command.wait_for_step(resumed + 1, after="resumed step=")
    assert not with_secrets(secret, leaves_nothing), "also in the logs that Ray keeps while it runs"

    command.process.send_signal(signal.SIGTERM)
    assert command.process.wait(120) == 128 + signal.SIGTERM
    last = command.text().splitlines()[-1]
    run = f"{secret}/runs/stopped"
    newest = max(Retention(run, keep=1).known())  # a folder that a frozen worker left half uploaded is none
    step = int(newest.split("-")[0].removeprefix("step_"))
    assert step > resumed, last
    assert last == f"glscl: FAILED stopped by SIGTERM at step {step}, checkpoint {newest}; the same command continues"
    status = json.loads(storage.read_bytes(f"{run}/status.json"))
    assert (status["state"], f"glscl: FAILED {status['verdict']}") == ("stopped", last)

    # The restart has used up max_failures; now the storage goes away, whose client says a lot.
    monkey = glscl(*words, "--storage", "s3://nowhere/runs")
    assert monkey.process.wait(120) != 0
    assert not with_secrets(secret, tmp_path, leaves_nothing)


def with_secrets(bucket: str, *folders: Path) -> list[str]:
    """Whatever the run wrote, on S3 or on disk, that holds a secret."""
    fs, path = storage.filesystem(bucket)
    written = {name: fs.cat_file(name) for name in fs.find(path)}
    for folder in folders:
        for file in folder.rglob("*"):
            with suppress(OSError):  # no file, or gone meanwhile
                written[str(file)] = file.read_bytes()
    assert any(name.endswith("metrics.jsonl") for name in written)
    return [name for name, data in written.items() if any(value.encode() in data for value in SECRETS.values())]
