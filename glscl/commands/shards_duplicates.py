"""`glscl shards duplicates`: find captions that describe several videos, and write them as a list."""

from glscl.errors import UserError
from glscl.options import Options
from glscl.options.flags import parse_options
from glscl.system import storage

HELP = "captions that describe several videos of a set, as a list for `glscl eval --qrels`"
ORDER = 64


class Duplicates(Options):
    """Find captions that describe several videos of a shard set, as `duplicates SHARD_SET --output FILE`.

    They are the same but for case, space and a full stop. The list is of TREC's lines `VIDEO#N 0 VIDEO 1`, or, in a
    file named .jsonl, of JSON lines; `glscl eval --qrels DOMAIN=FILE` reads both. Take out what is not meant.
    """

    output: str = ""
    """File to write, local or s3://; it is replaced."""


def run(words: list[str], program: str) -> str:
    """Read the captions of every shard, and write the list."""
    where, rest = words[:1], words[1:]
    if not where or where[0].startswith("-"):
        if not {"-h", "--help"} & set(words):
            raise UserError(f"`{program}` takes a shard set (a local folder or an s3:// prefix) first, then options")
        rest = words
    options = parse_options(Duplicates, rest, program)
    if not options.output:
        raise UserError(f"`{program}` needs --output FILE, the list to write (.jsonl: JSON lines, else TREC's)")

    from glscl.data.duplicates import find_duplicates, format_qrels
    from glscl.data.shards import open_shard_set
    from glscl.evaluation.relevance import JSON_LINES

    found = find_duplicates(open_shard_set(where[0]))
    count = f"{len(found.relevant):,} of {found.captions:,} captions describe several videos"
    if not found.relevant:
        return f"{where[0]}: {count}; nothing was written"
    text = format_qrels(found, json_lines=options.output.lower().endswith(JSON_LINES))
    storage.write_bytes(output := storage.resolve(options.output), text.encode())
    return f"{where[0]}: {count}, {found.groups:,} different texts; qrels={output}"
