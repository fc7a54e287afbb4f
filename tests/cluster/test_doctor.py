"""Each check finds what it is for, and says it in words with the knob; one that breaks down is a failed check."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import doctor as module
from cluster import nodes
from cluster.checks import (
    Check,
    check_clocks,
    check_dashboard,
    check_disk,
    check_gpus,
    check_network,
    check_shards,
    check_shared_memory,
    check_storage,
    check_storage_of_nodes,
    check_versions,
    guard,
)
from cluster.nodes import NodeReport, Space
from cluster.storage_probe import storage_problem
from glscl.cli import main
from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.system import storage
from glscl.system.s3 import S3
from tests.fault_proxy import FaultProxy

from .conftest import TOKEN, SetToken

GIB = 1 << 30
SOUND = NodeReport(
    versions={"glscl": "1", "ray": "2.60.0"},
    gpus=8,
    disk_path="/tmp",
    disk=Space(200 * GIB, 100 * GIB),
    shm=Space(32 * GIB, 32 * GIB),
)


def expect(check: Check, state: str, says: str, knob: str = "") -> None:
    assert check.state == state, check
    assert re.search(says, check.finding), check
    assert re.search(knob, check.knob), check


# ------------------------------------------------------------------------------------------------------------- nodes


def test_a_node_with_another_ray_is_named() -> None:
    other = replace(SOUND, versions=SOUND.versions | {"ray": "2.59.1"})
    check = check_versions({"a": SOUND, "b": other}, SOUND.versions)
    expect(check, "fail", r"^b has ray 2\.59\.1, the driver 2\.60\.0$", "constraints.txt")
    lacking = replace(SOUND, versions={"ray": "2.60.0"})
    expect(check_versions({"c": lacking}, SOUND.versions), "fail", "c has glscl missing, the driver 1")
    expect(check_versions({"a": SOUND}, SOUND.versions), "ok", "glscl 1, ray 2.60.0")


def test_this_machine_reports_itself() -> None:
    report = nodes.report_this_machine()
    assert report.versions.keys() == {"glscl", "python", "ray", "torch", "deepspeed"}
    assert "missing" not in report.versions.values()
    assert 0 < report.disk.free <= report.disk.total


def test_a_full_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def full(path: str) -> Any:
        stat = real(path)
        free = stat.f_blocks // 100 if path == tempfile.gettempdir() else stat.f_bavail
        return SimpleNamespace(f_blocks=stat.f_blocks, f_frsize=stat.f_frsize, f_bavail=free)

    monkeypatch.setattr(os, "statvfs", full)
    check = check_disk({"a": SOUND, "b": nodes.report_this_machine()})
    expect(check, "fail", r"^full: b .* GiB free in ", "data.cache_dir")
    monkeypatch.undo()
    expect(check_disk({"a": replace(SOUND, disk=Space(100 * GIB, 10 * GIB))}), "warn", r"a 10\.0 of 100 GiB")
    expect(check_disk({"a": SOUND}), "ok", "a 100.0 of 200 GiB")


def test_shared_memory() -> None:
    docker = replace(SOUND, shm=Space(64 << 20, 64 << 20))
    expect(check_shared_memory({"a": SOUND, "b": docker}), "fail", "b 0.06 GiB", "--shm-size")
    expect(check_shared_memory({"a": replace(SOUND, shm=Space(GIB, GIB))}), "warn", "a 1.00 GiB", "emptyDir")
    expect(check_shared_memory({"a": replace(SOUND, shm=nodes.measure_space("/no/such/folder"))}), "fail", "a 0.00 GiB")
    expect(check_shared_memory({"a": SOUND}), "ok", "a 32.00 GiB")


def test_gpus() -> None:
    expect(check_gpus({"a": SOUND}, {"a": 8}, True), "ok", "a 8")
    expect(check_gpus({"a": SOUND}, {"a": 0}, True), "fail", "none in the cluster", "--use-gpu")
    expect(
        check_gpus({"a": replace(SOUND, gpus=0)}, {"a": 8}, True), "fail", "a offers Ray 8 GPUs and shows 0", "driver"
    )
    expect(check_gpus({"a": SOUND, "b": SOUND}, {"a": 8, "b": 4}, True), "warn", "b shows 8 devices and offers Ray 4")
    expect(check_gpus({"a": replace(SOUND, gpus=0)}, {"a": 0}, False), "ok", "none")


def test_clocks() -> None:
    expect(check_clocks({"a": 0.1, "b": -0.1}), "ok", r"within 0\.20 s")
    expect(check_clocks({"a": 0.0, "b": -4.0, "c": 1.0}), "warn", r"c is 5\.0 s ahead of b", "NTP")
    expect(check_clocks({"a": 0.0, "b": 400.0}), "fail", r"b is 400\.0 s ahead of a")


def test_network_answers() -> None:
    expect(check_network({"a": 0.01, "b": 0.02}, "gloo"), "ok", r"over 2 nodes in 20\.0 ms")
    stuck = {"a": TimeoutError("no answer in 150 s"), "b": 0.02}
    expect(check_network(stuck, "nccl"), "fail", "nccl all-reduce: a: no answer in 150 s", "NCCL_SOCKET_IFNAME")
    expect(check_network({}, "gloo"), "warn", "no node that trains is up", "--wait-for-nodes-s")


def test_two_processes_reduce_together() -> None:
    address = f"127.0.0.1:{_free_port()}"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        taken = list(pool.map(nodes.all_reduce, (0, 1), (2, 2), (address, address), ("gloo", "gloo")))
    assert all(0 < seconds < 60 for seconds in taken)


def test_alone_in_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "RING_S", 1.0)
    with pytest.raises(Exception, match=r"(?i)time|1/2"):
        nodes.all_reduce(0, 2, f"127.0.0.1:{_free_port()}", "gloo")


def _free_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return server.server_port


# --------------------------------------------------------------------------------------------------------- dashboard


def test_a_wrong_token_is_found(guarded: str, set_token: SetToken, silent: str) -> None:
    set_token("wrong-but-of-good-length")
    expect(guard("dashboard", 30, check_dashboard, guarded), "fail", "refuses this token; set RAY_AUTH_MODE=token")
    set_token(None)
    expect(guard("dashboard", 30, check_dashboard, guarded), "fail", "no token is there; .* RAY_AUTH_TOKEN")
    set_token(TOKEN)
    expect(guard("dashboard", 30, check_dashboard, guarded), "ok", f"{guarded}, token accepted")
    expect(guard("dashboard", 30, check_dashboard, silent), "fail", f"no Ray dashboard answers at {silent}")


# ----------------------------------------------------------------------------------------------------------- storage


@contextmanager
def _refusing_s3(monkeypatch: pytest.MonkeyPatch, code: str, *methods: str) -> Iterator[None]:
    """An S3 server with an empty bucket that answers these methods with an error."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # uploads wait to be told to go on

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            refused = self.command in methods
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>" if refused else "<ListBucketResult/>"
            self.send_response(403 if refused else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _use_s3(monkeypatch, server.server_port)
    yield
    S3.clear_instance_cache()
    server.shutdown()
    server.server_close()


def _use_s3(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    S3.clear_instance_cache()


def test_storage_that_works(bucket: str, tmp_path: Path) -> None:
    for uri in (f"{bucket}/runs", str(tmp_path / "runs")):
        expect(check_storage(uri), "ok", "listed, written, read and deleted")
        assert storage.list_names(uri) == []


def test_no_such_bucket(bucket: str) -> None:
    expect(check_storage("s3://other/runs"), "fail", "no such bucket", "--storage")


def test_read_only_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    with _refusing_s3(monkeypatch, "AccessDenied", "PUT", "POST"):
        expect(check_storage("s3://data/runs"), "fail", "s3://data/runs: read-only: may not write", "s3:PutObject")


def test_s3_that_may_not_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    with _refusing_s3(monkeypatch, "AccessDenied", "GET"):
        expect(check_storage("s3://data/runs"), "fail", "may not list", "s3:ListBucket")


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_wrong_credentials(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    with _refusing_s3(monkeypatch, code, "GET", "PUT", "HEAD", "DELETE", "POST"):
        check = check_storage("s3://data/runs")
    expect(check, "fail", rf"wrong credentials \({code}\)", "AWS_ACCESS_KEY_ID")
    assert "secret" not in check.finding + check.knob


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _use_s3(monkeypatch, 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    expect(check_storage("s3://data/runs"), "fail", "no credentials", "AWS_PROFILE")
    S3.clear_instance_cache()


def test_unreachable_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    _use_s3(monkeypatch, _free_port())
    monkeypatch.setenv("GLSCL_STORAGE_DEADLINE_S", "0")
    expect(check_storage("s3://data/runs"), "fail", r"s3://data/runs: unreachable \(", "AWS_ENDPOINT_URL")
    S3.clear_instance_cache()


def test_storage_that_does_not_know_checksums(bucket: str, proxy: FaultProxy) -> None:
    proxy.store = "not_implemented"
    expect(
        check_storage(f"{bucket}/runs"), "fail", "cannot write: .*NotImplemented", "AWS_REQUEST_CHECKSUM_CALCULATION"
    )


def test_storage_that_never_answers_is_unreachable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "STORAGE_S", 0.2)
    monkeypatch.setattr(module.checks, "check_storage", lambda _: time.sleep(5))
    monkeypatch.setattr(module, "_check_cluster", lambda *_, **__: [])
    monkeypatch.setattr(module, "ray_session", _no_session)
    assert main(["doctor", "--storage", "s3://data/runs"]) == 1
    assert "s3://data/runs: unreachable: no answer in 0.2 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "says", "knob"),
    [
        (errno.EROFS, "read-only: may not write", "mount"),
        (errno.EACCES, "read-only: may not write", "mode"),
        (errno.ENOSPC, "full", "remove files"),
        (errno.EIO, "cannot write: OSError", "--storage"),
    ],
)
def test_local_storage_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, says: str, knob: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", refuse)
    expect(check_storage(str(tmp_path)), "fail", says, knob)


def test_storage_of_nodes(tmp_path: Path) -> None:
    answers = {"a": None, "b": storage_problem(str(tmp_path), str(tmp_path / "written-elsewhere"))}
    expect(check_storage_of_nodes("/runs", answers), "fail", "b: what the driver wrote there is not seen", "s3://")
    crashed = {"a": None, "b": RuntimeError("died")}
    expect(check_storage_of_nodes("/runs", crashed), "fail", "/runs: b: died")
    expect(check_storage_of_nodes("/runs", {"a": None, "b": None}), "ok", "from 2 nodes")


# ------------------------------------------------------------------------------------------------------------ shards


def test_too_few_shards(make_shards: Callable[..., ShardSet]) -> None:
    uri = make_shards(captions=[1] * 12, per_shard=3).uri
    expect(check_shards([uri], 2, 2), "ok", "4 shards for 2 workers x 2 loader workers")
    more = make_shards("more", captions=[1] * 12, per_shard=3).uri
    expect(check_shards([uri, more], 8, 0), "ok", "8 shards for 8 workers x 1 loader workers")
    expect(check_shards([uri], 3, 2), "fail", "too few: 4 shards for 3 workers x 2", "--samples-per-shard")
    expect(check_shards([uri], 1, 2, most=2), "ok", "4 shards for 2 workers x 2 loader workers")
    expect(check_shards([uri], 1, 2, most=4), "warn", "too few: 4 shards for 4 workers x 2", "--samples-per-shard")
    expect(guard("shards", 30, check_shards, ["nowhere"], 1, 1), "fail", "nowhere/manifest.json: no such file")


# ---------------------------------------------------------------------------------------------------------- together


@contextmanager
def _no_session(quiet: bool = False) -> Iterator[None]:
    yield


def test_a_check_that_crashes_or_hangs_is_a_failed_check() -> None:
    def crash() -> Check:
        raise ZeroDivisionError("division\nby zero")

    def hang() -> Check:
        time.sleep(10)
        return Check("x", "ok", "")

    expect(guard("x", 5, crash), "fail", "^the check itself failed: ZeroDivisionError: division by zero$")
    expect(guard("x", 0.1, hang), "fail", r"no answer in 0\.1 s")


def test_table_verdict_and_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_shards: Callable[..., ShardSet]
) -> None:
    checks = [Check("cluster", "ok", "4 nodes"), Check("disk", "warn", "little", "a larger volume")]
    monkeypatch.setattr(module, "_check_cluster", lambda *_, **__: checks)
    monkeypatch.setattr(module, "ray_session", _no_session)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["check", "state"], ["cluster", "ok"], ["disk", "warn"]]
    assert lines[-1] == "glscl: OK 2 checks, none failed; to look at: disk"
    uri = make_shards(captions=[1] * 4, per_shard=2).uri
    assert main(["doctor", "--shards", uri, "--workers", "4"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("shards   fail   too few: 2 shards for 4 workers x 2 loader workers")
    assert lines[-1] == "glscl: FAILED 3 checks, 1 failed: shards; to look at: disk"


def test_a_node_with_another_ray_stops_the_run_and_nothing_else_stops_the_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], guarded: str, set_token: SetToken
) -> None:
    """Two reports are faked, one of another Ray; everything that would ask the nodes themselves breaks down."""
    set_token("wrong-but-of-good-length")
    mine = replace(SOUND, versions=nodes.read_versions())
    reports = {"10.0.0.1": mine, "10.0.0.2": replace(mine, versions=mine.versions | {"ray": "2.59.1"})}
    broken = SimpleNamespace(report=SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr(module, "start_actors", lambda _: dict.fromkeys(reports, nodes.ClusterNode({"CPU": 8}, broken)))
    monkeypatch.setattr(module, "gather", lambda _: reports)
    monkeypatch.setattr(module, "ray_session", _no_session)
    address = SimpleNamespace(address_info={"webui_url": guarded.removeprefix("http://")})
    monkeypatch.setattr("ray.init", lambda **_: address)
    assert main(["doctor", "--workers", "4"]) == 1
    lines = capsys.readouterr().out.splitlines()
    rows = {row[0]: row[1:] for row in (re.split(r"  +", line) for line in lines)}
    assert rows["versions"][:2] == ["fail", f"10.0.0.2 has ray 2.59.1, the driver {mine.versions['ray']}"]
    assert rows["network"][1].startswith("the check itself failed: AttributeError")
    assert rows["disk"][0] == "ok"
    assert "refuses this token" in rows["dashboard"][1]
    assert lines[-1].startswith("glscl: FAILED 8 checks, 5 failed: cluster, versions, network, clocks, dashboard")


def test_no_cluster_is_a_failed_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{_free_port()}")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "no Ray cluster answers at RAY_ADDRESS=" in out
    assert out.splitlines()[-1] == "glscl: FAILED 1 checks, 1 failed: cluster"


def test_a_token_that_the_cluster_itself_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(quiet: bool = False) -> Any:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    monkeypatch.setattr(module, "ray_session", refused)
    assert main(["doctor"]) == 1
    assert re.search(r"10\.0\.0\.1:6379: a wrong or missing token.*RAY_AUTH_TOKEN", capsys.readouterr().out)


def test_from_outside_the_rest_runs_as_a_job(
    guarded: str, set_token: SetToken, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[Any] = []

    def submit(words: list[str], options: Any) -> Any:
        sent.append((words, options.address))
        return module.Ending(1, "9 checks, 1 failed: disk")

    monkeypatch.setattr(module, "submit", submit)
    set_token(TOKEN)
    assert main(["doctor", "--workers", "4", "--address", guarded, "--use-gpu"]) == 1
    assert sent == [(["doctor", "--workers", "4", "--use-gpu"], guarded)]
    assert capsys.readouterr().out.splitlines()[-1] == "glscl: FAILED 9 checks, 1 failed: disk"
    set_token("wrong-but-of-good-length")
    assert main(["doctor", f"--address={guarded}"]) == 1
    assert "the cluster refuses this token" in capsys.readouterr().out
    assert len(sent) == 1


def test_a_storage_scheme_that_is_not_supported() -> None:
    expect(guard("storage", 5, check_storage, "gs://x/y"), "fail", "'gs://' is not supported")
    with pytest.raises(UserError):
        storage_problem("gs://x/y")
