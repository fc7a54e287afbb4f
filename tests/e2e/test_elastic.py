"""A run on a range of workers loses a node, goes on with what is left, and grows back: the same pairs, the same losses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glscl import storage
from tests.e2e.hosts import Hosts

pytestmark = pytest.mark.e2e

Words = Callable[[str, str, str], list[str]]


def test_a_run_shrinks_and_grows_with_its_nodes(
    glscl: Callable[..., Any], train_words: Words, clips: Path, bucket: str, tmp_path: Path
) -> None:
    """Of 1 to 3 workers, 3 does not divide the global batch: two work, then one, then two again, on S3."""
    common = [*train_words(str(clips), f"{bucket}/runs", "elastic"), "--data.test", f"{clips}/msrvtt/test"]
    common += ["--training.epochs", "8", "--checkpoint.every-steps", "12", "--training.log-every", "1"]
    common += ["--model.heads.glscl.dropout", "0"]  # masks are drawn anew by another number of workers
    elastic = ["--training.num-workers", "1", "3", "--training.restart-cost-s", "0", "--training.max-failures", "0"]
    with Hosts() as hosts:
        for number, cpus in enumerate((0, 2, 1)):
            hosts.start(number, cpus)
        command = glscl(*common, *elastic, environment=hosts.environment)
        command.wait_for_step(14)
        import time; t=time.monotonic(); print("step 14", t)
        hosts.lose(1)
        print("lost", time.monotonic()-t)
        command.wait_for("global batch: 20 pairs = 1 workers x 2 parts x 10")
        print("1 worker", time.monotonic()-t)
        hosts.start(3, 2)
        print("node 3", time.monotonic()-t)
        output = command.wait()
        print("end", time.monotonic()-t)
        print(output)
