"""The KubeRay resources pass the schemas of the operator, which in turn refuse what is misspelt; the image fits."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from glscl.training.config import run_config
from glscl.training.schedule import usable_world_sizes

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
KINDS = {"raycluster": "rayclusters", "rayjob": "rayjobs", "kueue": "rayjobs"}


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((KUBERAY / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def strict(schema: Any) -> Any:
    """Kubernetes' dialect as JSON Schema, and keys that it would prune in silence as errors."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    closed = not schema.get("x-kubernetes-preserve-unknown-fields")
    if closed and schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        out.setdefault("additionalProperties", False)
    return out


@pytest.fixture(scope="module")
def mistakes(shared: Path) -> Callable[[str, dict[str, Any]], list[str]]:
    """What a resource's schema has against it."""
    validators = {}
    for name, kind in KINDS.items():
        schema = json.loads((shared / "schemas" / "kuberay" / f"{kind}.v1.openapi.json").read_text(encoding="utf-8"))
        validators[name] = Draft202012Validator(strict(schema))

    def check(name: str, resource: dict[str, Any]) -> list[str]:
        return [f"{error.json_path}: {error.message}" for error in validators[name].iter_errors(resource)]

    return check


@pytest.mark.parametrize("name", KINDS)
def test_resources_are_what_the_operator_accepts(name: str, mistakes: Callable[..., list[str]]) -> None:
    assert mistakes(name, load(name)) == []


def _misspelt(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][0]["maxReplica"] = 3


def _count_as_text(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][0]["minReplicas"] = "0"


def _number_as_parameter(spec: dict[str, Any]) -> None:
    spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _no_head(spec: dict[str, Any]) -> None:
    del spec["headGroupSpec"]


def _unknown_mode(spec: dict[str, Any]) -> None:
    spec["authOptions"]["mode"] = "none"


def _misspelt_deep(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumeMount"] = []


def _bad_quantity(spec: dict[str, Any]) -> None:
    spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "320 GB"


@pytest.mark.parametrize(
    ("break_it", "names"),
    [
        (_misspelt, "maxReplica"),
        (_count_as_text, "minReplicas"),
        (_number_as_parameter, "num-cpus"),
        (_no_head, "headGroupSpec"),
        (_unknown_mode, "authOptions.mode"),
        (_misspelt_deep, "volumeMount"),
        (_bad_quantity, "limits.memory"),
    ],
)
def test_the_schema_refuses(
    break_it: Callable[[dict[str, Any]], None], names: str, mistakes: Callable[..., list[str]]
) -> None:
    broken = copy.deepcopy(load("raycluster"))
    break_it(broken["spec"])
    assert any(names in mistake for mistake in mistakes("raycluster", broken))


def test_the_job_brings_the_cluster_that_the_other_file_describes() -> None:
    assert load("rayjob")["spec"]["rayClusterSpec"] == load("raycluster")["spec"]


def test_ray_versions_are_those_of_the_constraints() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"ray=={load('raycluster')['spec']['rayVersion']}\n" in constraints
    dockerfile = (ROOT / "cluster" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert f"FROM rayproject/ray:{ray.__version__}-py311-gpu\n" in dockerfile
    assert f"ray=={ray.__version__}\n" in constraints
    assert "--constraint" in dockerfile


def test_the_image_copies_everything_that_is_installed() -> None:
    dockerfile = (ROOT / "cluster" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"^COPY --\S+ (.*)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]}
    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "glscl", "cluster", "tune"}
    assert all((ROOT / name).exists() for name in copied)


def pods(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_pods_have_shared_memory_a_role_and_one_image() -> None:
    spec = load("raycluster")["spec"]
    for pod in pods(spec):
        (volume,) = [v["name"] for v in pod["volumes"] if v["emptyDir"]["medium"] == "Memory"]
        assert {"name": volume, "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        assert pod["serviceAccountName"] == "glscl"
        assert pod["restartPolicy"] == "Never"
    assert len({pod["containers"][0]["image"] for pod in pods(spec)}) == 1
    assert "AWS_" not in (KUBERAY / "raycluster.yaml").read_text(encoding="utf-8")


def test_training_starts_on_the_workers_and_its_numbers_fit() -> None:
    spec = load("rayjob")["spec"]
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    words = shlex.split(spec["entrypoint"])
    assert words[:4] == ["python", "-m", "glscl", "train"]
    config = run_config(words[4:], "glscl train")
    training, data = config.training, config.data
    gpus = limits["nvidia.com/gpu"]
    assert training.num_workers == (gpus, group["maxReplicas"] * gpus)  # one node to all of them
    assert usable_world_sizes(config, None) == (8, 16, 32)
    assert training.cpus_per_worker * limits["nvidia.com/gpu"] <= int(limits["cpu"])
    assert training.global_batch % data.virtual_streams == 0
    assert data.virtual_streams % (training.most_workers * data.loader_workers) == 0
    assert training.wait_for_nodes_s > 0
    assert config.name
    assert config.storage.startswith("s3://")


def test_the_readme_submits_the_same_run() -> None:
    text = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^glscl submit --name \S+ -- train ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    job = shlex.split(load("rayjob")["spec"]["entrypoint"])[4:]
    assert run_config(shlex.split(command.replace("\\\n", " ")), "glscl train") == run_config(job, "glscl train")
