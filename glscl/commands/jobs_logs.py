"""`glscl jobs logs`: follow a job from its first line to its end."""

from cluster.submit import Jobs, logs
from glscl.options.flags import parse_options

HELP = "follow a job from its first line to its end"
ORDER = 101

ABOUT = "Follow a job from its first line to its end; the last line and the exit status are the job's."


def run(words: list[str], program: str) -> str:
    """Print the job's log as it grows."""
    return logs(parse_options(Jobs, words, program, about=ABOUT)).verdict()
