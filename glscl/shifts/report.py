"""The HTML page of an evaluation under shifts: one file for a screen of any width, light or dark, and for paper.

As on the page of an evaluation, everything that comes from data is escaped, and the content security policy forbids
whatever is not in the file.
"""

from __future__ import annotations

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, MEAN_RANK
from glscl.reporting.page import environment
from glscl.shifts.charts import hubness_chart, recall_chart
from glscl.shifts.results import ShiftResults
from glscl.version import __version__


def render_shifts(results: ShiftResults) -> str:
    """The page."""
    template = environment("glscl.shifts").get_template("shifts.html.j2")
    return template.render(
        results=results,
        version=__version__,
        directions=tuple(DIRECTIONS.items()),
        main_metric=MAIN_METRIC,
        mean_rank=MEAN_RANK,
        recall_charts=[[recall_chart(test, kind) for kind in results.kinds] for test in results.tests],
        hubness_charts=[[hubness_chart(test, kind) for kind in results.kinds] for test in results.tests],
    )
