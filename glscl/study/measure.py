"""What the variants' heads cost, measured one after the other on one worker's share of the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from glscl.evaluation.cost import head_cost, paper_counts
from glscl.models.towers import Towers
from glscl.study.analysis import machine
from glscl.study.grid import Cell
from glscl.study.options import StudyConfig
from glscl.system.nodes import alive_nodes
from glscl.training.config import RunConfig
from glscl.training.driver.machines import with_machines


def measure_costs(study: StudyConfig, cells: Sequence[Cell]) -> dict[str, Any]:
    """Costs of every variant in every condition, all by one process, side by side.

    Returns:
        ``costs``, ``cost_machine`` and ``paper_counts`` of the study's results.
    """
    import ray

    first = {(cell.condition, cell.variant): cell.config for cell in reversed(cells) if cell.domains}
    training = with_machines(next(iter(first.values())), alive_nodes, alone=False).training
    task = ray.remote(num_cpus=training.cpus, num_gpus=int(training.on_gpu))(_measure)
    values = [(condition, variant, config.model_dump(mode="json")) for (condition, variant), config in first.items()]
    order = list(study.variants)
    measured: dict[str, Any] = ray.get(task.remote(values, training.on_gpu))
    measured["costs"].sort(key=lambda cost: (cost["condition"], order.index(cost["variant"])))
    return measured | {"paper_counts": [asdict(count) for count in paper_counts()]}


def _measure(values: Sequence[tuple[str, str, Mapping[str, Any]]], use_gpu: bool) -> dict[str, Any]:
    costs = []
    width: dict[str, int] = {}
    for condition, variant, plain in values:
        model = RunConfig.model_validate(plain).model
        if model.clip not in width:
            width[model.clip] = Towers(model.clip, model.pretrained, load_weights=False).width
        options = getattr(model.heads, model.head)
        device = "cuda" if use_gpu else "cpu"
        cost = head_cost(model.head, options, width[model.clip], model.max_words, model.max_frames, device=device)
        costs.append({"condition": condition, "variant": variant, **asdict(cost)})
    return {"costs": costs, "cost_machine": f"{machine(use_gpu)}, {torch.get_num_threads()} thread(s)"}
