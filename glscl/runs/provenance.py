"""Provenance of a result: when, by which command, from which code and on which machine it was made."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from glscl.system.redaction import redact
from glscl.training.driver.outputs import git_commit


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a result came to be."""

    created: str
    """ISO 8601."""
    git_commit: str | None
    command: str
    machine: str


def record_provenance(use_gpu: bool) -> Provenance:
    """Provenance of what this process writes now."""
    return Provenance(
        datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit(),
        redact(" ".join(["glscl", *sys.argv[1:]])),
        describe_machine(use_gpu),
    )


def describe_machine(use_gpu: bool) -> str:
    """Describe the machine that this process runs on."""
    if use_gpu and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    return f"{os.cpu_count()} CPU cores ({name}), no GPU used, torch {torch.__version__}"
