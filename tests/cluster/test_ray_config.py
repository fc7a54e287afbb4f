"""The cluster-launcher files pass Ray's own checks, and those checks can fail."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from cluster.launcher import validate_launcher
from glscl.errors import UserError
from glscl.training.config import run_config

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "ray_config.yaml"
LOCAL = ROOT / "cluster" / "local.yaml"
both = pytest.mark.parametrize("launcher", [LAUNCHER, LOCAL], ids=["aws", "local"])


def load(launcher: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(launcher.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def values() -> dict[str, Any]:
    return load(LAUNCHER)


def test_launcher_file_is_what_ray_accepts() -> None:
    prepared = validate_launcher(str(LAUNCHER))
    assert prepared["available_node_types"]["gpu_spot"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_launcher_file_for_machines_one_has_is_what_ray_accepts() -> None:
    prepared = validate_launcher(str(LOCAL))
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(prepared["provider"]["worker_ips"])


def _unknown_key(values: dict[str, Any]) -> None:
    values["max_wokers"] = 3


def _unknown_head(values: dict[str, Any]) -> None:
    values["head_node_type"] = "gpu"


def _fraction_of_a_gpu(values: dict[str, Any]) -> None:
    values["available_node_types"]["gpu_spot"]["resources"]["GPU"] = 0.5


def _more_than_allowed(values: dict[str, Any]) -> None:
    values["available_node_types"]["gpu_spot"]["min_workers"] = 9


def _no_provider(values: dict[str, Any]) -> None:
    del values["provider"]


def _unknown_provider(values: dict[str, Any]) -> None:
    values["provider"]["type"] = "awz"


def _commands_as_text(values: dict[str, Any]) -> None:
    values["setup_commands"] = "pip install ."


def _no_nodes(values: dict[str, Any]) -> None:
    values["available_node_types"] = None


@pytest.mark.parametrize(
    ("break_it", "names"),
    [
        (_unknown_key, "max_wokers"),
        (_unknown_head, "head_node_type"),
        (_fraction_of_a_gpu, "GPU"),
        (_more_than_allowed, "max_workers"),
        (_no_provider, "provider"),
        (_unknown_provider, "awz"),
        (_commands_as_text, "setup_commands|form"),
        (_no_nodes, "form|available_node_types|head_node_type"),
    ],
)
def test_broken_launcher_file_is_refused(
    values: dict[str, Any], tmp_path: Path, break_it: Callable[[dict[str, Any]], None], names: str
) -> None:
    break_it(values)
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(UserError, match=names) as raised:
        validate_launcher(str(path))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [b"a: [1", b"- a list", b"", b"name: \xff"])
def test_unreadable_launcher_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "launcher.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        validate_launcher(str(path))


def test_missing_launcher_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        validate_launcher(str(tmp_path / "none.yaml"))


@both
def test_image_and_constraints_name_the_installed_ray(launcher: Path) -> None:
    assert f":{ray.__version__}-py311-" in load(launcher)["docker"]["image"]
    assert f"ray=={ray.__version__}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


@both
def test_every_node_authenticates_in_the_same_way(launcher: Path) -> None:
    values = load(launcher)
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in values[key]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "~/.ray/auth_token" in values["file_mounts"]


def test_training_can_start_and_never_on_the_head(values: dict[str, Any]) -> None:
    kinds = values["available_node_types"]
    assert kinds["head"]["resources"]["CPU"] == 0
    workers = [kind for name, kind in kinds.items() if name != "head"]
    assert sum(kind["max_workers"] for kind in workers) <= values["max_workers"]
    assert any(kind["max_workers"] * kind["resources"]["GPU"] >= 8 for kind in workers)  # the largest preset's


def test_its_example_is_a_range_from_one_spot_node_to_all_of_them(values: dict[str, Any]) -> None:
    (command,) = re.findall(r"'glscl train (.*)'", LAUNCHER.read_text(encoding="utf-8"))
    training = run_config(shlex.split(command), "glscl train").training
    spot = values["available_node_types"]["gpu_spot"]
    assert training.num_workers == (spot["resources"]["GPU"], spot["max_workers"] * spot["resources"]["GPU"])
    assert training.wait_for_nodes_s > 0


def test_constraints_are_plain_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert not [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[^\s@/]+", line)]
    assert not [line for line in pins if line.startswith("glscl==")]
