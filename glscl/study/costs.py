"""The costs of the variants' heads, measured one after the other on one worker's share of the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from glscl.evaluation.cost import head_cost, paper_counts
from glscl.models.towers import Towers
from glscl.runs.cell import Cell
from glscl.runs.provenance import describe_machine
from glscl.study.options import StudyConfig
from glscl.study.results import Cost, PaperCount
from glscl.system.nodes import alive_nodes
from glscl.training.config import RunConfig
from glscl.training.driver.machines import with_machines


class MeasuredCosts(BaseModel):
    """What ``costs.json`` holds; the fields are those of `StudyResults`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    costs: list[Cost] = []
    cost_machine: str = ""
    paper_counts: list[PaperCount] = []


def measure_costs(study: StudyConfig, cells: Sequence[Cell]) -> MeasuredCosts:
    """Measure every variant in every condition, all by one process, side by side. Ray must be running."""
    import ray

    first = {(cell.condition, cell.variant): cell.config for cell in reversed(cells) if cell.domains}
    training = with_machines(next(iter(first.values())), alive_nodes, alone=False).training
    task = ray.remote(num_cpus=training.cpus, num_gpus=int(training.on_gpu))(_measure)
    runs = [(condition, variant, config.model_dump(mode="json")) for (condition, variant), config in first.items()]
    order = list(study.variants)
    measured: MeasuredCosts = ray.get(task.remote(runs, training.on_gpu))
    costs = sorted(measured.costs, key=lambda cost: (cost.condition, order.index(cost.variant)))
    counts = [PaperCount(**asdict(count)) for count in paper_counts()]
    return measured.model_copy(update={"costs": costs, "paper_counts": counts})


def _measure(runs: Sequence[tuple[str, str, dict[str, Any]]], use_gpu: bool) -> MeasuredCosts:
    """Measure in a process of the cluster: ``runs`` are condition, variant and the run's plain configuration."""
    costs = []
    width: dict[str, int] = {}
    for condition, variant, plain in runs:
        model = RunConfig.model_validate(plain).model
        if model.clip not in width:
            width[model.clip] = Towers(model.clip, model.pretrained, load_weights=False).width
        options = getattr(model.heads, model.head)
        device = "cuda" if use_gpu else "cpu"
        cost = head_cost(model.head, options, width[model.clip], model.max_words, model.max_frames, device=device)
        costs.append(Cost(condition=condition, variant=variant, **asdict(cost)))
    return MeasuredCosts(costs=costs, cost_machine=f"{describe_machine(use_gpu)}, {torch.get_num_threads()} thread(s)")
