"""`glscl doctor`: check a cluster before money is spent."""

from cluster.doctor import Doctor, doctor
from glscl.options.flags import parse_options

HELP = "check nodes, GPUs, network, token, storage and shards of a cluster before money is spent"
ORDER = 110


def run(words: list[str], program: str) -> str:
    """Print a table of checks; the command fails if one of them failed."""
    return doctor(parse_options(Doctor, words, program), words).verdict()
