"""The tables of a study for other programs and for papers: CSV with everything, LaTeX with the main figures.

A CSV field without a figure is empty. The LaTeX tables need ``\\usepackage{booktabs}``; each carries the study's label
in its caption, so that nobody takes its figures for another benchmark's.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from glscl.evaluation.metrics import DIRECTIONS, MAIN_METRIC, MEDIAN_RANK, RECALL_LEVELS, Direction, recall_name
from glscl.reporting.formats import interval, p_value, si, signed
from glscl.runs.options import ZERO_SHOT
from glscl.study.results import Estimate, Result, StudyResults, parse_study
from glscl.system.storage import join, write_bytes

RESULT_COLUMNS = (
    "study", "label", "condition", "variant", "head", "group", "training", "test", "split", "relation", "direction",
    "metric", "estimate", "low", "high", "sd", "seeds", "scores", "note", "videos", "videos_of",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "condition", "first", "second", "scope", "relation", "direction", "metric",
    "estimate", "low", "high", "p_value", "adjusted_p", "shown", "sentence",
)  # fmt: skip
COST_COLUMNS = (
    "condition", "variant", "parameters", "length_tied", "text_bytes", "video_bytes", "declared", "implemented",
    "counted", "measured_texts", "measured_videos", "seconds", "peak_bytes", "machine",
)  # fmt: skip

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "→": r"$\rightarrow$",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "–": "--",
}


@dataclass(frozen=True)
class Figure:
    """A figure of a result: a row of ``results.csv`` without what all figures of the result share."""

    direction: Direction
    metric: str
    estimate: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    seeds: int | None = None
    """None: those of the result."""
    scores: str = "raw"
    note: str = ""


def write_study_tables(results: Mapping[str, object] | StudyResults, folder_uri: str) -> None:
    """Write ``results.csv``, ``comparisons.csv``, ``costs.csv``, ``matrix.tex``, ``differences.tex``, ``costs.tex``.

    Args:
        results: see :mod:`glscl.study.results`.
        folder_uri: local or ``s3://``.

    Raises:
        UserError: ``results`` lack something.
    """
    study = parse_study(results)
    files = {
        "results.csv": _csv(RESULT_COLUMNS, _result_rows(study)),
        "comparisons.csv": _csv(COMPARISON_COLUMNS, (row.model_dump() for row in study.comparisons)),
        "costs.csv": _csv(
            COST_COLUMNS,
            (
                {**cost.model_dump(), "length_tied": "; ".join(cost.length_tied), "machine": study.cost_machine}
                for cost in study.costs
            ),
        ),
        "matrix.tex": _matrix(study),
        "differences.tex": _differences(study),
        "costs.tex": _costs(study),
    }
    for name, text in files.items():
        write_bytes(join(folder_uri, name), text.encode())


def latex(text: str) -> str:
    """Escape what LaTeX would read as a command."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if _is_missing(row.get(name)) else row[name] for name in columns})
    return out.getvalue()


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


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
        for figure in (*_raw_figures(result), *_other_figures(result)):
            yield {**shared, **asdict(figure), "seeds": seeds if figure.seeds is None else figure.seeds}


def _raw_figures(result: Result) -> Iterator[Figure]:
    for direction in DIRECTIONS:
        metrics: dict[str, Estimate] = getattr(result, direction)
        for metric, value in metrics.items():
            yield _bounded(direction, metric, value)
    for direction, rank in result.median_rank.items():
        yield Figure(direction, MEDIAN_RANK, rank)
    for direction, (pessimistic, optimistic) in result.ties.items():
        yield Figure(direction, f"{MAIN_METRIC} pessimistic", pessimistic)
        yield Figure(direction, f"{MAIN_METRIC} optimistic", optimistic)
    yield _bounded("text_to_video", "hubness", result.hubness)
    for name, relative in (("retention", result.retention), ("lift", result.lift)):
        if relative:
            yield _bounded("text_to_video", name, relative)


def _other_figures(result: Result) -> Iterator[Figure]:
    """The figures after normalisations, and those without leaked videos."""
    for column in result.columns:
        for k in RECALL_LEVELS:
            if (recall := column.recall(k)) is not None:
                yield Figure(column.direction, recall_name(k), recall, scores=column.label, note=column.saw)
    if (without := result.without_leaked) is not None:
        for direction in DIRECTIONS:
            recall = getattr(without, direction)
            yield Figure(direction, MAIN_METRIC, recall, scores="without leaked videos", note=without.note)


def _bounded(direction: Direction, metric: str, value: Estimate) -> Figure:
    return Figure(
        direction,
        metric,
        value.estimate,
        low=value.low,
        high=value.high,
        sd=value.deviation,
        seeds=value.seeds,
        note=value.note,
    )


def _matrix(study: StudyResults) -> str:
    """R@1 of every variant after every training on every test set.

    The zero-shot towers are a row: they have no training, so their figures stand under each.
    """
    trainings = [training.name for training in study.trainings if training.name != ZERO_SHOT]
    cells = [(training, test.name) for training in trainings for test in study.tests]
    lines = _matrix_head(study, trainings)
    for condition in study.conditions:
        lines += _condition_rule(study, condition, len(cells) + 1)
        lines += _matrix_lines(_matrix_rows(study, condition, cells), len(cells))
    caption = (
        "Text-to-video R@1 in per cent, mean over seeds $\\pm$ sample standard deviation. "
        "Bold: the best of a column; italic: in-domain."
    )
    if missing := [f"{test.name} {test.share} videos" for test in study.tests if test.videos < test.videos_of]:
        caption += latex(f" Incomplete: {', '.join(missing)}.")
    return _table(study, "matrix", "l" + "c" * len(cells), lines, caption)


def _matrix_head(study: StudyResults, trainings: Sequence[str]) -> list[str]:
    """Write the lines above the figures: the trainings, and under each the test sets."""
    groups = [rf"\multicolumn{{{len(study.tests)}}}{{c}}{{{latex(name)}}}" for name in trainings]
    rules = [
        rf"\cmidrule(lr){{{2 + index * len(study.tests)}-{1 + (index + 1) * len(study.tests)}}}"
        for index in range(len(trainings))
    ]
    tests = [latex(test.title) for test in study.tests] * len(trainings)
    return [
        " & ".join(["Trained on", *groups]) + r" \\",
        " ".join(rules),
        " & ".join(["Tested on", *tests]) + r" \\",
    ]


def _matrix_lines(rows: Sequence[tuple[str, list[Result | None]]], columns: int) -> list[str]:
    """Write one line per row, with the best of each column marked."""
    best = [
        max((_recall(row[column]) for _, row in rows if row[column]), default=-math.inf) for column in range(columns)
    ]
    return [
        " & ".join([latex(name), *(_matrix_cell(cell, top) for cell, top in zip(row, best, strict=True))]) + r" \\"
        for name, row in rows
    ]


def _matrix_rows(
    study: StudyResults, condition: str, cells: Sequence[tuple[str, str]]
) -> list[tuple[str, list[Result | None]]]:
    """The zero-shot towers if they were tested, then every variant: name, and result of each training and test set."""
    by_cell = {(r.variant, r.training, r.test): r for r in study.results if r.condition == condition}
    untrained = {result.test: result for result in by_cell.values() if result.training == ZERO_SHOT}
    rows: list[tuple[str, list[Result | None]]] = []
    if untrained:
        rows.append((ZERO_SHOT, [untrained.get(test) for _, test in cells]))
    return rows + [
        (variant.name, [by_cell.get((variant.name, *cell)) for cell in cells])
        for variant in study.variants
        if variant.name != ZERO_SHOT
    ]


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


def _differences(study: StudyResults) -> str:
    lines = [r"Scope & Difference & Points & 95\,\% interval & adjusted $p$ \\"]
    for condition in study.conditions:
        for direction, words in DIRECTIONS.items():
            rows = [row for row in study.comparisons if (row.condition, row.direction) == (condition, direction)]
            if not rows:
                continue
            title = words if len(study.conditions) == 1 else f"{condition}, {words.lower()}"
            lines += [r"\midrule", rf"\multicolumn{{5}}{{l}}{{{latex(title)}}} \\"]
            for row in rows:
                metric = "" if row.metric == MAIN_METRIC else f" ({row.metric})"
                points = signed(row.estimate)
                fields = [
                    latex(row.scope.replace("->", "→")),
                    latex(f"{row.first} − {row.second}{metric}"),
                    rf"\textbf{{{latex(points)}}}" if row.shown else latex(points),
                    latex(interval(row)),
                    latex(p_value(row.adjusted_p).removeprefix("= ")),
                ]
                lines.append(" & ".join(fields) + r" \\")
    caption = (
        "Paired differences of R@1 in points. Bold: shown, that is, the interval excludes 0 and the $p$-value after "
        "Holm's correction is below 0.05."
    )
    return _table(study, "differences", "llrrr", lines, caption)


def _costs(study: StudyResults) -> str:
    lines = [r"Head & declared & implemented & counted & parameters & latency (ms) & peak (MiB) & tied to \\"]
    for condition in study.conditions:
        rows = [cost for cost in study.costs if cost.condition == condition]
        if not rows:
            continue
        lines += _condition_rule(study, condition, 8)
        for cost in rows:
            fields = [
                latex(cost.variant),
                *(si(value) for value in (cost.declared, cost.implemented, cost.counted, cost.parameters)),
                f"{1e3 * cost.seconds:.1f}",
                f"{cost.peak_bytes / 2**20:.1f}",
                latex(", ".join(cost.length_tied)) or "--",
            ]
            lines.append(" & ".join(fields) + r" \\")
    sizes = sorted({(cost.measured_texts, cost.measured_videos) for cost in study.costs})
    measured = ", ".join(rf"{texts:,} $\times$ {videos:,}" for texts, videos in sizes)
    machine = f" on {latex(study.cost_machine)}" if study.cost_machine else ""
    caption = (
        "Cost of a head. Multiply-adds per pair of a text and a video: declared (as its authors' code spends them), "
        "implemented, and counted."
        + (f" Latency and peak memory to score {measured} texts and videos{machine}, features cached." if sizes else "")
    )
    return _table(study, "costs", "lrrrrrrl", lines, caption)


def _condition_rule(study: StudyResults, condition: str, columns: int) -> list[str]:
    """A rule, and the condition's name where there are several."""
    if len(study.conditions) == 1:
        return [r"\midrule"]
    return [r"\midrule", rf"\multicolumn{{{columns}}}{{l}}{{{latex(condition)}}} \\"]


def _table(study: StudyResults, name: str, columns: str, lines: Sequence[str], caption: str) -> str:
    finished = study.finished_cells == study.cells
    state = "" if finished else f" Unfinished: {study.finished_cells} of {study.cells} cells."
    head = [
        f"% {' '.join(study.name.split())}, {study.created}, commit {study.git_commit or 'unknown'}; needs booktabs",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{latex(study.label)}. {caption}{state}}}",
        rf"\label{{tab:study-{name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
    ]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])
