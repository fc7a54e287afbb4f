"""What commands import and start before they do their work: counted, because seconds depend on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from glscl.commands.train import OTHER_SECTIONS, SECTIONS
from glscl.options import Options
from glscl.system.ray_internals import cluster as internals
from glscl.system.session import is_own, ray_session
from glscl.training.config import RunConfig

HEAVY = [
    "torch",
    "torch._dynamo",
    "torchvision",
    "open_clip",
    "deepspeed",
    "ray",
    "ray.train",
    "pandas",
    "matplotlib",
    "scipy.stats",
]
MAIN = "import sys, json; from glscl.cli import main; code = main({!r}); print(json.dumps([code, list(sys.modules)]))"


def loaded_by(script: str) -> tuple[list[str], list[str]]:
    """The last line that a script prints, split; which of the heavy packages it has loaded."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    return code, [name for name in HEAVY if name in modules]


@pytest.mark.parametrize(
    ("words", "status", "heavy"),
    [
        (["--help"], 0, []),
        (["trian"], 2, []),
        (["train", "--training.epoch", "1"], 2, []),
        (["train", "--traning.epochs", "1"], 2, []),
        (["presets"], 0, []),
        (["train", "--config", "tiny", "--training.warmup", "2"], 2, ["torch"]),
        (["train", "--config", "tiny", "--data.train", "/nowhere"], 2, ["torch", "ray"]),
        (["eval", "--run", "/nowhere", "--test", "/nowhere"], 2, []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_waits_for_no_package_that_it_does_not_need(words: list[str], status: int, heavy: list[str]) -> None:
    assert loaded_by(MAIN.format(words)) == (status, heavy)


def test_every_section_is_either_checked_early_or_left_alone() -> None:
    config = RunConfig()
    sections = {name for name in RunConfig.model_fields if isinstance(getattr(config, name), Options)}
    assert sections == {*SECTIONS, *OTHER_SECTIONS}


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        # Decoding processes, and what Ray Train's controller unpickles.
        ("glscl.data.stream, glscl.data.gallery", ["torch"]),
        ("glscl.evaluation.evaluate, glscl.training.driver.launch", ["torch"]),
        ("glscl.index.search, glscl.index.build", ["torch"]),
        ("glscl.training.driver.elastic, glscl.training.checkpoint.callback", ["torch", "ray", "ray.train", "pandas"]),
    ],
)
def test_a_process_imports_what_it_uses(modules: str, heavy: list[str]) -> None:
    assert loaded_by(f"import sys, json, {modules}; print(json.dumps([0, list(sys.modules)]))") == (0, heavy)


def test_the_raylet_gets_an_idle_agent_and_keeps_no_workers_ready(tmp_path: Path) -> None:
    command = ["raylet", "--dashboard_agent_command=python agent.py", "--num_prestart_python_workers=64", "--head"]
    command += [f"--session_dir={tmp_path}", "--node_id=n1"]
    started: list[list[str]] = []
    internals.start_process(lambda words, kind, **_: started.append(words), command, "raylet", fate_share=True)
    (words,) = started
    agent = words[1].partition("=")[2].split()
    assert words == ["raylet", words[1], "--num_prestart_python_workers=0", *command[3:]]
    process = subprocess.Popen(agent, env={"RAY_RAYLET_PID": str(os.getpid())})
    try:
        while len(list(tmp_path.glob("*_n1"))) < 3:
            assert process.poll() is None
        assert {path.read_text() for path in tmp_path.iterdir()} == {"-1"}
    finally:
        process.kill()
        process.wait()


def test_an_idle_agent_ends_with_its_raylet(tmp_path: Path) -> None:
    """However soon that is gone: this one has been from the start."""
    agent = Path(internals.__file__).with_name("idle_agent.py")
    gone = {"RAY_RAYLET_PID": str(psutil.pids()[-1] + 1)}
    subprocess.run([sys.executable, "-IS", str(agent), str(tmp_path), "n"], env=gone, check=True)


@pytest.mark.e2e
def test_a_cluster_of_one_command_is_five_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    before = set(psutil.Process().children(recursive=True))
    assert not is_own()
    with ray_session():
        assert is_own()
        lines = [" ".join(p.cmdline()) for p in set(psutil.Process().children(recursive=True)) - before]
        kinds = [
            "gcs_server --",
            "raylet/raylet",
            "log_monitor.py",
            "idle_agent.py",
            "RuntimeEnvAgent|runtime_env/agent",
        ]
        found = [next(kind for kind in kinds if any(name in line for name in kind.split("|"))) for line in lines]
        assert sorted(found) == sorted(kinds), lines
    assert not is_own()
    assert os.environ.get("RAY_ADDRESS") == "local"
