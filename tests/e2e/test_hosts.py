"""Hosts with names and addresses of their own train what workers of one machine train, bit for bit."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glscl.data.shards import ShardSet
from tests.e2e.hosts import Hosts

pytestmark = [pytest.mark.e2e, pytest.mark.exhaustive]


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
@pytest.mark.skipif(not (shutil.which("ip") and shutil.which("unshare")), reason="needs iproute2 and unshare")
def test_three_and_two_hosts_train_what_one_does(
    glscl: Callable[..., Any], make_shards: Callable[..., ShardSet], clip: str, tmp_path: Path
) -> None:
    """Each host has room for one worker. Their names resolve nowhere, so gloo has to be told its interface."""
    options = {
        "storage": tmp_path / "runs",
        "data.train": make_shards(captions=[1] * 24, per_shard=4).uri,
        "data.loader-workers": 0,
        "data.virtual-streams": 6,
        "model.clip": clip,
        "training.global-batch": 6,
        "training.epochs": 2,
        "training.precision": "fp32",
        "training.zero-stage": 2,
    }
    words = ["train", *(str(word) for key, value in options.items() for word in (f"--{key}", value))]
    with Hosts(3) as hosts:
        for host in range(3):
            hosts.start(host, cpus=1)
        for workers in ("3", "2"):
            here = [*words, "--training.num-workers", workers, "--training.cpus-per-worker", "0.5"]
            there = [*words, "--training.num-workers", workers]
            one = glscl(*here, "--name", f"one-host-{workers}")
            several = glscl(*there, "--name", f"hosts-{workers}", environment=hosts.environment, before=hosts.inside(0))
            output = several.wait()
            one.wait()
            assert f"global batch: 6 pairs = {workers} workers" in output
            assert weights(tmp_path / "runs" / f"hosts-{workers}") == weights(tmp_path / "runs" / f"one-host-{workers}")
    assert weights(tmp_path / "runs" / "hosts-3") != weights(tmp_path / "runs" / "hosts-2")  # sums in another order


def weights(run: Path) -> str:
    return hashlib.sha256((run / "model" / "weights.safetensors").read_bytes()).hexdigest()
