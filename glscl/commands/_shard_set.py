"""The one argument of `glscl shards verify` and `glscl shards info`."""

from __future__ import annotations

from glscl.errors import UserError


def shard_set_argument(words: list[str], program: str, what: str) -> str:
    """The address of a shard set.

    Args:
        words: words after the command.
        program: the command, as in "glscl shards info".
        what: what the command does, for its help.

    Raises:
        UserError: there is not exactly one word, or it is an option.
        SystemExit: the help was asked for, and has been printed.
    """
    if words and words[0] in ("-h", "--help"):
        print(f"usage: {program} SHARD_SET\n\n{what}; a local folder or an s3:// prefix")
        raise SystemExit(0)
    if len(words) != 1 or words[0].startswith("--"):
        raise UserError(f"`{program}` takes one shard set: a local folder or an s3:// prefix")
    return words[0]
