"""The figures of a log line, over all ranks, and what they say about going on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributed

from glscl.data import stream
from glscl.data.quarantine import Quarantine
from glscl.data.shards import ShardSet
from glscl.errors import RunStoppedError
from glscl.training.checkpoint.format import TrainState
from glscl.training.config import RunConfig
from glscl.training.engine import gradient_norm
from glscl.training.schedule import RunLength


class NonFiniteError(RunStoppedError):
    """A step whose loss or gradient is not finite, found by every rank at the same moment.

    Attributes:
        report: ``step``, ``not_finite`` (names of the terms) and ``pairs`` (of the global batch, in order).
    """

    def __init__(self, report: dict[str, Any]) -> None:
        super().__init__(f"step {report['step']}: {', '.join(report['not_finite'])} not finite")
        self.report = report


class StepMetrics:
    """What the log line says: losses, speed, waiting for data, quarantine.

    Args:
        horizon: of the run.
        config: of the run.
        world: number of ranks.
        quarantine: takes the videos of all ranks that cannot be used.
        shard_sets: the training sets.
    """

    def __init__(
        self, horizon: RunLength, config: RunConfig, world: int, quarantine: Quarantine, shard_sets: Sequence[ShardSet]
    ) -> None:
        self._quarantine, self._shard_sets = quarantine, shard_sets
        self._horizon = horizon
        self._batch = config.training.global_batch
        self._world = world
        self._new_quarantined: list[dict[str, str]] = []
        self._checks: list[tuple[int, list[str], list[str], torch.Tensor]] = []
        self._losses: dict[str, torch.Tensor] = {}
        self._seconds_per_step = 0.0
        self._restart()

    def _restart(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._steps = self._truncated = 0

    def wait_for(self, batches: Iterator[stream.Batch]) -> stream.Batch:
        """The next batch, timing the wait."""
        began = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - began
        return batch

    def count(self, step: int, batch: stream.Batch, losses: dict[str, torch.Tensor], norm: Any) -> None:
        """Take note of one step; nothing here waits for the device.

        Args:
            step: its number, from 1.
            batch: this rank's pairs.
            losses: this rank's terms.
            norm: of the gradient over all ranks, where there is one.
        """
        terms = {**losses} if norm is None else {**losses, "gradient_norm": norm}
        device = losses["total"].device
        finite = torch.stack([torch.as_tensor(value, device=device).float().isfinite() for value in terms.values()])
        self._checks.append((step, batch.names, list(terms), finite))
        self._steps += 1
        self._truncated += batch.truncated
        self._new_quarantined += batch.quarantined
        self._losses = losses

    def row(self, engine: Any, factor: float, state: TrainState) -> dict[str, float]:
        """Figures since the last row, over all ranks (collective); the quarantine takes what they found.

        Raises:
            NonFiniteError: a loss term or the gradient of a step since the last row is not finite.
            RunStoppedError: too many videos of a training set are unusable.
        """
        bad = self._first_not_finite(engine, state.step)
        names = sorted(self._losses)
        local = torch.stack([self._losses[name].float() for name in names]).cpu()
        gathered: list[Any] = [None] * self._world
        distributed.all_gather_object(gathered, (local, self._new_quarantined, self._truncated, bad))
        self._new_quarantined = []
        self._quarantine.take("train", self._shard_sets, [entry for _, entries, *_ in gathered for entry in entries])
        elapsed = time.perf_counter() - self._began
        losses = torch.stack([values for values, *_ in gathered]).double().mean(0).tolist()
        row = {f"loss/{name}" if name != "total" else "loss": value for name, value in zip(names, losses, strict=True)}
        row |= {
            "epoch": state.step / self._horizon.steps_per_epoch,
            "learning_rate_factor": factor,
            "pairs_per_second": self._steps * self._batch / elapsed,
            "data_wait": self._waited / elapsed,
            "truncated": sum(count for _, _, count, _ in gathered) / (self._steps * self._batch),
            "quarantined": sum(entry["part"] == "train" for entry in self._quarantine.entries),
        }
        self._seconds_per_step = elapsed / self._steps
        norm = gradient_norm(engine)
        if norm is not None:
            row["gradient_norm"] = norm
        self._restart()
        if found := [step for *_, step in gathered if step is not None]:
            raise NonFiniteError(self._report(min(found)))
        self._checks = []
        if problem := self._quarantine.problem("train", self._shard_sets):
            raise RunStoppedError(problem)
        return row

    def _first_not_finite(self, engine: Any, step: int) -> int | None:
        """This rank's first step since the last row that went wrong."""
        for number, _, _, finite in self._checks:
            if not bool(finite.all()):
                return number
        if gradient_norm(engine) is not None:
            return None
        # DeepSpeed has no norm: a gradient gone wrong shows in what it made of the parameters.
        sound = all(bool(parameter.isfinite().all()) for parameter in engine.module.parameters())
        return None if sound else step

    def _report(self, step: int) -> dict[str, Any]:
        """What all ranks know about a step (collective)."""
        pairs: list[str] = []
        wrong: list[str] = []
        for number, names, terms, finite in self._checks:
            if number == step:
                pairs = names
                wrong = [term for term, fine in zip(terms, finite.tolist(), strict=True) if not fine]
        gathered: list[Any] = [None] * self._world
        distributed.all_gather_object(gathered, (wrong, pairs))
        found = dict.fromkeys(term for wrong, _ in gathered for term in wrong)
        return {
            "step": step,
            "not_finite": ["loss" if term == "total" else term for term in found] or ["parameters"],
            "pairs": [name for _, pairs in gathered for name in pairs],
        }

    def seconds_left(self, step: int) -> float:
        """What the rest of the run will take, at the speed of the last row."""
        return self._seconds_per_step * (self._horizon.total - step)

    def line(self, step: int, row: dict[str, float]) -> str:
        """One plain line."""
        losses = " ".join(f"{name.removeprefix('loss/')}={row[name]:.4f}" for name in row if name.startswith("loss"))
        return (
            f"step={step}/{self._horizon.total} epoch={row['epoch']:.2f} {losses} "
            f"lr_factor={row['learning_rate_factor']:.3f} pairs/s={row['pairs_per_second']:.1f} "
            f"data_wait={row['data_wait']:.0%} truncated={row['truncated']:.1%} quarantined={int(row['quarantined'])}"
        )
