"""What the processes that these tests start have in common."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks for one when it is imported
multiprocessing.set_forkserver_preload(  # imports once, for all processes; the last two are what DeepSpeed adds later
    ["glscl.training.driver.launch", "deepspeed", "torch.utils.cpp_extension", "torch._dynamo"]
)


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty run directory."""
    return str(tmp_path / "run") if request.param == "local" else f"{request.getfixturevalue('bucket')}/run"
