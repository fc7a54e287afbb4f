"""Which numbers of workers suit a run, and that a run which shrinks does not outgrow its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.training.config import RunConfig, load_config, run_config, to_yaml
from glscl.training.options import TrainingConfig
from glscl.training.schedule import accumulation_steps, describe_batch, make_plan, usable_world_sizes


def config(**training: Any) -> RunConfig:
    return RunConfig.model_validate({"training": training, "data": {"virtual_streams": 8, "loader_workers": 2}})


@pytest.mark.parametrize(
    ("training", "sizes"),
    [
        ({"global_batch": 16, "num_workers": 4}, (4,)),
        ({"global_batch": 16, "num_workers": (1, 5)}, (1, 2, 4)),
        ({"global_batch": 16, "num_workers": (3, 4)}, (4,)),
        ({"global_batch": 16, "num_workers": (2, 8), "accumulate": 8}, (2,)),  # 4 and 8 workers have too few pairs each
        ({"global_batch": 24, "num_workers": (2, 6), "accumulate": 4}, (2, 3, 4, 6)),
    ],
)
def test_usable_sizes_divide_the_global_batch(training: dict[str, Any], sizes: tuple[int, ...]) -> None:
    assert usable_world_sizes(config(**training), None) == sizes


def test_usable_sizes_also_suit_the_stream(make_shards: Callable[..., ShardSet]) -> None:
    """8 virtual streams for 2 loader workers each, 6 shards: 3 workers do not divide the streams, 4 outnumber them."""
    shards = make_shards(captions=[1] * 24, per_shard=4)
    run = config(global_batch=24, num_workers=(1, 4))
    assert usable_world_sizes(run, None) == (1, 2, 3, 4)
    assert usable_world_sizes(run, make_plan(run, [shards])) == (1, 2)
    with pytest.raises(UserError, match=r"none of 3 to 4 workers .*; 4: too few shards: 6 .*data\.loader_workers"):
        usable_world_sizes(config(global_batch=24, num_workers=(3, 4)), make_plan(run, [shards]))


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        (
            {"global_batch": 16, "num_workers": 3},
            r"^training.global_batch \(16\) is not a multiple of .*num_workers \(3",
        ),
        (
            {"global_batch": 16, "num_workers": (5, 7)},
            r"num_workers: none of 5 to 7 .*; 7: training.global_batch \(16\)",
        ),
        (
            {"global_batch": 16, "num_workers": (1, 2), "cpus_per_worker": 0.5},
            r"cpus_per_worker \(0.5\) .*whole number",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_knobs(training: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        usable_world_sizes(config(**training), None)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 8), st.integers(2, 12))
def test_fewer_workers_encode_no_larger_parts(pairs: int, accumulate: int, fewer: int, most: int) -> None:
    batch = pairs * accumulate * most
    training = TrainingConfig(global_batch=batch, accumulate=accumulate, num_workers=(1, most))
    sizes = tuple(n for n in range(1, most + 1) if batch % n == 0)
    assert accumulation_steps(training, sizes, most) == accumulate
    size = sizes[fewer % len(sizes)]
    parts = accumulation_steps(training, sizes, size)
    assert batch // size % parts == 0
    assert batch // size // parts <= pairs


def test_the_share_in_words() -> None:
    training = TrainingConfig(global_batch=1024, accumulate=2, num_workers=(8, 32))
    assert describe_batch(training, (8, 16, 32), 8) == "8 workers x 8 parts x 16"


def test_a_range_in_yaml_and_on_the_command_line(tmp_path: Any) -> None:
    training = run_config(["--training.num-workers", "2", "8", "--training.accumulate", "2"], "glscl train").training
    assert (training.num_workers, training.fewest_workers, training.most_workers) == ((2, 8), 2, 8)
    assert training.is_elastic
    one = run_config(["--training.num-workers", "2"], "glscl train").training
    assert (one.num_workers, one.fewest_workers, one.most_workers, one.is_elastic) == (2, 2, 2, False)
    path = tmp_path / "run.yaml"
    path.write_text("training:\n  num_workers: [2, 8]\n")
    read = load_config(str(path))
    assert read.training.num_workers == (2, 8)
    path.write_text(to_yaml(read))
    assert load_config(str(path)) == read


@pytest.mark.parametrize("workers", ["0", "[8, 2]", "[0, 2]", "[1, 2, 3]", "two", "true", "2.5"])
def test_a_bad_number_of_workers_is_refused(workers: str, tmp_path: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"training:\n  num_workers: {workers}\n")
    with pytest.raises(
        UserError,
        match=r"training\.num_workers = .*(a number of workers|a range is two numbers|true and false are none)",
    ):
        load_config(str(path))
