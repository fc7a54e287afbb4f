"""Training on real video files: from a local path and from S3, killed and continued, bit by bit the same."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from glscl.system import storage
from glscl.training.checkpoint.retention import Retention
from tests.e2e.conftest import wait_for_checkpoint
from tests.fault_proxy import KINDS, FaultProxy

pytestmark = pytest.mark.e2e

Words = Callable[[str, str, str], list[str]]


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What the uninterrupted run ended with, for the tests that repeat it with interruptions."""
    return {}


def weights(run: str) -> str:
    return hashlib.sha256(storage.read_bytes(storage.join(run, "model", "weights.safetensors"))).hexdigest()


def test_memorises_real_clips_and_is_scored_in_both_domains(
    glscl: Callable[..., Any], train_words: Words, clips: Path, tmp_path: Path, kept: dict[str, Any]
) -> None:
    bank = ["--evaluation.normalisations", "--evaluation.bank-videos", "20"]
    output = glscl(*train_words(str(clips), str(tmp_path), "reference"), *bank).wait()
    run = tmp_path / "reference"
    results = json.loads((run / "results.json").read_text())
    train, test, other = results["tests"]
    assert train["text_to_video"]["R@1"] >= 90, output
    assert (train["videos"], train["texts"]) == (60, 180)
    assert (test["relation"], test["videos"]) == ("in-domain", 30)
    assert (other["domain"], other["relation"], other["videos"]) == ("activitynet", "cross-domain", 25)
    saw = {column["saw"] for column in other["normalised"] if column["name"] == "qb_norm"}
    assert saw == {
        "A query bank: 60 training captions of msrvtt × test videos.",
        "A query bank: 20 training videos of msrvtt × test captions.",
    }
    assert "<svg" in (run / "report.html").read_text()
    assert output.splitlines()[-1].startswith("glscl: OK run=reference")
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    saved = sorted(path for path in run.iterdir() if path.name.startswith("step_"))
    assert len(saved) == 2  # checkpoint.keep
    generators = [load_file(saved[-1] / f"generators-0000{rank}.safetensors")["cpu"] for rank in (0, 1)]
    assert not generators[0].equal(generators[1]), "every rank draws dropout masks of its own"
    kept["weights"] = weights(str(run))


def test_from_s3_that_fails_with_worker_and_driver_killed(
    glscl: Callable[..., Any],
    train_words: Words,
    clips: Path,
    bucket: str,
    proxy: FaultProxy,
    kept: dict[str, Any],
) -> None:
    """A fifth of all requests fails, in every way, from the first to the last."""
    for path in sorted(clips.rglob("*")):
        if path.is_file():
            storage.upload(str(path), storage.join(bucket, "shards", str(path.relative_to(clips))))
    run = f"{bucket}/runs/killed"
    proxy.rate = 0.2
    words = train_words(f"{bucket}/shards", f"{bucket}/runs", "killed")
    command = glscl(*words)
    command.wait_for_step(15)
    wait_for_checkpoint(run, command)  # uploads lag behind
    saved = Retention(run, 2).known()
    victim = command.workers()[-1]
    victim.kill()
    command.wait_for("resumed step=")
    resumed = [int(step) for step in re.findall(r"resumed step=(\d+)", command.text())]
    command.wait_for_step(resumed[0] + 15, after="resumed step=")
    command.kill()
    output = glscl(*words).wait()
    proxy.rate = 0
    assert proxy.injected.keys() >= {*KINDS} - {"stale_list"}, "a run hardly ever lists the same twice"
    assert sum(proxy.injected.values()) > proxy.requests / 10
    resumed += [int(step) for step in re.findall(r"resumed step=(\d+)", output)]
    assert 12 <= int(saved[0][5:13]) <= resumed[0] <= resumed[1], output
    rows = [json.loads(line) for line in storage.read_bytes(f"{run}/metrics.jsonl").splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)), "a resumed run's log reads as if nothing had happened"
    assert weights(run) == kept["weights"]
    assert storage.exists(f"{run}/report.html")
    assert len([name for name in storage.list_names(run) if name.startswith("step_")]) == 2, "no leftovers"


@pytest.mark.exhaustive
def test_adapters_killed_and_continued(
    glscl: Callable[..., Any], train_words: Words, clips: Path, tmp_path: Path
) -> None:
    """Frozen towers with LoRA and bottlenecks under ZeRO 3: what is saved is small, and enough to go on bit by bit."""
    adapters = ["--model.freeze", "towers", "--model.adapters.lora-rank", "2", "--model.adapters.bottleneck", "4"]
    more = [*adapters, "--training.zero-stage", "3", "--training.epochs", "5", "--data.test", f"{clips}/msrvtt/test"]
    output = glscl(*train_words(str(clips), str(tmp_path), "reference"), *more).wait()
    assert re.search(r"^trained: 0\.\d\d M of \d\.\d\d M parameters \(towers 0\.00 M, adapters", output, re.MULTILINE)
    words = [*train_words(str(clips), str(tmp_path), "killed"), *more]
    command = glscl(*words)
    command.wait_for_step(15)
    wait_for_checkpoint(str(tmp_path / "killed"), command)
    command.workers()[-1].kill()
    command.wait_for("resumed step=")
    command.wait_for_step(30, after="resumed step=")
    command.kill()
    assert "resumed step=" in glscl(*words).wait()
    assert weights(str(tmp_path / "killed")) == weights(str(tmp_path / "reference"))
    names = load_file(tmp_path / "killed" / "model" / "weights.safetensors").keys()
    assert "towers.text.token_embedding.weight" not in names
    assert {name.split(".")[0] for name in names} == {"towers", "head", "logit_scale"}
