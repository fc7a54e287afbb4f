"""The HTML page of a study: one file for a screen of any width, light or dark, and for paper.

As on the page of an evaluation, everything that comes from data is escaped, and the content security policy forbids
whatever is not in the file.
"""

from collections.abc import Mapping, Sequence

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, METRICS, RECALL_LEVELS, RECALLS, RELEVANT_SUMMARY
from glscl.reporting.page import environment
from glscl.reporting.plots import round_numbers
from glscl.reporting.published import PublishedRow, for_domain
from glscl.runs.options import ZERO_SHOT
from glscl.study import charts, controls, decomposition, galleries, matched, orders, sections, wise_ft
from glscl.study.answer import build_answer
from glscl.study.results import StudyResults, TestSet, parse_study
from glscl.version import __version__


def render_study(results: Mapping[str, object] | StudyResults, published: Sequence[PublishedRow] = ()) -> str:
    """The page, published figures beside its own. Raises `UserError`: ``results`` lack something, a bad thumbnail."""
    study = parse_study(results)
    conditions = [sections.build_condition(study, name) for name in study.conditions]
    recalls = [result.text_to_video[MAIN_METRIC].estimate for result in study.results]
    top = sections.scale_top([*recalls, *(test.chance for test in study.tests)])
    by_test, elsewhere = _sort_published(study, published)
    template = environment("glscl.study").get_template("study.html.j2")
    return template.render(
        study=study,
        version=__version__,
        charts=charts,
        controls=controls,
        control_rows={name: controls.control_rows(study, name) for name in study.conditions},
        matched=matched,
        matched_pairs=matched.matched_pairs(study),
        wise_ft=wise_ft,
        wise_ft_tables=wise_ft.wise_ft_tables(study),
        gallery_tables=galleries.gallery_tables(study),
        decomposition=decomposition,
        orders=orders,
        conditions=conditions,
        answer=build_answer(study),
        directions=tuple(DIRECTIONS.items()),
        metrics=METRICS,
        main_metric=MAIN_METRIC,
        recalls=RECALLS,
        relevant_summary=RELEVANT_SUMMARY,
        recall_levels=RECALL_LEVELS,
        trained=[variant for variant in study.variants if variant.name != ZERO_SHOT],
        zero_shot=ZERO_SHOT,
        light=sections.shades(sections.LIGHT_STOPS),
        dark=sections.shades(sections.DARK_STOPS),
        scale={"top": top, "ticks": round_numbers(0, top, 6)},
        heat_step=lambda value: sections.scale_step(value, top),
        scores=any(condition.has_further_scores for condition in conditions),
        published=by_test,
        elsewhere=elsewhere,
        backbones=sorted({row.backbone for row in published if row.backbone}),
    )


def _sort_published(
    study: StudyResults, published: Sequence[PublishedRow]
) -> tuple[list[tuple[TestSet, list[PublishedRow]]], list[tuple[str, list[PublishedRow]]]]:
    """Sort published figures by the study's test sets, and those of other data sets by data set."""
    by_test = [(test, rows) for test in study.tests if (rows := for_domain(list(published), test.name))]
    shown = {row.dataset for _, rows in by_test for row in rows}
    elsewhere: dict[str, list[PublishedRow]] = {}
    for row in published:
        if row.dataset not in shown:
            elsewhere.setdefault(row.dataset, []).append(row)
    return by_test, list(elsewhere.items())
