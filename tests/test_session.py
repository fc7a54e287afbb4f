"""Which Ray cluster a command uses."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import ray._private.utils

from glscl.errors import UserError
from glscl.session import _cluster_of_this_machine, check_resources, ray_session


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
    assert _cluster_of_this_machine() is None
    assert f"the Ray cluster at {silent} is gone" in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", int(silent.rpartition(":")[2]))):
        assert _cluster_of_this_machine() == silent
    left_behind.unlink()
    assert _cluster_of_this_machine() is None


@pytest.mark.e2e
def test_a_local_cluster_ends_with_the_block_and_refuses_what_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with ray_session():
        assert ray.is_initialized()
        check_resources(1, 1.0, use_gpu=False)
        with pytest.raises(UserError, match=r"1000 CPU .*lower training\.num_workers"):
            check_resources(1000, 1.0, use_gpu=False)
        with pytest.raises(UserError, match=r"wait_for_nodes_s"):
            check_resources(1000, 1.0, use_gpu=False, wait_s=2.0)
    assert not ray.is_initialized()
