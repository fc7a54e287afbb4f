"""`glscl index info`: what an index holds."""

import json
from dataclasses import asdict

from glscl.commands._index import name_an_option_json, rest_of, take_words
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.reporting.console import start_panel

HELP = "what an index holds, and the videos that could not be read"
ORDER = 38

name_an_option_json()


class IndexInfo(Options):
    """Describe an index: `glscl index info INDEX`."""

    videos: bool = False
    """List the videos, too."""
    json: bool = False  # type: ignore[assignment]
    """Print JSON instead, a line per video with --videos."""


def run(words: list[str], program: str) -> str:
    """Open the index, which checks its files, and describe it."""
    taken = take_words(words, program, ["INDEX"])
    options = parse_options(IndexInfo, rest_of(words, taken), program)

    from glscl.index.search import open_index

    index = open_index(taken[0], "cpu")
    stats, facts, card = index.stats, index.facts, index.model.card
    if options.json:
        print(json.dumps(asdict(stats)))
    else:
        first = f"hands over {stats.candidates:,}" if stats.candidates else "none; the head scores every segment"
        start_panel(
            taken[0],
            {
                "library": facts.library,
                "model": f"{card.model.clip}, head {card.model.head}, step {card.step} of run {card.run}",
                "videos": f"{stats.videos:,}, {stats.seconds / 3600:.2f} hours",
                "segments": f"{stats.segments:,} of {facts.cutting.segment_s:g} s, every {facts.cutting.stride_s:g} s",
                "vectors": facts.precision,
                "first stage": first,
                "on disk": f"{stats.bytes / 1e6:.1f} MB, {stats.deleted:,} deleted segments among it",
                "unusable": f"{len(stats.unusable):,}",
            },
        )
        for name, reason in stats.unusable.items():
            print(f"{name}: {reason}")
    if options.videos:
        for entry in index.videos():
            print(json.dumps(asdict(entry)) if options.json else f"{entry.id}  {entry.duration:.1f} s  {entry.source}")
    return "" if options.json else f"{taken[0]}: {stats.segments:,} segments of {stats.videos:,} videos"
