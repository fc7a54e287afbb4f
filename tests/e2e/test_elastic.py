"""A run on a range of workers loses a node, goes on with what is left, and grows back: the same pairs and losses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glscl.system import storage
from tests.e2e.conftest import wait_for_checkpoint
from tests.e2e.hosts import Hosts

pytestmark = pytest.mark.e2e

Words = Callable[[str, str, str], list[str]]


ADAPTERS = ("--model.freeze", "image", "--model.adapters.lora-rank", "4")


@pytest.mark.parametrize(
    "model",
    [
        pytest.param((), marks=pytest.mark.slow, id="all trained"),
        pytest.param(ADAPTERS, marks=pytest.mark.exhaustive, id="adapters"),
    ],
)
def test_a_run_shrinks_and_grows_with_its_nodes(
    glscl: Callable[..., Any], train_words: Words, clips: Path, bucket: str, model: tuple[str, ...]
) -> None:
    """Of 1 to 3 workers, 3 do not divide the global batch: two work, then one, then two again; all is on S3."""
    common = [*train_words(str(clips), f"{bucket}/runs", "elastic"), "--data.test", f"{clips}/msrvtt/test"]
    common += ["--training.epochs", "14", "--checkpoint.every-steps", "10", "--training.log-every", "1"]
    common += ["--model.clip", "glscl-tiny", *model]  # slow enough for a node to come back
    common += ["--training.lr-towers", "3e-5", "--training.lr-head", "3e-5"]  # rounding grows with the rates
    common += ["--model.heads.glscl.dropout", "0"]  # masks are drawn anew by another number of workers
    elastic = ["--training.num-workers", "1", "3", "--training.restart-cost-s", "0", "--training.max-failures", "0"]
    with Hosts() as hosts:
        for number, cpus in enumerate((0, 2, 1)):
            hosts.start(number, cpus)
        command = glscl(*common, *elastic, environment=hosts.environment)
        command.wait_for_step(10)
        wait_for_checkpoint(f"{bucket}/runs/elastic", command)
        hosts.lose(1)
        command.wait_for("lost the node at ")
        command.wait_for("pairs = 1 workers")
        hosts.start(3, cpus=2)
        output = command.wait()
        one = ["--training.num-workers", "1", "--data.test"]  # cheaper than two, and as good
        glscl(*common, "--name", "undisturbed", *one, environment=hosts.environment).wait()
    sizes = re.findall(r"global batch: 20 pairs = (\d) workers x (\d) parts", output)
    assert list(dict.fromkeys(sizes)) == [("2", "1"), ("1", "2")]
    assert sizes[-1] == ("2", "1")
    assert re.search(r"nodes have joined: from 1 to 2 workers", output)
    scratch = re.findall(r"of [12] workers \(ZeRO 2\) for [12]: about 0\.\d GB in (\S+) and \d+ s", output)
    assert len(set(scratch)) == 2
    assert not any(Path(folder).exists() for folder in scratch)
    assert re.search(r"glscl: OK run=elastic step=126 msrvtt/test_1k_a", output)
    disturbed, undisturbed = (losses(f"{bucket}/runs/{name}") for name in ("elastic", "undisturbed"))
    assert [step for step, _ in disturbed] == list(range(1, 127))
    assert [loss for _, loss in disturbed] == pytest.approx([loss for _, loss in undisturbed], rel=1e-5)


def losses(run: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in storage.read_bytes(f"{run}/metrics.jsonl").splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]
