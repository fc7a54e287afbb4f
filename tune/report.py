"""The HTML page of a sweep: one file for a screen of any width, light or dark, and for paper."""

from collections.abc import Mapping

from glscl.reporting.page import environment
from glscl.version import __version__
from tune import charts
from tune.results import SweepResults, parse_sweep

FEW = 10
"""Trials per searched key below which the page warns of the importances."""


def render_sweep(results: Mapping[str, object] | SweepResults) -> str:
    """Return the page of a sweep. Raises `UserError`: ``results`` lack something."""
    sweep = parse_sweep(results)
    enough = FEW * len(sweep.parameters)
    template = environment("tune").get_template("sweep.html.j2")
    return template.render(
        sweep=sweep,
        version=__version__,
        best=next((trial for trial in sweep.trials if trial.name == sweep.best), None),
        charts=charts,
        few=sweep.importance.trials < enough,
        enough=enough,
        saved=1 - sweep.budget.trained / sweep.budget.full if sweep.budget.full else 0.0,
    )
