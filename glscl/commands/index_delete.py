"""`glscl index delete`: take videos out of an index."""

from glscl.commands._index import take_words
from glscl.errors import UserError
from glscl.options.flags import wrap_help

HELP = "take videos out of an index, by their ids"
ORDER = 37


def run(words: list[str], program: str) -> str:
    """Delete the videos; the index no longer finds them once this is said."""
    if "--help" in words or "-h" in words:
        about = "take videos out of an index; those that are still in the library come back with `glscl index build`"
        print(f"usage: {program} INDEX ID...\n\n{wrap_help(about)}")
        return ""
    taken = take_words(words, program, ["INDEX", "ID..."], most=1_000_000)
    if len(taken) != len(words):
        raise UserError(f"`{program}` has no options; an id that begins with -- cannot be deleted here")

    from glscl.index.build import delete_videos

    segments = delete_videos(taken[0], taken[1:])
    return f"{taken[0]}: {len(taken) - 1} videos deleted, {segments} segments"
