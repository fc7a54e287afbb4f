"""`glscl submit`: run a command on a Ray cluster as a job, and follow it."""

from cluster.submit import Submit, submit
from glscl.commands import find_command
from glscl.errors import UserError
from glscl.options.flags import parse_options

HELP = "run a command on a Ray cluster as a job, follow it, end as it ends:  submit [options] -- train ..."
ORDER = 90


def run(words: list[str], program: str) -> str:
    """Check the spelling of the job's command here, before a cluster is asked; then submit it."""
    at = words.index("--") if "--" in words else len(words)
    job = words[at + 1 :]
    if not job and not {"-h", "--help"} & set(words):
        raise UserError(f"`{program}` needs a command after --: {program} -- train --config msrvtt ...")
    options = parse_options(Submit, words[:at], program)
    name = find_command(job)[0].name
    if name == "submit" or name.startswith("jobs "):
        raise UserError(f"`{program}` runs commands on a cluster; '{name}' is not one of those")
    return submit(job, options).verdict()
