"""`glscl toy`: write the videos and annotations of a toy domain."""

import os

from pydantic import Field

from glscl.data.toy import toy_names, write_toy
from glscl.errors import UserError, did_you_mean
from glscl.options import Options
from glscl.options.flags import parse_options

HELP = "write a toy domain: h264 videos and annotations"
ORDER = 70


class Toy(Options):
    """Write a toy domain: h264 videos and annotations.jsonl, ready for `glscl shards build --benchmark jsonl`."""

    domain: str
    """toy_clips, toy_stories, toy_stills, or toy_CAPTIONS_PICTURES_EVENTS, such as toy_short_plain_one: captions short
    or long; pictures plain, textured or night; events one or several."""
    split: str
    """train, dev or test."""
    count: int = Field(ge=1)
    """Videos."""
    output: str
    """Folder to write into."""
    seed: int = 0
    """Of everything drawn."""
    processes: int = Field(default=os.cpu_count() or 1, ge=1)
    """Videos drawn at once."""


def run(words: list[str], program: str) -> str:
    """Draw the videos, in several processes."""
    options = parse_options(Toy, words, program)
    if options.domain not in toy_names():
        raise UserError(f"--domain: no toy domain '{options.domain}'{did_you_mean(options.domain, toy_names())}")
    records = write_toy(options.domain, options.split, options.count, options.seed, options.output, options.processes)
    return f"{options.output}: {len(records)} videos, {sum(len(record.captions) for record in records)} captions"
