"""``glscl`` command lines as Ray jobs: submit one, follow it, and end with its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import Field
from tyro.conf import Positional

from cluster.dashboard import connect, dashboard_address
from glscl.errors import CommandFailed, UserError
from glscl.options import Options
from glscl.reporting.console import print_table
from glscl.system import storage
from glscl.system.redaction import has_secret

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

VERDICT = re.compile(r"glscl: (?P<word>OK|FAILED) (?P<text>.*)")
LOST_S = 60.0
"""Seconds without the dashboard after which following ends (the job does not)."""
STOP_S = 180.0
"""Seconds after which a job that is stopped should have ended; it has ``--grace-s`` of `submit` to save."""
MESSAGE_LENGTH = 300


class AtDashboard(Options):
    """Options of a command that talks to a cluster's dashboard."""

    address: str = ""
    """The dashboard, http://HEAD:8265; empty is RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine's."""


class Submit(AtDashboard):
    """Run a glscl command line as a job on a Ray cluster and follow it: glscl submit [options] -- train ...

    What follows -- is any glscl command; it runs on the cluster's head, with the glscl that is installed there. The
    last line and the exit status are the job's. Interrupting ends the following, not the job.
    """

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    """Id of the job, by which `glscl jobs` knows it; used once per cluster. Empty lets Ray choose."""
    wait: bool = True
    """Follow the job to its end; --no-wait returns as soon as it is accepted."""
    grace_s: float = Field(default=120.0, ge=3)
    """Seconds that the job may take to save and end when it is stopped, before it is killed."""
    working_dir: str = ""
    """Folder to send along, in which the job then runs: configuration files, or a checkout of glscl to run instead of
    the installed one. What .gitignore names stays here."""


class Jobs(AtDashboard):
    """One job."""

    id: Positional[str]
    """The job's id."""


class JobsStatus(AtDashboard):
    """Print the state of a job, or of every job."""

    id: Positional[str] = ""
    """The job's id; empty lists all."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended: its exit status, and its verdict or the reason why it has none."""

    status: int
    text: str

    def verdict(self) -> str:
        """The text. Raises `CommandFailed`: the exit status is not 0."""
        if self.status:
            raise CommandFailed(self.status, self.text)
        return self.text


def _check_words(words: Sequence[str]) -> None:
    for word in words:
        if "s3://" in word:
            storage.resolve(word[word.index("s3://") :])
    if has_secret(shlex.join(words)):
        raise UserError(
            "a secret is part of the command, which the cluster keeps in its list of jobs: set it in the environment "
            "of the cluster's nodes, or give them a role"
        )


def submit(words: Sequence[str], options: Submit) -> Ending:
    """Run ``glscl WORDS`` as a job.

    Raises:
        UserError: unreachable, token, a folder that cannot be sent, an id that was used before, or WORDS with a secret
            or an address that cannot be resolved.
    """
    _check_words(words)
    if options.working_dir and not os.path.isdir(options.working_dir):
        raise UserError(f"--working-dir {options.working_dir}: not a folder")
    client = connect(dashboard_address(options.address))
    if options.name and any(job.submission_id == options.name for job in client.list_jobs()):
        raise UserError(f"--name {options.name}: the cluster has a job of that id; choose another, or leave it out")
    folder = {"working_dir": os.path.abspath(options.working_dir)} if options.working_dir else {}
    try:
        job = client.submit_job(
            entrypoint=shlex.join(["python", "-m", "glscl", *words]),
            submission_id=options.name or None,
            runtime_env=folder | {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(round(options.grace_s))}},
        )
    except (RuntimeError, ValueError) as error:
        where = f"--working-dir {options.working_dir}: " if options.working_dir else ""
        raise UserError(f"{where}the cluster refused the job ({str(error)[:MESSAGE_LENGTH]})") from None
    print(f"job {job}", flush=True)
    if not options.wait:
        return Ending(0, f"job {job} submitted; `glscl jobs logs {job}` follows it, `glscl jobs stop {job}` ends it")
    return follow(client, job)


def logs(options: Jobs) -> Ending:
    """Follow a job from its first line to its end."""
    client = connect(dashboard_address(options.address))
    _find_job(client, options.id)
    return follow(client, options.id)


def status(options: JobsStatus) -> str:
    """Print a table of all jobs, unless one is named; returns the verdict."""
    client = connect(dashboard_address(options.address))
    if options.id:
        details = _find_job(client, options.id)
        return f"job {options.id} {details.status}: {details.entrypoint}"
    jobs = sorted((job for job in client.list_jobs() if job.submission_id), key=lambda job: job.start_time or 0)
    rows = []
    for job in jobs:
        start = datetime.fromtimestamp(job.start_time / 1000, UTC) if job.start_time else None
        started = f"{start:%Y-%m-%d %H:%M:%S}" if start else "-"
        rows.append([job.submission_id, str(job.status), started, job.entrypoint])
    print_table(["job", "state", "started (UTC)", "command"], rows, text_columns=4)
    return f"{len(jobs)} jobs, {sum(not job.status.is_terminal() for job in jobs)} of them not finished"


def stop(options: Jobs) -> str:
    """End a job, and wait until it has ended. Raises `UserError`: no such job, or it does not end."""
    client = connect(dashboard_address(options.address))
    if (state := _find_job(client, options.id).status).is_terminal():
        return f"job {options.id} had ended before: {state}"
    client.stop_job(options.id)
    deadline = time.monotonic() + STOP_S
    while not (state := _find_job(client, options.id).status).is_terminal():
        if time.monotonic() > deadline:
            raise UserError(f"job {options.id} is still {state} after {STOP_S:g} s; see `glscl jobs status`")
        time.sleep(0.5)
    return f"job {options.id}: {state}"


def follow(client: JobSubmissionClient, job: str) -> Ending:
    """Print a job's log as it grows, without its verdict; returns how the job ended."""
    log = _Log()
    try:
        details = asyncio.run(_follow(client, job, log))
    except KeyboardInterrupt:
        return Ending(130, f"interrupted; job {job} goes on: `glscl jobs logs {job}`, `glscl jobs stop {job}`")
    log.end()
    return _describe_ending(job, details, log.verdict)


class _Log:
    """Prints whole lines. The latest verdict is held back, so that nothing can come after it."""

    def __init__(self) -> None:
        self.verdict: re.Match[str] | None = None
        self._rest = ""

    def add(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if verdict := VERDICT.fullmatch(line.rstrip()):
                if self.verdict:
                    print(self.verdict[0], flush=True)
                self.verdict = verdict
            else:
                print(line, flush=True)

    def end(self) -> None:
        if self._rest:
            self.add("\n")


async def _follow(client: JobSubmissionClient, job: str, log: _Log) -> JobDetails:
    """Feed the log until the job has ended, over lost connections. Raises `UserError`: the dashboard is gone."""
    import aiohttp

    taken = 0  # every connection starts at the log's first character
    failing_since: float | None = None
    while True:
        received, ended = 0, None
        with contextlib.suppress(OSError, RuntimeError):
            before = client.get_job_info(job)
            ended = before if before.status.is_terminal() else None
        try:
            async for text in client.tail_job_logs(job):
                new = text[max(0, taken - received) :]
                received += len(text)
                taken += len(new)
                log.add(new)
                failing_since = None if new else failing_since
            details = client.get_job_info(job)
            failing_since = None
            if details.status.is_terminal():
                return details
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if ended:  # before this connection was tried: its log is gone with its node
                return ended
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since > LOST_S:
                raise UserError(
                    f"lost the dashboard for {LOST_S:g} s ({type(error).__name__}); job {job} goes on without: "
                    f"`glscl jobs logs {job}` follows it again"
                ) from None
        await asyncio.sleep(1.0)


def _describe_ending(job: str, details: JobDetails, verdict: re.Match[str] | None) -> Ending:
    state = str(details.status)
    failure = verdict["text"] if verdict and verdict["word"] == "FAILED" else ""
    if state == "STOPPED":
        return Ending(128 + signal.SIGTERM, f"job {job} was stopped" + (f": {failure}" if failure else ""))
    if state == "SUCCEEDED":
        return Ending(1 if failure else 0, verdict["text"] if verdict else f"job {job} succeeded")
    status = _exit_status(details.driver_exit_code or 1)
    if failure:
        return Ending(status, failure)
    after = f" after it had said 'OK {verdict['text']}'" if verdict else " without a verdict"
    message = " ".join((details.message or "no reason given").split())[:MESSAGE_LENGTH]
    reason = f"exit status {status}" if details.driver_exit_code else message
    return Ending(status, f"job {job} died{after} ({reason}); `glscl jobs logs {job}` shows its log")


def _exit_status(code: int) -> int:
    """As a shell names signals."""
    return code if code > 0 else 128 - code


def _find_job(client: JobSubmissionClient, job: str) -> JobDetails:
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error):
            raise UserError(f"no job '{job}' on this cluster; `glscl jobs status` lists them") from None
        raise
