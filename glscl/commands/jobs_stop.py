"""`glscl jobs stop`: end a job."""

from cluster.submit import Jobs, stop
from glscl.options.flags import parse_options

HELP = "end a job"
ORDER = 102


def run(words: list[str], program: str) -> str:
    """Ask the job to end, and wait for it."""
    return stop(parse_options(Jobs, words, program, about="End a job, and wait until it has ended."))
