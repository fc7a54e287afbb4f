"""`glscl jobs status`: print the state of one job, or of all."""

from cluster.submit import JobsStatus, status
from glscl.options.flags import parse_options

HELP = "state of one job, or of all:  jobs status [ID]"
ORDER = 100


def run(words: list[str], program: str) -> str:
    """Ask the dashboard."""
    return status(parse_options(JobsStatus, words, program))
