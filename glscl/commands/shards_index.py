"""`glscl shards index`: write a manifest beside WebDataset tars of other programs."""

from pydantic import Field

from glscl.data.foreign import index_shards
from glscl.data.shards import describe_manifest
from glscl.errors import UserError
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.reporting.console import start_panel

HELP = "a manifest for WebDataset tars of other programs (video2dataset ...), which stay as they are"
ORDER = 61


class Index(Options):
    """Write a manifest beside WebDataset tars of other programs, as `index DIR [options]`: mp4 + txt + json.

    A sample is a video of any extension with a caption in .txt or .json; the tars stay as they are.
    """

    domain: str = ""
    """Name of the domain; empty is the folder's."""
    split: str = "train"
    """Name of the split."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of the samples that may lack a video or a caption; they are listed in the manifest."""
    overwrite: bool = False
    """Replace a manifest that is already there."""


def run(words: list[str], program: str) -> str:
    """Read every tar of a folder once and write its manifest."""
    where, rest = words[:1], words[1:]
    if not where or where[0].startswith("-"):
        if not {"-h", "--help"} & set(words):
            raise UserError(f"`{program}` takes the folder or s3:// prefix of the tars first, then options")
        where, rest = [""], words
    options = parse_options(Index, rest, program)
    manifest, notes = index_shards(where[0], **options.model_dump())
    start_panel(program, describe_manifest(manifest))
    for note in notes:
        print(note)
    return f"{where[0]}: {manifest.share()} videos, {manifest.pairs} pairs in {len(manifest.shards)} tars"
