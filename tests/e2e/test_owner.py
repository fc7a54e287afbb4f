"""A driver on another host is frozen, taken over, and wakes up: it ends, and changes nothing of the new one's run."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from glscl.data.shards import ShardSet
from tests.e2e.hosts import NAMED

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def on_host(name: str) -> list[str]:
    """Words before a command: another host's name, which makes process numbers mean nothing here."""
    return ["unshare", "--uts", "sh", "-c", NAMED, name]


def family(command: Any) -> Iterator[psutil.Process]:
    yield psutil.Process(command.process.pid)
    yield from command.descendants()


@pytest.mark.skipif(os.geteuid() != 0, reason="another host's name needs root")
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_a_frozen_driver_that_was_taken_over_ends(
    glscl: Callable[..., Any], make_shards: Callable[..., ShardSet], clip: str, tmp_path: Path
) -> None:
    options = {
        "name": "r",
        "storage": tmp_path / "runs",
        "data.train": make_shards(captions=[1] * 24, per_shard=4).uri,
        "data.loader-workers": 0,
        "data.virtual-streams": 6,
        "model.clip": clip,
        "training.global-batch": 6,
        "training.epochs": 1000,
        "training.precision": "fp32",
        "training.log-every": 1,
        "checkpoint.every-steps": 2,
    }
    words = ["train", *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
    run = tmp_path / "runs" / "r"
    first = glscl(*words, before=on_host("first"))
    first.wait_for_step(10)
    third = glscl(*words, before=on_host("third"))
    assert third.process.wait(120) == 2, "the first one's heart beats"
    assert "is in use: glscl train on host first, pid" in third.text().splitlines()[-1]
    frozen = list(family(first))
    for process in frozen:
        process.suspend()

    second = glscl(*words, before=on_host("second"))
    second.wait_for("for a sign of life from there")
    second.wait_for("taken over from glscl train on host first")
    second.wait_for("resumed step=")
    second.wait_for_step(10, after="resumed step=")
    for process in frozen:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    assert first.process.wait(120) == 2
    assert first.text().splitlines()[-1].startswith(f"glscl: FAILED {run} was taken over by glscl train on host second")
    assert json.loads((run / "status.json").read_text())["state"] == "running"

    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(120) == 128 + signal.SIGTERM
    rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows)), "nothing of the first one's came between"
    newest = max(path.name for path in run.glob("step_*"))
    assert f"checkpoint {newest}; the same command continues" in second.text().splitlines()[-1]
