"""Launch files of SkyPilot, Slurm and Kueue: their tools' own parsers, and the run that all of them start."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from glscl.training.config import RunConfig, run_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SBATCH = CLUSTER / "slurm" / "train.sbatch"
SKYPILOT = CLUSTER / "skypilot.yaml"


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))
    return loaded


def trained(text: str) -> RunConfig:
    """The run of the one `python -m glscl train` in a script."""
    (words,) = re.findall(r"python -m glscl train((?:.*\\\n)*.*)$", text, re.MULTILINE)
    return run_config(shlex.split(words.replace("\\\n", " ").rstrip().removesuffix("&")), "glscl train")


def test_all_of_them_start_the_same_run() -> None:
    job = trained(load("kuberay/rayjob.yaml")["spec"]["entrypoint"])
    assert trained(SBATCH.read_text(encoding="utf-8")) == job
    assert trained(load("skypilot.yaml")["run"]) == job
    fixed = job.model_copy(update={"training": job.training.model_copy(update={"num_workers": 32})})
    assert trained(load("kuberay/kueue.yaml")["spec"]["entrypoint"]) == fixed


def test_kueue_admits_the_job_that_the_other_file_starts() -> None:
    """Kueue's own page on RayJobs names these limits."""
    job, queued = load("kuberay/rayjob.yaml"), load("kuberay/kueue.yaml")
    assert queued["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "glscl"}
    assert queued["spec"]["shutdownAfterJobFinishes"] is True
    cluster, other = queued["spec"]["rayClusterSpec"], job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    assert "suspend" not in queued["spec"], "Kueue's, not ours"
    assert len(cluster["workerGroupSpecs"]) <= 7
    (group,), (elastic,) = cluster["workerGroupSpecs"], other["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == elastic["maxReplicas"]
    gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert group["replicas"] * gpus == trained(queued["spec"]["entrypoint"]).training.num_workers
    assert group["template"] == elastic["template"]
    assert cluster["headGroupSpec"] == other["headGroupSpec"]


@pytest.mark.parametrize("part", ["sbatch", "setup", "run"])
def test_scripts_are_bash(part: str) -> None:
    text = SBATCH.read_text(encoding="utf-8") if part == "sbatch" else load("skypilot.yaml")[part]
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_machines_of_the_files_fit_the_run() -> None:
    text = SBATCH.read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE))
    run, sky = trained(text), load("skypilot.yaml")
    assert int(asked["nodes"]) * int(asked["gpus-per-node"]) == run.training.most_workers
    assert run.training.cpus * int(asked["gpus-per-node"]) <= int(asked["cpus-per-task"])
    assert asked["ntasks-per-node"] == "1"
    (gpus,) = sky["resources"]["accelerators"].values()
    assert sky["num_nodes"] * gpus == run.training.most_workers
    assert run.training.cpus * gpus <= int(sky["resources"]["cpus"].rstrip("+"))


def test_ray_demands_its_token_everywhere() -> None:
    assert "export RAY_AUTH_MODE=token" in SBATCH.read_text(encoding="utf-8")
    sky = load("skypilot.yaml")
    assert sky["envs"]["RAY_AUTH_MODE"] == "token"
    assert sky["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "AWS_" not in SKYPILOT.read_text(encoding="utf-8") + SBATCH.read_text(encoding="utf-8")


@pytest.mark.skipif(find_spec("sky") is None, reason="SkyPilot wants versions of its own: an environment of its own")
def test_skypilot_takes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    import sky

    task = sky.Task.from_yaml(str(SKYPILOT))
    assert task.num_nodes == 4
    with pytest.raises(ValueError, match="did you mean 'use_spot'"):
        sky.Task.from_yaml_str(SKYPILOT.read_text(encoding="utf-8").replace("use_spot", "use_spott"))


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="Slurm is not installed")
def test_slurm_takes_its_file(tmp_path: Path) -> None:
    """A cluster that lacks such nodes says so; an option that is none is refused before it is asked."""

    def said(path: Path) -> str:
        return subprocess.run(["sbatch", "--test-only", str(path)], capture_output=True, text=True, check=False).stderr

    assert "unrecognized" not in said(SBATCH)
    assert "Invalid" not in said(SBATCH)
    broken = tmp_path / "broken.sbatch"
    broken.write_text(SBATCH.read_text(encoding="utf-8").replace("--gpus-per-node", "--gpu-per-nodes"))
    assert "unrecognized option '--gpu-per-nodes" in said(broken)
