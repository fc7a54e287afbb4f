"""The figures of a log line: losses, speed, waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from glscl.training.schedule import RunLength


class StepMetrics:
    """Measures the steps between two rows of the log.

    Args:
        length: of the run.
        global_batch: pairs per step.
    """

    def __init__(self, length: RunLength, global_batch: int) -> None:
        self._length = length
        self._global_batch = global_batch
        self._losses: dict[str, torch.Tensor] = {}
        self._seconds_per_step = 0.0
        self._restart()

    def _restart(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for a batch."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def count(self, losses: dict[str, torch.Tensor]) -> None:
        """Take note of a step's loss terms on this rank; nothing here waits for the device."""
        self._steps += 1
        self._losses = losses

    def local_losses(self) -> torch.Tensor:
        """This rank's loss terms of the last step, on the CPU, in the order of their names."""
        return torch.stack([self._losses[name].float() for name in sorted(self._losses)]).cpu()

    def row(
        self, losses: Sequence[torch.Tensor], truncated: int, quarantined: int, step: int, factor: float
    ) -> dict[str, float]:
        """The figures since the last row.

        Args:
            losses: `local_losses` of every rank.
            truncated: captions of all ranks that were cut.
            quarantined: training videos that cannot be used.
            step: the last one.
            factor: of the learning rate.
        """
        elapsed = time.perf_counter() - self._began
        pairs = self._steps * self._global_batch
        means = torch.stack(list(losses)).double().mean(0).tolist()
        names = ["loss" if name == "total" else f"loss/{name}" for name in sorted(self._losses)]
        row = dict(zip(names, means, strict=True)) | {
            "epoch": step / self._length.steps_per_epoch,
            "learning_rate_factor": factor,
            "pairs_per_second": pairs / elapsed,
            "data_wait": self._waited / elapsed,
            "truncated": truncated / pairs,
            "quarantined": quarantined,
        }
        self._seconds_per_step = elapsed / self._steps
        self._restart()
        return row

    def seconds_left(self, step: int) -> float:
        """What the rest of the run will take, at the speed of the last row."""
        return self._seconds_per_step * (self._length.total - step)

    def line(self, step: int, row: dict[str, float]) -> str:
        """A row of the log as one plain line."""
        losses = " ".join(f"{name.removeprefix('loss/')}={row[name]:.4f}" for name in row if name.startswith("loss"))
        return (
            f"step={step}/{self._length.total} epoch={row['epoch']:.2f} {losses} "
            f"lr_factor={row['learning_rate_factor']:.3f} pairs/s={row['pairs_per_second']:.1f} "
            f"data_wait={row['data_wait']:.0%} truncated={row['truncated']:.1%} quarantined={int(row['quarantined'])} "
            f"repaired={int(row['repaired'])}"
        )
