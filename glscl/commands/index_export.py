"""`glscl index export`: an index as a database of another program."""

from typing import Literal

from glscl.commands._index import rest_of, take_words
from glscl.options import Options
from glscl.options.flags import parse_options

HELP = "an index as a LanceDB or Qdrant database, with their own search where it ranks as the head does"
ORDER = 40


class IndexExport(Options):
    """Write an index as a database of another program: `glscl index export INDEX --to lancedb --output FOLDER`."""

    to: Literal["lancedb", "qdrant"]
    """Which one (extras: lancedb, qdrant); Qdrant's local form."""
    output: str
    """New folder on this machine."""
    payload_only: bool = False
    """Without vectors: ids, segments, captions and metadata; for heads whose score their search does not compute."""


def run(words: list[str], program: str) -> str:
    """Open the index and write it."""
    taken = take_words(words, program, ["INDEX"])
    options = parse_options(IndexExport, rest_of(words, taken), program)

    from glscl.index.exports import export_index
    from glscl.index.search import open_index

    index = open_index(taken[0], "cpu")
    rows = export_index(index, options.to, options.output, payload_only=options.payload_only)
    what = "segments without vectors" if options.payload_only else "segments"
    return f"{options.output}: {rows:,} {what} for {options.to}, head {index.model.card.model.head}"
