"""What the results of a study and a sweep begin with: the verdict, and the code and machine that made them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import torch
from pydantic import BaseModel, ConfigDict

from glscl.data.quarantine import describe_incomplete
from glscl.evaluation.results import Incomplete
from glscl.runs.options import RunsConfig
from glscl.system.redaction import redact
from glscl.training.driver.outputs import git_commit


class Section(BaseModel):
    """A part of results; keys that are not known are ignored when they are read."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Summary(Section):
    """What the results of a study and of a sweep begin with."""

    name: str
    label: str
    """What the figures are figures of, shown first: "toy domains, not MSR-VTT"."""
    verdict: str
    created: str
    """ISO 8601."""
    git_commit: str | None
    command: str
    machine: str
    claims: list[str]
    """Sentences generated from the intervals, the answer to the main question first."""
    incomplete: list[Incomplete] = []
    """Sets of which videos are missing in some run, at its fewest."""


def summarise(
    config: RunsConfig, progress: str, claims: list[str], incomplete: Sequence[Incomplete], *, use_gpu: bool
) -> Summary:
    """Summarise what this process reports now; ``progress`` follows the name in the verdict."""
    verdict = f"{config.kind}={config.name} {progress} {' '.join(claims[:1])} [{config.label}]"
    if incomplete:
        verdict += f"; incomplete: {describe_incomplete(entry.model_dump() for entry in incomplete)}"
    return Summary(
        name=config.name,
        label=config.label,
        verdict=verdict,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(),
        command=redact(" ".join(["glscl", *sys.argv[1:]])),
        machine=describe_machine(use_gpu),
        claims=claims,
        incomplete=list(incomplete),
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
