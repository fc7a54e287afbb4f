"""Which Ray cluster a command uses."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray._private.utils

from glscl.errors import BrokenRunError, UserError
from glscl.system import session
from glscl.system.nodes import capacity_of_nodes, check_resources
from glscl.system.ownership import start_of
from glscl.system.ray_internals import cluster as internals
from glscl.system.ray_internals.cluster import use_interface_of_node
from glscl.system.session import cluster_of_this_machine, ray_session


@pytest.fixture
def silent() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


def test_a_dead_cluster_in_ray_address_is_one_line_at_once(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", silent)
    with pytest.raises(UserError, match=f"no Ray cluster answers at RAY_ADDRESS={silent}"), ray_session():
        pass


def test_a_cluster_that_is_gone_is_not_waited_for(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left_behind = tmp_path / "ray_current_cluster"
    left_behind.write_text(silent)
    monkeypatch.setattr(ray._private.utils, "get_ray_address_file", lambda _: str(left_behind))
    assert cluster_of_this_machine() is None
    assert f"the Ray cluster at {silent} is gone" in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", int(silent.rpartition(":")[2]))):
        assert cluster_of_this_machine() == silent
    left_behind.unlink()
    assert cluster_of_this_machine() is None


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of this test's own, with a short name: Ray's sockets lie in it."""
    folder = tempfile.mkdtemp(prefix="glt-", dir="/tmp")
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    yield Path(folder)
    shutil.rmtree(folder)


def left(parent: Path, name: str, start: str = "1", days: float = 0.0, **more: bool) -> Path:
    """A folder as a command leaves it; no process of this number began as soon as the machine."""
    folder = parent / f"glscl-ray-{name}"
    folder.mkdir()
    mark = folder / "owner.json"
    mark.write_text(json.dumps({"pid": os.getpid(), "start": start, **more}))
    os.utime(mark, (time.time() - days * 86400,) * 2)
    return folder


def test_what_killed_commands_left_goes_and_what_is_needed_stays(temporary: Path) -> None:
    gone = [left(temporary, "killed"), left(temporary, "old", days=8, failed=True)]
    kept = [
        left(temporary, "failed", days=6, failed=True),
        left(temporary, "running", start=start_of(os.getpid()) or "", days=8),
    ]
    (temporary / "ray" / "session_1").mkdir(parents=True)
    (temporary / "glscl-ray-starting").mkdir()
    session._remove_left_folders(str(temporary))
    assert not any(folder.exists() for folder in gone)
    assert all(folder.exists() for folder in [*kept, temporary / "ray" / "session_1", temporary / "glscl-ray-starting"])


def test_a_start_of_ray_that_fails_is_tried_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    starts: list[str] = []

    def init(**options: Any) -> None:
        starts.append(options["_temp_dir"])
        if len(starts) != 2:
            raise Exception("The current node timed out during startup. This\ncould happen")  # Ray's own type and words

    monkeypatch.setattr("ray.init", init)
    with ray_session():
        pass
    assert len(starts) == 2
    printed = capsys.readouterr().out
    assert printed == (
        "Ray has not started (Exception: The current node timed out during startup. This could happen); trying again\n"
    )
    starts[:] = ["", ""]
    says = r"^Ray does not start on this machine, tried 2 times: .*node timed out"
    with pytest.raises(BrokenRunError, match=says), ray_session():
        pytest.fail("without a cluster")
    assert len(starts) == 4
    assert f"Ray's logs of this command: {starts[-1]}" in capsys.readouterr().out
    assert os.environ.items() >= session.PATIENCE.items()


def test_a_node_that_starts_slowly_is_waited_for_while_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    alive = [True]

    def get_node(address: str, node: str) -> str:
        asked.append(node)
        if len(asked) < 4:
            raise RuntimeError("No node found")
        return "its details"

    raylet = SimpleNamespace(name=lambda: "raylet")
    monkeypatch.setattr(psutil.Process, "children", lambda _: [raylet] if alive[0] else [])
    monkeypatch.setattr(internals.time, "sleep", lambda _: None)
    assert internals.wait_for_node(get_node, "address", "n") == "its details"
    assert asked == ["n"] * 4
    asked.clear()
    alive[0] = False
    with pytest.raises(RuntimeError, match="No node found"):
        internals.wait_for_node(get_node, "address", "n")
    assert asked == ["n"]


def test_folders_of_other_versions_are_left_alone(temporary: Path) -> None:
    folder = temporary / "glscl-ray-other"
    folder.mkdir()
    (folder / "owner.json").write_text('{"owner": 1}')
    session._remove_left_folders(str(temporary))
    assert folder.exists()


@pytest.mark.e2e
def test_a_local_cluster_ends_with_the_block_and_refuses_what_it_has_not(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    before = set(psutil.Process().children(recursive=True))  # what other tests have left running
    started: set[psutil.Process] = set()

    def command() -> None:
        with ray_session():
            assert ray.is_initialized()
            check_resources(1, 1.0, use_gpu=False)
            with pytest.raises(UserError, match=r"1000 CPU .*lower training\.num_workers"):
                check_resources(1000, 1.0, use_gpu=False)
            with pytest.raises(UserError, match=r"wait_for_nodes_s"):
                check_resources(1000, 1.0, use_gpu=False, wait_s=2.0)
            check_resources(1, 1.0, use_gpu=False, most=1000)
            coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
            requests = "lambda actor: [r.requested_resources_sum() for r in actor._ongoing_reqs.values()]"
            assert ray.get(coordinator.__ray_call__.remote(eval(requests))) == [], "the request has been taken back"
            started.update({*psutil.Process().children(recursive=True)} - before)
            raise ValueError("of the test")

    with pytest.raises(ValueError, match="of the test"):
        command()
    assert started
    assert not ray.is_initialized()
    assert not [process for process in started if process.is_running()]
    (folder,) = temporary.glob("glscl-ray-*")
    assert f"Ray's logs of this command: {folder}" in capsys.readouterr().out
    assert json.loads((folder / "owner.json").read_text())["failed"] is True
    assert list(folder.glob("session_2*/logs/*"))


def test_gloo_takes_the_interface_of_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: dict[str, Any] = {
        "lo": [SimpleNamespace(address="127.0.0.1")],
        "eth1": [SimpleNamespace(address="fe80::1"), SimpleNamespace(address="10.0.0.7")],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr("glscl.system.ray_internals.cluster.get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # what is set below goes with the test
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    use_interface_of_node()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    use_interface_of_node()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


def test_workers_fit_whole_on_nodes() -> None:
    assert capacity_of_nodes([{"CPU": 7.0}, {"CPU": 7.0}], 4, use_gpu=False) == 2
    assert capacity_of_nodes([{"CPU": 0.3}], 0.1, use_gpu=False) == 3
    assert capacity_of_nodes([{"CPU": 40.0, "GPU": 8.0}, {"CPU": 4.0, "GPU": 8.0}, {"CPU": 64.0}], 5, use_gpu=True) == 8


def test_enough_cpus_of_which_no_node_has_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 7.0}}] * 2)
    check_resources(2, 4.0, use_gpu=False)
    with pytest.raises(
        UserError, match=r"3 workers need 4 CPU each on one node \(there is room for 2\): lower training"
    ):
        check_resources(3, 4.0, use_gpu=False)
