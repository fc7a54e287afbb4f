"""`glscl index check`: recall of an index against exact scores."""

import json
from dataclasses import asdict

from pydantic import Field

from glscl.commands._index import name_an_option_json, rest_of, take_words
from glscl.errors import UserError
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.reporting.console import start_panel

HELP = "recall of an index's searches against exact scores of everything"
ORDER = 39

name_an_option_json()


class IndexCheck(Options):
    """Compare searches with the head's exact scores of every segment: `glscl index check INDEX`."""

    texts: str | None = None
    """File of texts, one a line; by default captions of the library, which the first stage may have been fitted to."""
    k: int = Field(default=10, ge=1)
    """Of recall@k."""
    max_texts: int = Field(default=200, ge=1)
    """Texts that are searched for, drawn at random."""
    candidates: int | None = Field(default=None, ge=1)
    """Segments that the first stage hands to the head, in place of the index's own number."""
    device: str = "auto"
    """Where scores are computed."""
    json: bool = False  # type: ignore[assignment]
    """Print JSON instead."""


def run(words: list[str], program: str) -> str:
    """Search, score everything, compare."""
    taken = take_words(words, program, ["INDEX"])
    options = parse_options(IndexCheck, rest_of(words, taken), program)

    from glscl.index.check import check_index
    from glscl.index.search import open_index
    from glscl.index.texts import read_texts

    index = open_index(taken[0], options.device)
    if options.candidates is not None:
        if not index.candidates:
            raise UserError(f"--candidates: {taken[0]} has no first stage; the head scores every segment")
        index.candidates = options.candidates
    texts = read_texts(options.texts) if options.texts is not None else None
    report = check_index(index, texts, options.k, options.max_texts)
    if options.json:
        print(json.dumps(asdict(report)))
        return ""
    start_panel(
        taken[0],
        {
            f"recall@{report.k}": f"{report.recall:.4f} (95 % interval {report.low:.4f} to {report.high:.4f})",
            "best video the same": f"{100 * report.first_right:.1f} %",
            "texts": f"{report.texts:,}",
            "candidates": f"{report.candidates:,}" if report.candidates else "every segment",
            "a search": f"{report.search_ms:.1f} ms",
            "exact scores": f"{report.exact_ms:.1f} ms a text",
        },
    )
    return f"{taken[0]}: recall@{report.k} {report.recall:.4f}"
