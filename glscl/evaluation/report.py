"""The HTML report of a run: one file for a screen of any width, light or dark, and for paper.

Captions and identifiers are other people's text: the template escapes all of it, pictures may only be ``data:`` URIs,
and the page's content security policy forbids everything else.
"""

from collections.abc import Mapping, Sequence

from glscl.data.records import MTEB_SPLIT
from glscl.evaluation import metrics
from glscl.evaluation.charts import training_charts
from glscl.evaluation.results import Results, Test, WithoutLeaked, parse_results
from glscl.reporting.formats import number
from glscl.reporting.page import environment
from glscl.reporting.published import PublishedRow, for_domain, read_published
from glscl.system.storage import write_bytes
from glscl.version import __version__


def write_report(results: Mapping[str, object] | Results, output_uri: str, *, published: str | None = None) -> None:
    """Write the report of an evaluation, with published figures (a CSV, see `read_published`) of the domains it knows.

    Raises `UserError`: ``results`` or the CSV lack something.
    """
    rows = read_published(published) if published else []
    write_bytes(output_uri, render_report(results, rows).encode())


def render_report(results: Mapping[str, object] | Results, published: Sequence[PublishedRow] = ()) -> str:
    """The page of `write_report`. Raises `UserError`: ``results`` lack something, or a thumbnail is no picture."""
    parsed = parse_results(results)
    template = environment("glscl.evaluation").get_template("report.html.j2")
    return template.render(
        results=parsed,
        version=__version__,
        directions=[(key, name, metrics.SHORT_DIRECTIONS[key]) for key, name in metrics.DIRECTIONS.items()],
        recalls=dict(zip(metrics.RECALL_LEVELS, metrics.RECALLS, strict=True)),
        summary=metrics.FULL_SUMMARY,
        relevant_summary=metrics.RELEVANT_SUMMARY,
        weighed=(metrics.MRR, metrics.NDCG),
        rank_titles=metrics.RANK_TITLES,
        chance=chance,
        protocol=protocol,
        bounds=bounds,
        oracle_bars=oracle_bars,
        attribute_rows=attribute_rows,
        charts=training_charts(parsed.history),
        published=[
            (test, rows)
            for test in parsed.tests
            if test.frames is None and (rows := for_domain(published, test.domain))
        ],
    )


def chance(test: Test | WithoutLeaked, direction: str, k: int) -> float:
    """R@k in per cent of a random order of the candidates: all videos for a text, all captioned ones for a video."""
    candidates = test.videos if direction == "text_to_video" else int(test.video_to_text["queries"])
    return min(100.0, 100.0 * k / max(candidates, 1))


def protocol(test: Test) -> str:
    """Whose rules made a test set, where they are not the benchmark's own."""
    return "mteb's task (MVEB); frames and ties as here" if test.split.startswith(MTEB_SPLIT) else ""


def bounds(values: Mapping[str, float]) -> str:
    """The R@1 that any way of breaking ties could give, or nothing if all give the same."""
    low, high = number(values[metrics.PESSIMISTIC]), number(values[metrics.OPTIMISTIC])
    return f"{low}–{high}" if low != high else ""


def oracle_bars(test: Test) -> list[tuple[str, float, str]]:
    """Label, R@1 and CSS class of the model beside the best oracles and chance, text to video."""
    bars = [("this model", test.text_to_video[metrics.MAIN_METRIC], "text_to_video")]
    if test.oracles:
        for kind, scores in (("two attributes", test.oracles.pair), ("one attribute", test.oracles.single)):
            if scores:
                name = max(scores, key=lambda attribute: scores[attribute])
                bars.append((f"{kind}: {name.replace('+', ' + ')}", scores[name], ""))
    return [*bars, ("chance", chance(test, "text_to_video", 1), "")]


def attribute_rows(test: Test) -> list[tuple[str, float | None, float | None, float | None, float | None]]:
    """``(attribute, accuracy, accuracy if it were ignored, chance, R@1 of its oracle)`` of every attribute known."""
    accuracy = test.attribute_accuracy or {}
    single = test.oracles.single if test.oracles else {}
    rows = []
    for name in dict.fromkeys([*accuracy, *single]):
        known = accuracy.get(name)
        numbers = (known.accuracy, known.ignoring, known.chance) if known else (None, None, None)
        rows.append((name, *numbers, single.get(name)))
    return rows
