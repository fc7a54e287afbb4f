"""`glscl shards verify`: read every shard of a set and compare it with the manifest."""

from glscl.data.shards import verify_shards
from glscl.errors import UserError
from glscl.options.flags import shard_set_argument

HELP = "read every shard and compare it with the manifest"
ORDER = 62


def run(words: list[str], program: str) -> str:
    """Print every problem; refuse a set that has any."""
    uri = shard_set_argument(words, program, "read every shard of a set and compare it with the manifest")
    problems = verify_shards(uri)
    for problem in problems:
        print(problem)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"{uri}: {count}, first {problems[0]}; build, copy or index the shards named above again")
    return f"{uri}: every shard is as the manifest says"
