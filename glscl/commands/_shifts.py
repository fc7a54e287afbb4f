"""What `glscl eval --shifts` does in place of an ordinary evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from glscl.data.quarantine import Quarantine
from glscl.data.shifts import Shift
from glscl.evaluation.options import EvaluationConfig
from glscl.shifts.console import print_shifts
from glscl.shifts.report import render_shifts
from glscl.shifts.run import shift_model
from glscl.system import storage
from glscl.system.nodes import Share
from glscl.system.ownership import Fence

RESULTS = "shifts.json"
REPORT = "shifts.html"


def score_shifts(
    run: str,
    tests: Sequence[str],
    shifts: Sequence[Shift],
    config: EvaluationConfig,
    share: Share,
    quarantine: Quarantine,
    output: str,
    fence: Fence,
) -> str:
    """Score, write ``shifts.json`` and ``shifts.html``, print the table; returns the verdict. Errors: `shift_model`."""
    results = shift_model(run, tests, shifts, config, share, quarantine)
    fence.check()
    storage.write_json(storage.join(output, RESULTS), results.model_dump())
    page = storage.join(output, REPORT)
    storage.write_bytes(page, render_shifts(results).encode())
    print_shifts(results)
    return f"{results.verdict} report={page}"
