"""The page of a sweep: one file, nothing loaded from elsewhere, for a screen of any width, light or dark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glscl import __version__
from glscl.reporting.charts import line_chart
from glscl.reporting.formats import when
from glscl.reporting.page import environment
from glscl.study.charts import si
from glscl.study.report import duration, number, signed
from glscl.system.storage import write_bytes
from tune import charts
from tune.results import SweepResults, Value, parse_sweep

FEW = 10
"""Trials per searched key below which the page warns of the importances."""


def write_sweep_report(results: Mapping[str, Any] | SweepResults, output_uri: str) -> None:
    """Write the page of a sweep.

    Args:
        results: see :mod:`tune.results`.
        output_uri: the HTML file, local or ``s3://``.

    Raises:
        UserError: ``results`` lack something.
    """
    write_bytes(output_uri, render_sweep(results).encode())


def render_sweep(results: Mapping[str, Any] | SweepResults) -> str:
    """Return the page as :func:`write_sweep_report` writes it.

    Raises:
        UserError: ``results`` lack something.
    """
    sweep = parse_sweep(results)
    templates = environment(
        "tune", number=number, signed=signed, duration=duration, when=when, short=short, si=si, last_part=last_part
    )
    best = next((trial for trial in sweep.trials if trial.name == sweep.best), None)
    curves = [line_chart("best of the finished trials, over trials ended", {"best": charts.best_so_far(sweep)})]
    scored = {
        trial.name: [(float(step.step), step.objective) for step in trial.history]
        for trial in sweep.trials
        if trial.history
    }
    learning = line_chart("objective of every trial, over steps", scored)
    return templates.get_template("sweep.html.j2").render(
        sweep=sweep,
        version=__version__,
        best=best,
        states={trial.name: trial.state for trial in sweep.trials},
        parallel=charts.parallel(sweep),
        plots=charts.parameter_plots(sweep),
        curves=[curve for curve in curves if curve is not None],
        learning=learning,
        frame=charts.FRAME,
        plot=(charts.PLOT_TOP, charts.PLOT_BOTTOM),
        few=sweep.importance.trials < FEW * len(sweep.parameters),
        enough=FEW * len(sweep.parameters),
        saved=1 - sweep.budget.trained / sweep.budget.full if sweep.budget.full else 0.0,
    )


def short(value: Value) -> str:
    """A value in three significant digits, or as it is."""
    return f"{value:.3g}".replace("-", "−") if isinstance(value, float) else str(value)


def last_part(key: str) -> str:
    """``model.heads.glscl.tau`` -> ``glscl.tau``: a key in its last section."""
    return ".".join(key.split(".")[-2:])
