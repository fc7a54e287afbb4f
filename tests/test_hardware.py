"""What `auto` makes of machines, and that it changes nothing that is learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.options.differences import differing_keys
from glscl.system.nodes import Share, choose
from glscl.training.checkpoint.format import FREE_KEYS
from glscl.training.config import RunConfig, run_config, to_yaml, validate
from glscl.training.driver.machines import with_machines
from glscl.training.driver.preflight import preflight
from glscl.training.schedule import make_plan
from glscl.training.world_sizes import usable_world_sizes

LAPTOP = [{"CPU": 2.0}]
SERVER = [{"CPU": 16.0, "GPU": 1.0}]
CLUSTER = [{"CPU": 4.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 40.0, "GPU": 4.0}]


@pytest.mark.parametrize(
    ("nodes", "given", "share"),
    [
        (LAPTOP, {}, Share(1, False, 2.0, 1)),
        (SERVER, {}, Share(1, True, 16.0, 8)),
        (CLUSTER, {}, Share(12, True, 8.0, 7)),
        (CLUSTER, {"use_gpu": False}, Share(3, False, 4.0, 1)),
        (CLUSTER, {"use_gpu": False, "cpus_each": 4}, Share(27, False, 4.0, 1)),
        ([{"CPU": 16.0}], {"cpus_each": 4}, Share(4, False, 4.0, 1)),
        ([{"CPU": 3.0}], {"cpus_each": 4}, Share(1, False, 3.0, 1)),
        (CLUSTER, {"workers": 2}, Share(2, True, 20.0, 8)),
        (CLUSTER, {"workers": 12, "cpus": 5.0}, Share(12, True, 5.0, 4)),
        (LAPTOP, {"workers": 2}, Share(2, False, 1.0, 1)),
        (LAPTOP, {"workers": 1000}, Share(1000, False, 1.0, 1)),
        (LAPTOP, {"use_gpu": True}, Share(1, True, 1.0, 1)),
        ([{"CPU": 4.0, "GPU": 8.0}], {}, Share(8, True, 0.5, 1)),
        ([{"CPU": 16.0}], {"loaders": 0}, Share(1, False, 16.0, 0)),
        ([], {}, Share(1, False, 1.0, 1)),
    ],
)
def test_what_is_made_of_machines(nodes: list[dict[str, float]], given: dict[str, Any], share: Share) -> None:
    assert choose(nodes, **given) == share


def run(training: dict[str, Any], **data: Any) -> RunConfig:
    values = {"data": {"virtual_streams": 16, **data}, "training": {"global_batch": 48, **training}}
    return validate(values, "run")


def test_the_stream_decides_how_many_workers_are_used(make_shards: Callable[..., ShardSet]) -> None:
    """12 GPUs and 16 virtual streams: 8 workers; 8 shards for them leave one loader worker each, of 7."""
    shards = make_shards(captions=[6] * 16, per_shard=2)
    config = run({}, train=(shards.uri,))
    found = with_machines(config, lambda: CLUSTER)
    assert (found.training.num_workers, found.training.use_gpu, found.training.cpus_per_worker) == (8, True, 8.0)
    assert found.data.loader_workers == 1
    assert usable_world_sizes(found, make_plan(found, [shards])) == (8,)
    assert differing_keys(config.model_dump(mode="json"), found.model_dump(mode="json"), FREE_KEYS) == []
    in_a_study = with_machines(config, lambda: CLUSTER, alone=False)
    assert (in_a_study.training.num_workers, in_a_study.training.use_gpu) == (1, True)
    assert in_a_study.training.cpus_per_worker == 8.0, "its GPU's share of the node, not the node"
    on_cpus = with_machines(config, lambda: LAPTOP, alone=False)
    assert (on_cpus.training.num_workers, on_cpus.training.use_gpu, on_cpus.training.cpus_per_worker) == (1, False, 1.0)


def test_numbers_are_left_alone_and_nobody_is_asked() -> None:
    stated = run({"num_workers": 4, "use_gpu": True, "cpus_per_worker": 5}, loader_workers=4)
    assert with_machines(stated, lambda: pytest.fail("asked")) is stated
    ranged = with_machines(run({"num_workers": [2, 4]}, train=("/nowhere",)), lambda: LAPTOP)
    assert ranged.training.num_workers == (2, 4)
    assert (ranged.training.cpus_per_worker, ranged.training.use_gpu) == (1.0, False)


def test_preflight_says_what_is_used(make_shards: Callable[..., ShardSet]) -> None:
    shards = make_shards(captions=[6] * 16, per_shard=2)
    words = ["--config", "tiny", "--data.train", shards.uri, "--data.validation", "--data.test"]
    words += ["--training.global-batch", "16", "--training.num-workers", "auto", "--training.use-gpu", "auto"]
    auto = run_config(words, "glscl train").resolved()
    facts = preflight(with_machines(auto, lambda: SERVER)).facts
    assert facts["workers"].startswith("1 x GPU, NCCL, 16 CPUs each, ZeRO ")


def test_auto_survives_yaml_and_stands_beside_old_values() -> None:
    assert "use_gpu: auto" in to_yaml(RunConfig())
    old = validate({"training": {"use_gpu": False, "num_workers": [1, 2], "cpus_per_worker": 2}}, "old")
    assert (old.training.use_gpu, old.training.num_workers, old.training.cpus) == (False, (1, 2), 2.0)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--training.use-gpu"], True),
        (["--training.use-gpu", "--seed", "3"], True),
        (["--training.no-use-gpu"], False),
        (["--training.use_gpu", "true"], True),
        (["--training.use-gpu", "False"], False),
        (["--training.use-gpu", "auto"], "auto"),
        ([], "auto"),
    ],
)
def test_the_switch_is_still_a_switch(words: list[str], value: object) -> None:
    assert run_config(words, "glscl train").training.use_gpu == value


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--training.use-gpu", "maybe"], "invalid choice 'maybe'.*--training.use-gpu"),
        (["--training.num-workers", "atuo"], "training.num-workers.*atuo"),
        (["--data.loader-workers", "-1"], r"data.loader_workers = -1: Input should be greater"),
        (["--training.cpus-per-worker", "0"], r"training.cpus_per_worker = 0.0: Input should be greater"),
    ],
)
def test_mistakes(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run_config(words, "glscl train")
