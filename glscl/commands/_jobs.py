"""The verdict of a job that ran on a cluster."""

from __future__ import annotations

from cluster.submit import Ending
from glscl.commands import CommandFailed


def verdict_of(ending: Ending) -> str:
    """The job's verdict.

    Raises:
        CommandFailed: the job ended with another exit status than 0.
    """
    if ending.status:
        raise CommandFailed(ending.status, ending.text)
    return ending.text
