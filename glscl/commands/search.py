"""`glscl search`: find videos in an index, and the moment in each."""

import json
from dataclasses import asdict

from pydantic import Field

from glscl.commands._index import name_an_option_json, rest_of, take_words
from glscl.errors import UserError
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.reporting.console import print_table

HELP = "find the videos of an index that a text describes, and the moment in each"
ORDER = 41

name_an_option_json()


class Search(Options):
    """Search an index: `glscl search INDEX "a dog catches a frisbee"`."""

    k: int = Field(default=10, ge=1)
    """Videos that are shown."""
    video: str | None = None
    """Search by a video instead of a text: path or s3:// address."""
    where: tuple[str, ...] = ()
    """Conditions on metadata, such as lang=en duration<60; several keys must all hold."""
    json: bool = False  # type: ignore[assignment]
    """A JSON object per video instead of a table."""
    device: str = "auto"
    """Where the text is encoded and candidates are scored."""


def run(words: list[str], program: str) -> str:
    """Open the index and search it."""
    taken = take_words(words, program, ["INDEX"], most=2)
    options = parse_options(Search, rest_of(words, taken), program)
    if (len(taken) == 2) == (options.video is not None):
        raise UserError(f'`{program} INDEX "a text"`, or `{program} INDEX --video FILE`')

    from glscl.index.search import open_index
    from glscl.index.where import parse_where

    where = parse_where(options.where) or None
    index = open_index(taken[0], options.device)
    if options.video is not None:
        found = index.search_video(options.video, options.k, where)
    else:
        found = index.search(taken[1], options.k, where)
    if options.json:
        for one in found:
            print(json.dumps(asdict(one), ensure_ascii=False))
        return ""
    rows = [
        [one.id, (one.entry.captions or ("",))[0][:60], f"{one.score:.4f}", _seconds(one.start), _seconds(one.end)]
        for one in found
    ]
    print_table(["video", "caption", "score", "from", "to"], rows, text_columns=2)
    return f"{taken[0]}: {len(found)} videos, of {len(index):,} segments"


def _seconds(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
