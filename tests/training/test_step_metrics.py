"""A step whose loss or gradient is not finite is found, with its pairs, before anything of it is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from glscl.training.collectives import gather_objects
from glscl.training.non_finite import NonFiniteSteps
from glscl.training.schedule import RunLength
from glscl.training.step_metrics import StepMetrics


@pytest.fixture(autouse=True)
def alone(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def steps() -> NonFiniteSteps:
    return NonFiniteSteps()


def check(steps: NonFiniteSteps, step: int, norm: float | None = 1.0, parameter: float = 0.5) -> dict[str, Any] | None:
    """What a row of the log reports of this step."""
    module = torch.nn.ParameterList([torch.tensor([0.1, parameter])])
    engine: Any = SimpleNamespace(module=module, get_global_grad_norm=lambda: norm)
    report = steps.check(gather_objects(steps.first(engine, step)))
    return report and asdict(report)


def losses(contrastive: float, total: float) -> dict[str, torch.Tensor]:
    return {"contrastive": torch.tensor(contrastive), "total": torch.tensor(total)}


def test_the_first_step_that_went_wrong_between_two_rows(steps: NonFiniteSteps) -> None:
    steps.count(1, ["toy/a#0"], losses(1.0, 1.0), 1.0)
    assert check(steps, 1) is None
    steps.count(2, ["toy/b#0"], losses(1.0, 1.0), torch.tensor(1.0))
    steps.count(3, ["toy/c#0", "toy/d#1"], losses(math.inf, math.nan), torch.tensor(math.nan))
    steps.count(4, ["toy/e#0"], losses(math.nan, math.nan), math.nan)
    wrong = ["contrastive", "loss", "gradient_norm"]
    assert check(steps, 4, math.nan) == {"step": 3, "not_finite": wrong, "pairs": ["toy/c#0", "toy/d#1"]}


def test_a_gradient_alone(steps: NonFiniteSteps) -> None:
    """The loss of its step is sound; what it does to the parameters would be saved with that step."""
    steps.count(1, ["toy/a#0"], losses(1.0, 1.0), math.inf)
    assert check(steps, 1, math.inf) == {"step": 1, "not_finite": ["gradient_norm"], "pairs": ["toy/a#0"]}


def test_parameters_where_deepspeed_has_no_norm(steps: NonFiniteSteps) -> None:
    steps.count(1, ["toy/a#0"], losses(1.0, 1.0), None)
    assert check(steps, 1, None) is None
    steps.count(2, ["toy/b#0"], losses(1.0, 1.0), None)
    assert check(steps, 2, None, parameter=math.nan) == {"step": 2, "not_finite": ["parameters"], "pairs": ["toy/b#0"]}


def test_a_row_is_the_mean_over_the_ranks() -> None:
    metrics = StepMetrics(RunLength(10, 100, 10, 10), 8, 0.25)
    for _ in range(5):
        with metrics.waiting():
            pass
        metrics.count(losses(1.0, 3.0), torch.tensor([[True, False], [True, True]]))
    row = metrics.row(
        [metrics.local_figures(), torch.tensor([2.0, 5.0, 9.0])], truncated=4, quarantined=1, step=5, factor=0.5
    )
    assert list(row)[:4] == ["loss/contrastive", "loss", "epoch", "learning_rate_factor"]
    assert (row["loss/contrastive"], row["loss"], row["epoch"], row["truncated"]) == (1.5, 4.0, 0.5, 0.1)
    assert row["frames_per_second"] / row["pairs_per_second"] == pytest.approx((5 * 3 + 9) / 40), "of both ranks"
    assert row["mfu"] == pytest.approx(0.25 * row["pairs_per_second"])
    assert metrics.seconds_left(5) > 0
    line = metrics.line(5, row | {"repaired": 2})
    assert line.startswith("step=5/100 epoch=0.50 contrastive=1.5000 loss=4.0000 lr_factor=0.500 pairs/s=")
    assert line.endswith(" truncated=10.0% quarantined=1 repaired=2")
