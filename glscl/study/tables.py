"""The tables of a study for other programs and for papers: CSV with everything, LaTeX with the main figures.

A CSV field without a figure is empty. The LaTeX tables need ``\\usepackage{booktabs}``; each carries the study's label
in its caption, so that nobody takes its figures for another benchmark's.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields

from jinja2 import Environment, PackageLoader, StrictUndefined

from glscl.evaluation.cost import HeadCost
from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, MEDIAN_RANK, RECALL_LEVELS, Direction, recall_name
from glscl.reporting.formats import interval, p_value, si, signed
from glscl.runs.options import ZERO_SHOT
from glscl.study import decomposition
from glscl.study.galleries import GALLERY_COLUMNS, gallery_rows
from glscl.study.matched import MATCHED_COLUMNS, matched_rows
from glscl.study.results import Comparison, Estimate, Result, StudyResults, parse_study
from glscl.study.wise_ft import WISE_FT_COLUMNS, wise_ft_rows
from glscl.system.storage import join, write_bytes

RESULT_COLUMNS = (
    "study", "label", "condition", "variant", "head", "group", "training", "test", "split", "relation", "direction",
    "metric", "estimate", "low", "high", "sd", "seeds", "scores", "note", "videos", "videos_of",
)  # fmt: skip
CONTROL_COLUMNS = (
    "condition", "variant", "training", "test", "relation", "frames", "direction", "estimate", "low", "high", "change",
    "change_low", "change_high", "sd", "seeds", "hubness",
)  # fmt: skip
COST_COLUMNS = ("condition", "variant", *(field.name for field in fields(HeadCost)), "machine")

LATEX = str.maketrans({character: rf"\{character}" for character in "{}_&%$#"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "→": r"$\rightarrow$", "−": "$-$", "×": r"$\times$", "±": r"$\pm$", "≤": r"$\leq$",
    "≥": r"$\geq$", "∞": r"$\infty$", "–": "--",
})  # fmt: skip


def write_study_tables(results: Mapping[str, object] | StudyResults, folder_uri: str) -> None:
    """Write the CSV and three LaTeX tables into a folder. Raises `UserError`: ``results`` lack something."""
    study = parse_study(results)
    costs = (
        asdict(cost) | {"length_tied": "; ".join(cost.length_tied), "machine": study.cost_machine}
        for cost in study.costs
    )
    files = {
        "results.csv": _csv(RESULT_COLUMNS, _result_rows(study)),
        "comparisons.csv": _csv(tuple(Comparison.model_fields), (row.model_dump() for row in study.comparisons)),
        "costs.csv": _csv(COST_COLUMNS, costs),
        **({"controls.csv": _csv(CONTROL_COLUMNS, _control_rows(study))} if study.controls else {}),
        **({"wise_ft.csv": _csv(WISE_FT_COLUMNS, wise_ft_rows(study))} if study.wise_ft else {}),
        **({"matched.csv": _csv(MATCHED_COLUMNS, matched_rows(study))} if study.matched else {}),
        **({"galleries.csv": _csv(GALLERY_COLUMNS, gallery_rows(study.galleries))} if study.galleries else {}),
        **({"decomposition.csv": _csv(*decomposition.csv_table(study))} if study.decompositions else {}),
        **_latex_tables(study),
    }
    for name, text in files.items():
        write_bytes(join(folder_uri, name), text.encode())


def latex(text: str) -> str:
    """Escape what LaTeX would read as a command."""
    return " ".join(text.split()).translate(LATEX)


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: value for k, value in row.items() if not isinstance(value, float) or math.isfinite(value)})
    return out.getvalue()


def _result_rows(study: StudyResults) -> Iterator[dict[str, object]]:
    """One row per result, direction and metric, the normalised ones and those without leaked videos included."""
    variants = {variant.name: variant for variant in study.variants}
    tests = {test.name: test for test in study.tests}
    for result in study.results:
        variant, test = variants.get(result.variant), tests.get(result.test)
        shared = {
            "study": study.name,
            "label": study.label,
            "condition": result.condition,
            "variant": result.variant,
            "head": variant.head if variant else None,
            "group": variant.group if variant else None,
            "training": result.training,
            "test": result.test,
            "split": test.split if test else None,
            "relation": result.relation,
            "videos": test.videos if test else None,
            "videos_of": test.videos_of if test else None,
        }
        seeds = result.text_to_video[MAIN_METRIC].seeds
        for figure in _figures(result):
            yield {**shared, "scores": "raw", "seeds": seeds, **figure}


def _control_rows(study: StudyResults) -> Iterator[dict[str, object]]:
    """One row per control and direction: R@1, and its change from the ordinary frames."""
    for control in study.controls:
        for direction in DIRECTIONS:
            recall, change = control.recall[direction], control.change[direction]
            yield {
                **control.model_dump(exclude={"recall", "change"}),
                **recall.model_dump(include={"estimate", "low", "high", "seeds"}),
                "direction": direction,
                "change": change.estimate,
                "change_low": change.low,
                "change_high": change.high,
                "sd": recall.deviation,
            }


def _figures(result: Result) -> Iterator[dict[str, object]]:
    """Every figure of a result: the raw ones, then those that saw more, or were counted otherwise."""
    for direction in DIRECTIONS:
        for metric, value in getattr(result, direction).items():
            yield _bounded(direction, metric, value)
    for direction, rank in result.median_rank.items():
        yield {"direction": direction, "metric": MEDIAN_RANK, "estimate": rank}
    for direction, (pessimistic, optimistic) in result.ties.items():
        yield {"direction": direction, "metric": f"{MAIN_METRIC} pessimistic", "estimate": pessimistic}
        yield {"direction": direction, "metric": f"{MAIN_METRIC} optimistic", "estimate": optimistic}
    yield _bounded("text_to_video", "hubness", result.hubness)
    for name, relative in (("retention", result.retention), ("lift", result.lift)):
        if relative:
            yield _bounded("text_to_video", name, relative)
    yield from _other_scores(result)


def _other_scores(result: Result) -> Iterator[dict[str, object]]:
    """Figures after normalisations, with all relevant videos, and without leaked ones."""
    for column in result.columns:
        for k in RECALL_LEVELS:
            if (recall := column.recall(k)) is not None:
                figure = {"direction": column.direction, "metric": recall_name(k), "estimate": recall}
                yield {**figure, "scores": column.label, "note": column.saw}
    if (several := result.several_relevant) is not None:
        for metric, value in several.text_to_video.items():
            found = several.intervals.get(metric)
            figure = {"direction": "text_to_video", "metric": metric, "estimate": value}
            figure |= found.model_dump(include={"low", "high", "seeds"}) | {"sd": found.deviation} if found else {}
            yield {**figure, "scores": "all relevant videos", "note": several.note}
    if (without := result.without_leaked) is not None:
        for direction in DIRECTIONS:
            figure = {"direction": direction, "metric": MAIN_METRIC, "estimate": getattr(without, direction)}
            yield {**figure, "scores": "without leaked videos", "note": without.note}


def _bounded(direction: Direction, metric: str, value: Estimate) -> dict[str, object]:
    shown = value.model_dump(include={"estimate", "low", "high", "seeds", "note"})
    return {"direction": direction, "metric": metric, **shown, "sd": value.deviation}


def _latex_tables(study: StudyResults) -> dict[str, str]:
    trainings = [training.name for training in study.trainings if training.name != ZERO_SHOT]
    cells = [(training, test.name) for training in trainings for test in study.tests]
    templates = Environment(
        loader=PackageLoader("glscl.study"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
    )
    templates.filters |= {"latex": latex, "signed": signed, "interval": interval, "p_value": p_value, "si": si}
    values = {
        "study": study,
        "directions": tuple(DIRECTIONS.items()),
        "main_metric": MAIN_METRIC,
        "trainings": trainings,
        "cells": cells,
        "rows": {condition: _matrix_rows(study, condition, cells) for condition in study.conditions},
        "missing": [f"{test.name} {test.share} videos" for test in study.tests if test.videos < test.videos_of],
        "sizes": sorted({(cost.measured_texts, cost.measured_videos) for cost in study.costs}),
    }
    names = ("matrix", "differences", "costs")
    return {f"{name}.tex": templates.get_template(f"{name}.tex.j2").render(values, name=name) for name in names}


def _matrix_rows(study: StudyResults, condition: str, cells: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """R@1 of every variant, training and test set; the best of a column is marked, zero-shot is the same under each."""
    by_cell = {(r.variant, r.training, r.test): r for r in study.results if r.condition == condition}
    untrained = {result.test: result for result in by_cell.values() if result.training == ZERO_SHOT}
    rows = {
        variant.name: [by_cell.get((variant.name, *cell)) for cell in cells]
        for variant in study.variants
        if variant.name != ZERO_SHOT
    }
    if untrained:
        rows = {ZERO_SHOT: [untrained.get(test) for _, test in cells]} | rows
    best = [max((_recall(row[place]) for row in rows.values()), default=-math.inf) for place in range(len(cells))]
    return [(name, list(map(_matrix_cell, row, best))) for name, row in rows.items()]


def _recall(result: Result | None) -> float:
    return result.text_to_video[MAIN_METRIC].estimate if result else -math.inf


def _matrix_cell(result: Result | None, best: float) -> str:
    if result is None or not math.isfinite(_recall(result)):
        return "--"
    value = result.text_to_video[MAIN_METRIC]
    text = f"{value.estimate:.1f}"
    if text == f"{best:.1f}":  # what looks equal is marked alike
        text = rf"\textbf{{{text}}}"
    if result.relation == "in-domain":
        text = rf"\textit{{{text}}}"
    return text if value.deviation is None else rf"{text} {{\scriptsize$\pm${value.deviation:.1f}}}"
