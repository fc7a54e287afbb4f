"""The HTML page of a study: one file for a screen of any width, light or dark, and for paper.

As on the page of an evaluation, everything that comes from data is escaped, and the content security policy forbids
whatever is not in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from glscl import __version__
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, METRICS, RECALL_LEVELS, RECALLS
from glscl.reporting.page import environment
from glscl.reporting.plots import round_numbers
from glscl.reporting.published import PACKAGED, PublishedRow, for_domain, read_published
from glscl.runs.options import ZERO_SHOT
from glscl.study import charts, scales
from glscl.study.results import (
    Result,
    StudyResults,
    TestSet,
    parse_study,
)
from glscl.study.sections import build_condition, build_paper_rows, has_further_scores
from glscl.system.storage import write_bytes

CITATIONS = (
    (
        "The method",
        """@article{glscl,
  title   = {Global-Local Semantic Consistent Learning for Text-Video Retrieval},
  author  = {Haonan Zhang and Pengpeng Zeng and Lianli Gao and Jingkuan Song and Yihang Duan and Xinyu Lyu and
             Hengtao Shen},
  journal = {IEEE Transactions on Image Processing},
  year    = {2025},
  note    = {arXiv:2405.12710}
}""",
    ),
    (
        "Consistency between granularities (GLCCL)",
        """@inproceedings{glccl,
  author    = {Jing and Yang and Yang},
  booktitle = {CAC},
  year      = {2025},
  doi       = {10.1109/CAC67268.2025.11487249},
  note      = {GLCCL, arXiv:2605.17959}
}""",
    ),
)


def write_study_report(
    results: Mapping[str, object] | StudyResults, output_uri: str, *, published: str | None = None
) -> None:
    """Write the page of a study.

    Args:
        results: see :mod:`glscl.study.results`.
        output_uri: the HTML file, local or ``s3://``.
        published: CSV of published figures (:func:`glscl.reporting.published.read_published`); the packaged ones if
            None.

    Raises:
        UserError: ``results`` or the CSV lack something.
    """
    write_bytes(output_uri, render_study(results, read_published(published or PACKAGED)).encode())


def render_study(results: Mapping[str, object] | StudyResults, published: Sequence[PublishedRow] = ()) -> str:
    """Return the page as :func:`write_study_report` writes it.

    Raises:
        UserError: ``results`` lack something, or a thumbnail is no picture.
    """
    study = parse_study(results)
    templates = environment("glscl.study")
    conditions = [build_condition(study, name) for name in study.conditions]
    top = _top_of_scale(study)
    by_test, elsewhere = _sort_published(study, published)
    return templates.get_template("study.html.j2").render(
        study=study,
        version=__version__,
        charts=charts,
        conditions=conditions,
        directions=tuple(DIRECTIONS.items()),
        metrics=METRICS,
        main_metric=MAIN_METRIC,
        recalls=RECALLS,
        recall_levels=RECALL_LEVELS,
        trained=[variant for variant in study.variants if variant.name != ZERO_SHOT],
        zero_shot=ZERO_SHOT,
        light=scales.shades(scales.LIGHT_STOPS),
        dark=scales.shades(scales.DARK_STOPS),
        scale={"top": top, "ticks": round_numbers(0, top, 6)},
        heat_step=lambda value: scales.scale_step(value, top),
        paper=build_paper_rows(study),
        scores=any(has_further_scores(condition) for condition in conditions),
        published=by_test,
        elsewhere=elsewhere,
        backbones=sorted({row.backbone for row in published if row.backbone}),
        citations=CITATIONS,
        ours=_in_domain_results,
    )


def _top_of_scale(study: StudyResults) -> float:
    """End of the heat maps' scale: above every R@1 and the chance on every test set."""
    recalls = [result.text_to_video[MAIN_METRIC].estimate for result in study.results]
    return scales.scale_top([*recalls, *(test.chance for test in study.tests)])


def _sort_published(
    study: StudyResults, published: Sequence[PublishedRow]
) -> tuple[list[tuple[TestSet, list[PublishedRow]]], list[tuple[str, list[PublishedRow]]]]:
    """Sort published figures by the study's test sets, and those of other data sets by data set."""
    by_test = [(test, rows) for test in study.tests if (rows := for_domain(list(published), test.name))]
    shown = {row.dataset for _, rows in by_test for row in rows}
    return by_test, _group_by_dataset(row for row in published if row.dataset not in shown)


def _group_by_dataset(rows: Iterable[PublishedRow]) -> list[tuple[str, list[PublishedRow]]]:
    by_dataset: dict[str, list[PublishedRow]] = {}
    for row in rows:
        by_dataset.setdefault(row.dataset, []).append(row)
    return list(by_dataset.items())


def _in_domain_results(study: StudyResults, test: TestSet) -> list[Result]:
    """Select the results beside published figures, which are in-domain too."""
    return [result for result in study.results if result.test == test.name and result.relation == "in-domain"]
