"""A fault in the environment is one line, printed before anything slow is imported or started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from glscl.cli import main
from glscl.errors import UserError
from glscl.system import environment, storage
from glscl.system.environment import check_cluster, check_environment, check_s3, check_temporary_folder, named_cluster

TOKEN = "token-of-a-test-and-long-enough"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of Ray or of S3 clients, and a home folder without their files."""
    for name in os.environ:
        if name.startswith(("RAY_", "AWS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


# -------------------------------------------------------------------------------------------------- Ray's address


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://head:8265", r"that is a dashboard's address.*`glscl submit --address http://head:8265 -- COMMAND`"),
        ("https://head", "that is a dashboard's address"),
        ("ray://head:10001", r"Ray Client.*RAY_ADDRESS=HEAD:6379.*glscl submit"),
        ("head", "expected HOST:PORT"),
        ("head:", "expected HOST:PORT"),
        ("head:port", "expected HOST:PORT"),
        ("head:99999", "expected HOST:PORT"),
        ("he ad:1", "expected HOST:PORT"),
        ("locl", "expected HOST:PORT.*did you mean 'local'"),
        ("redis://head:6379", "expected HOST:PORT"),
        ("me:secret@head:6379", "credentials in an address are refused"),
    ],
)
def test_addresses_that_are_none(address: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=says):
        check_environment()


def test_addresses_that_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, meant in {
        "": None,
        "local": "local",
        "auto": "auto",
        " h:1 ": "h:1",
        "[::1]:6379": "[::1]:6379",
    }.items():
        monkeypatch.setenv("RAY_ADDRESS", given)
        assert named_cluster() == meant


class _Head(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The one answer of a cluster's head that is asked for; with a token, only to who brings it."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def service(self, details: Any) -> Any:
        brought = dict(details.invocation_metadata).get("authorization")

        def answer(request: bytes, context: Any) -> bytes:
            if self.token and brought != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "Missing authorization")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer) if details.method.endswith("/CheckAlive") else None


@contextmanager
def cluster(token: str | None) -> Iterator[str]:
    """A head that stands for a whole cluster; yields its address."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Head(token)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def test_a_cluster_that_demands_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with cluster(TOKEN) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=r"the cluster demands a token and got none; set RAY_AUTH_MODE=token"):
            check_environment()
        monkeypatch.setenv("RAY_AUTH_TOKEN", "another-token-than-the-cluster's")
        with pytest.raises(UserError, match="the cluster refuses this token; set RAY_AUTH_MODE=token"):
            check_environment()
        assert "RAY_AUTH_MODE" not in os.environ
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with pytest.raises(UserError, match="demands a token and got none"):
            check_environment()
        monkeypatch.setenv("RAY_AUTH_MODE", "")  # what is set below goes with the test
        monkeypatch.delenv("RAY_AUTH_MODE")
        check_environment()
        assert os.environ["RAY_AUTH_MODE"] == "token", "Ray itself sends none to an address that is named"


def test_a_cluster_that_demands_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster(None) as address:
        check_cluster(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        check_cluster(address)
        assert "RAY_AUTH_MODE" not in os.environ


def test_what_is_no_cluster() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(60)

        def dashboard() -> None:
            for _ in range(2):  # the look whether anybody is there, then the question
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        answering = pool.submit(dashboard)
        with pytest.raises(UserError, match=r"not the head of a Ray cluster \(its dashboard, perhaps\)"):
            check_cluster(f"127.0.0.1:{server.getsockname()[1]}")
        answering.result()


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("RAY_AUTH_MODE", "tokn", "RAY_AUTH_MODE=tokn: not one of disabled and token, did you mean 'token'"),
        ("RAY_AUTH_TOKEN_PATH", "/nowhere/token", "RAY_AUTH_TOKEN_PATH=/nowhere/token: no token can be read there"),
        ("RAY_ADDRESS", "127.0.0.1:1", r"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1 .*refused"),
        ("RAY_ADDRESS", "no.such.host.invalid:6379", "no Ray cluster answers at RAY_ADDRESS=no.such.host.invalid"),
        ("TMPDIR", "/nowhere", "TMPDIR=/nowhere: temporary files cannot be written there"),
        ("RAY_TMPDIR", "/proc", "RAY_TMPDIR=/proc: temporary files cannot be written there"),
        ("TMPDIR", "/tmp/" + "a" * 60, r"too long by \d+ characters for the Unix sockets.*set RAY_TMPDIR"),
    ],
)
def test_variables(name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        check_environment()


def test_the_longest_folder_that_ray_can_use_is_taken() -> None:
    """Its session's name and the socket's are Ray's: this fails when Ray makes them longer."""
    import ray._private.node as node
    from ray._private.utils import validate_socket_filepath

    name = f"session_{'0' * 26}_{os.getpid()}"
    assert len(name) == len(environment.SESSION.format(pid=os.getpid()).partition("/")[0])
    assert "session_{date_str}_{os.getpid()}" in Path(node.__file__).read_text()
    longest = environment.LONGEST_SOCKET - len(f"/glscl-ray-12345678/{name}/sockets/plasma_store")
    for length, fits in ((longest, True), (longest + 1, False)):
        folder = "/" + "a" * (length - 1)
        path = f"{folder}/glscl-ray-12345678/{name}/sockets/plasma_store"
        with pytest.raises(UserError, match="cannot be written there" if fits else "too long by 1 characters"):
            check_temporary_folder(folder, "TMPDIR")
        if fits:
            validate_socket_filepath(path)
        else:
            with pytest.raises(OSError, match="AF_UNIX"):
                validate_socket_filepath(path)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "LEAST_FREE", 1 << 62)
    with pytest.raises(UserError, match="MB are free, too few for Ray's logs"):
        check_temporary_folder("/tmp", "TMPDIR")


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.can_keep_token()
    for home in ("/proc/1", "/nowhere"):
        monkeypatch.setenv("HOME", home)
        assert not environment.can_keep_token()


# ---------------------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("value", ["127.0.0.1:9000", "minio", "s3.example.org", "ftp://host", "http://"])
def test_an_endpoint_without_a_scheme(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}={value}: an endpoint begins with http:// or https://"):
        storage.exists("s3://bucket/key")
    monkeypatch.setenv(name, "https://s3.example.org")
    check_s3()


def test_a_profile_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_PROFILE", "wrk")
    with pytest.raises(UserError, match=r"AWS_PROFILE=wrk: no such profile \(known: none\)"):
        check_s3()
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nregion = x\n[profile work]\nregion = y\n")
    with pytest.raises(UserError, match=r"no such profile, did you mean 'work'\? \(known: default, work\)"):
        check_s3()
    monkeypatch.setenv("AWS_PROFILE", "work")
    check_s3()


# ------------------------------------------------------------------------------------------------------ the process


COMMANDS = (
    ["train", "--config", "tiny"],
    ["eval", "--run", "x", "--test", "y"],
    ["study", "--config", "toy"],
    ["sweep", "--config", "toy"],
    ["shards", "build", "--benchmark", "csv", "--annotations", "a", "--split", "s", "--videos", "v", "--output", "o"],
    ["quickstart"],
)


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_every_command_that_needs_ray_says_so_first(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("glscl: FAILED RAY_ADDRESS=http://head:8265: that is a dashboard's address")
    assert len(printed.out.splitlines()) == 1
    assert printed.err == ""
    assert not list(tmp_path.iterdir())


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line in which ``$GLSCL`` is the command."""
    environment = os.environ | {"GLSCL": f"{sys.executable} -m glscl"} | variables
    return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, check=False)


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    done = shell("$GLSCL toy --help | head -1; echo ${PIPESTATUS[0]}")
    assert done.stderr == b""
    assert done.stdout.splitlines()[0].startswith(b"usage: glscl toy")
    assert done.stdout.splitlines()[1] in (b"141", b"0"), "0 where all was written before the reader left"
    done = shell("set -o pipefail; $GLSCL toy --help | true")
    assert (done.returncode in (141, 0), done.stderr) == (True, b"")
    done = shell("(sleep 0.2; exec $GLSCL --help) | true; echo ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == (b"141\n", b"")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("$GLSCL shards info /nowhere <&-", b"glscl: FAILED /nowhere/manifest.json: no such file"),
        ("$GLSCL shards info /nowhere >&-", b""),
        ("$GLSCL shards info /nowhere <&- 2>&-", b"glscl: FAILED /nowhere/manifest.json: no such file"),
        (
            "mkdir $HOME/gone; cd $HOME/gone; rmdir $HOME/gone; $GLSCL shards info x",
            b"glscl: FAILED the current folder",
        ),
        ("LC_ALL=C PYTHONIOENCODING=ascii $GLSCL shards info /ä", rb"glscl: FAILED /\xe4/manifest.json: no such file"),
    ],
    ids=["stdin closed", "stdout closed", "stdin and stderr closed", "folder gone", "ascii"],
)
def test_odd_processes_still_get_their_line(line: str, says: bytes) -> None:
    done = shell(line)
    assert done.returncode == 2, done
    assert done.stdout.startswith(says)
    assert b"Traceback" not in done.stderr
