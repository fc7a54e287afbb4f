"""A job ends the command that follows it with its own verdict and exit status; what goes wrong is one line."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster import submit as module
from cluster.dashboard import connect, dashboard_address, demands_token
from cluster.submit import Ending, follow
from glscl.cli import main
from glscl.errors import UserError

from .conftest import TOKEN, SetToken

Capture = pytest.CaptureFixture[str]
JOB = "job-1"


class Cluster:
    """What `JobSubmissionClient` shows of one job; ``parts``: its log as it arrives, an exception where that breaks."""

    def __init__(
        self,
        *parts: str | Exception,
        status: JobStatus = JobStatus.SUCCEEDED,
        code: int | None = 0,
        message: str = "",
    ) -> None:
        self.parts = list(parts)
        self.submitted: dict[str, Any] = {}
        self.stopped = False
        self.info = SimpleNamespace(
            submission_id=JOB,
            status=status,
            driver_exit_code=code,
            message=message,
            start_time=1_790_000_000_000,
            entrypoint="python -m glscl train",
        )

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for at, part in enumerate(self.parts):
            if isinstance(part, Exception):
                del self.parts[at]  # the next connection starts at the log's beginning and gets further
                raise part
            yield part

    def get_job_info(self, job: str) -> Any:
        if job not in (JOB, self.submitted.get("submission_id")):
            raise RuntimeError("Request failed with status code 404: Job does not exist.")
        if self.stopped:
            self.info.status = JobStatus.STOPPED
        # A job whose log still has a break in it is running.
        running = any(isinstance(part, Exception) for part in self.parts)
        return SimpleNamespace(**vars(self.info) | ({"status": JobStatus.RUNNING} if running else {}))

    def list_jobs(self) -> list[Any]:
        return [self.info]

    def submit_job(self, **values: Any) -> str:
        self.submitted = values
        return values["submission_id"] or JOB

    def stop_job(self, job: str) -> bool:
        self.stopped = True
        return True


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, no_addresses: None) -> Callable[[Cluster], Cluster]:
    """Let the commands find this cluster, at whatever address."""

    def give(cluster: Cluster) -> Cluster:
        monkeypatch.setattr(module, "connect", lambda _: cluster)
        return cluster

    return give


def run(capsys: Capture, *words: str) -> tuple[int, list[str]]:
    status = main(list(words))
    return status, capsys.readouterr().out.splitlines()


# ------------------------------------------------------------------------------------------------------- how it ends


def test_the_verdict_is_kept_for_the_end(capsys: Capture) -> None:
    cluster = Cluster("one\ngls", "cl: OK run=a R@1=3.0\nray: bye\nlast")
    assert follow(cluster, JOB) == Ending(0, "run=a R@1=3.0")
    assert capsys.readouterr().out == "one\nray: bye\nlast\n"


def test_only_the_last_verdict_is_the_jobs(capsys: Capture) -> None:
    cluster = Cluster("glscl: FAILED first\nthen\nglscl: OK second\n")
    assert follow(cluster, JOB) == Ending(0, "second")
    assert capsys.readouterr().out == "then\nglscl: FAILED first\n"


FAILED = JobStatus.FAILED


@pytest.mark.parametrize(
    ("cluster", "status", "says"),
    [
        (Cluster("x\nglscl: FAILED no such file\n", status=FAILED, code=2), 2, r"no such file"),
        (
            Cluster("Traceback\n", status=FAILED, code=1),
            1,
            r"job-1 died without a verdict \(exit status 1\).*jobs logs",
        ),
        (Cluster("x\n", status=FAILED, code=-9), 137, r"died without a verdict \(exit status 137\)"),
        (Cluster(status=FAILED, code=None, message="no\nnode"), 1, r"died without a verdict \(no node\)"),
        (Cluster("glscl: OK a\n", status=FAILED, code=139), 139, r"died after it had said 'OK a' \(exit status 139\)"),
        (Cluster("x\n", status=JobStatus.STOPPED, code=None), 143, r"job job-1 was stopped$"),
        (
            Cluster("glscl: FAILED stopped by SIGTERM at step 4\n", status=JobStatus.STOPPED, code=None),
            143,
            r"job job-1 was stopped: stopped by SIGTERM at step 4$",
        ),
        (Cluster("a preset\n"), 0, r"job job-1 succeeded"),
        (Cluster("glscl: FAILED but exit 0\n"), 1, r"but exit 0"),
    ],
)
def test_every_ending(cluster: Cluster, status: int, says: str) -> None:
    ending = follow(cluster, JOB)
    assert ending.status == status
    assert re.fullmatch(f".*{says}.*", ending.text), ending.text


def test_a_broken_connection_is_taken_up_where_it_broke(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_: float) -> None:
        pass

    monkeypatch.setattr(module.asyncio, "sleep", at_once)
    cluster = Cluster("one\ntw", RuntimeError("closed"), "o\n", OSError("gone"), "three\nglscl: OK done\n")
    assert follow(cluster, JOB) == Ending(0, "done")
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_a_dashboard_that_stays_away_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_S", 0.5)
    cluster = Cluster(*(OSError("gone") for _ in range(100)))
    with pytest.raises(UserError, match=r"lost the dashboard .*job-1 goes on.*`glscl jobs logs job-1`"):
        follow(cluster, JOB)


def test_interrupting_leaves_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Cluster):
        def get_job_info(self, job: str) -> Any:
            raise KeyboardInterrupt

    ending = follow(Interrupted("x\n"), JOB)
    assert ending.status == 130
    assert "job-1 goes on" in ending.text


# ------------------------------------------------------------------------------------------------------ command line


def test_submit_sends_the_words_and_ends_as_the_job(
    capsys: Capture, use: Callable[[Cluster], Cluster], tmp_path: Path
) -> None:
    cluster = use(Cluster("glscl: FAILED too few shards\n", status=FAILED, code=2))
    words = [
        "--name",
        "mine",
        "--grace-s",
        "45",
        "--working-dir",
        str(tmp_path),
        "--",
        "train",
        "--name",
        "it's 1",
        "--data.train",
    ]
    status, lines = run(capsys, "submit", *words)
    assert (status, lines) == (2, ["job mine", "glscl: FAILED too few shards"])
    assert cluster.submitted == {
        "entrypoint": "python -m glscl train --name 'it'\"'\"'s 1' --data.train",
        "submission_id": "mine",
        "runtime_env": {"working_dir": str(tmp_path), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "45"}},
    }


def test_submit_without_waiting(capsys: Capture, use: Callable[[Cluster], Cluster]) -> None:
    use(Cluster("never read\n"))
    status, lines = run(capsys, "submit", "--no-wait", "--", "eval", "--run", "x")
    assert status == 0
    assert lines[0] == "job job-1"
    assert lines[-1].startswith("glscl: OK job job-1 submitted; `glscl jobs logs job-1`")


def test_jobs(capsys: Capture, use: Callable[[Cluster], Cluster]) -> None:
    use(Cluster("a line\nglscl: OK done\n", status=JobStatus.RUNNING))
    status, lines = run(capsys, "jobs", "status", JOB)
    assert (status, lines) == (0, ["glscl: OK job job-1 RUNNING: python -m glscl train"])
    status, lines = run(capsys, "jobs", "status")
    assert status == 0
    assert lines[1].split() == [JOB, "RUNNING", "2026-09-21", "14:13:20", "python", "-m", "glscl", "train"]
    assert lines[-1] == "glscl: OK 1 jobs, 1 of them not finished"
    status, lines = run(capsys, "jobs", "stop", JOB)
    assert (status, lines) == (0, ["glscl: OK job job-1: STOPPED"])
    status, lines = run(capsys, "jobs", "stop", JOB)
    assert (status, lines) == (0, ["glscl: OK job job-1 had ended before: STOPPED"])
    status, lines = run(capsys, "jobs", "logs", JOB)
    assert (status, lines) == (143, ["a line", "glscl: FAILED job job-1 was stopped"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("submit", "needs a command after --"),
        ("submit train --config msrvtt", "needs a command after --: glscl submit -- train"),
        ("submit -- trian --config msrvtt", "unknown command 'trian', did you mean 'train'"),
        ("submit -- jobs stop x", "'jobs stop' is not one of those"),
        ("submit -- submit -- train", "'submit' is not one of those"),
        ("submit --name job-1 -- train", "--name job-1: the cluster has a job of that id"),
        ("submit --working-dir nowhere -- train", "--working-dir nowhere: not a folder"),
        ("submit --adress x -- train", "did you mean '--address'"),
        ("submit --address 10.0.0.1:8265 -- train", "10.0.0.1:8265: not a dashboard's address; pass --address http"),
        ("submit --address http://me:secret@head:8265 -- train", "credentials in an address are refused"),
        ("jobs", "needs status, logs or stop"),
        ("jobs logs", "The job's id"),
        ("jobs logs other", "no job 'other' on this cluster; `glscl jobs status` lists them"),
        ("jobs stop other", "no job 'other'"),
    ],
)
def test_bad_input(capsys: Capture, use: Callable[[Cluster], Cluster], line: str, says: str) -> None:
    use(Cluster())
    status, lines = run(capsys, *line.split())
    assert status == 2
    assert re.match(f"glscl: FAILED .*({says})", lines[-1]), lines[-1]
    assert "secret" not in "".join(lines)


# --------------------------------------------------------------------------------------------------- address and token


def test_which_address(no_addresses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dashboard_address("") == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://b:8265")
    assert dashboard_address("") == "http://b:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://c:8265/")
    assert dashboard_address("") == "http://c:8265"
    assert dashboard_address("https://d") == "https://d"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "auto")
    with pytest.raises(UserError, match="auto: not a dashboard's address; pass --address http://HEAD:8265"):
        dashboard_address("")


def test_the_given_address_wins_over_the_environment(
    guarded: str, set_token: SetToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_token(TOKEN)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert connect(guarded).get_address() == guarded
    assert demands_token(guarded)


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (
            "wrong-but-of-good-length",
            "the cluster refuses this token; set RAY_AUTH_MODE=token, and the cluster's token",
        ),
        (None, "RAY_AUTH_MODE=token, but no token is there; set RAY_AUTH_MODE=token, and .* RAY_AUTH_TOKEN"),
    ],
)
def test_wrong_and_missing_tokens(
    guarded: str, set_token: SetToken, capsys: Capture, token: str | None, says: str
) -> None:
    set_token(token)
    status, lines = run(capsys, "submit", "--address", guarded, "--", "train")
    assert status == 2
    assert len(lines) == 1
    assert re.match(f"glscl: FAILED {guarded}: {says}", lines[0]), lines[0]
    assert not token or token not in lines[0]


def test_token_mode_is_off_where_the_cluster_demands_it(
    guarded: str, set_token: SetToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._raylet import Config

    set_token(TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    Config.initialize("")
    with pytest.raises(UserError, match="demands a token and got none; set RAY_AUTH_MODE=token"):
        connect(guarded)


def test_nobody_answers(silent: str, no_addresses: None) -> None:
    with pytest.raises(UserError, match=f"no Ray dashboard answers at {silent} .*RAY_API_SERVER_ADDRESS"):
        connect(silent)


def test_somebody_else_answers(bucket: str, no_addresses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    server = os.environ["AWS_ENDPOINT_URL"]
    with pytest.raises(UserError, match=f"{server}: not a Ray dashboard"):
        connect(server)
