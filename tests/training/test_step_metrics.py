"""A step whose loss or gradient is not finite is found, with its pairs, before anything of it is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from glscl.data.quarantine import Quarantine
from glscl.data.stream import Batch
from glscl.training.checkpoint.format import TrainState
from glscl.training.config import RunConfig
from glscl.training.schedule import RunLength
from glscl.training.step_metrics import NonFiniteError, StepMetrics


@pytest.fixture(autouse=True)
def alone(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def meter() -> StepMetrics:
    return StepMetrics(
        RunLength(10, 100, 10, 10), RunConfig(name="r"), 1, Quarantine(None, 0.5, "data.max_bad_fraction"), []
    )


def batch(*names: str) -> Batch:
    nothing = torch.zeros(0)
    return Batch(nothing, nothing, nothing, nothing, list(names))


def row(meter: StepMetrics, step: int, norm: float | None = 1.0, parameter: float = 0.5) -> dict[str, float]:
    module = torch.nn.ParameterList([torch.tensor([0.1, parameter])])
    engine: Any = SimpleNamespace(module=module, get_global_grad_norm=lambda: norm)
    return meter.row(engine, 1.0, TrainState(step, 1, 0, {}, []))


def losses(contrastive: float, total: float) -> dict[str, torch.Tensor]:
    return {"contrastive": torch.tensor(contrastive), "total": torch.tensor(total)}


def test_the_first_step_that_went_wrong_between_two_rows(meter: StepMetrics) -> None:
    meter.count(1, batch("toy/a#0"), losses(1.0, 1.0), 1.0)
    assert row(meter, 1)["loss"] == 1.0
    meter.count(2, batch("toy/b#0"), losses(1.0, 1.0), torch.tensor(1.0))
    meter.count(3, batch("toy/c#0", "toy/d#1"), losses(math.inf, math.nan), torch.tensor(math.nan))
    meter.count(4, batch("toy/e#0"), losses(math.nan, math.nan), math.nan)
    with pytest.raises(NonFiniteError) as error:
        row(meter, 4, math.nan)
    wrong = ["contrastive", "loss", "gradient_norm"]
    assert error.value.report == {"step": 3, "not_finite": wrong, "pairs": ["toy/c#0", "toy/d#1"]}


def test_a_gradient_alone(meter: StepMetrics) -> None:
    """The loss of its step is sound; what it does to the parameters would be saved with that step."""
    meter.count(1, batch("toy/a#0"), losses(1.0, 1.0), math.inf)
    with pytest.raises(NonFiniteError) as error:
        row(meter, 1, math.inf)
    assert error.value.report == {"step": 1, "not_finite": ["gradient_norm"], "pairs": ["toy/a#0"]}


def test_parameters_where_deepspeed_has_no_norm(meter: StepMetrics) -> None:
    meter.count(1, batch("toy/a#0"), losses(1.0, 1.0), None)
    assert row(meter, 1, None)["loss"] == 1.0
    meter.count(2, batch("toy/b#0"), losses(1.0, 1.0), None)
    with pytest.raises(NonFiniteError) as error:
        row(meter, 2, None, parameter=math.nan)
    assert error.value.report == {"step": 2, "not_finite": ["parameters"], "pairs": ["toy/b#0"]}
