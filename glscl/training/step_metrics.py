"""The figures of a log line: losses, speed, waiting for data."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from glscl.training.schedule import RunLength


class StepMetrics:
    """Measures the steps between two rows of the log; ``busy`` is the hardware's part that a pair per second takes."""

    def __init__(self, length: RunLength, global_batch: int, busy: float) -> None:
        self._length, self._global_batch, self._busy = length, global_batch, busy
        self._losses: dict[str, torch.Tensor] = {}
        self._seconds_per_step = 0.0
        self._restart()

    def _restart(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._steps = 0
        self._frames: torch.Tensor | int = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for a batch."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def count(self, losses: dict[str, torch.Tensor], frame_mask: torch.Tensor) -> None:
        """Take note of a step's loss terms and frames on this rank; nothing here waits for the device."""
        self._steps += 1
        self._losses = losses
        self._frames = self._frames + frame_mask.sum()

    def local_figures(self) -> torch.Tensor:
        """This rank's loss terms of the last step in the order of their names, and its frames; on the CPU."""
        losses = [self._losses[name].double() for name in sorted(self._losses)]
        frames = torch.as_tensor(self._frames, dtype=torch.float64, device=losses[0].device)
        return torch.stack([*losses, frames]).cpu()

    def row(
        self, figures: Sequence[torch.Tensor], truncated: int, quarantined: int, step: int, factor: float
    ) -> dict[str, float]:
        """The figures since the last row, from every rank's `local_figures` and the sums over all ranks."""
        elapsed = time.perf_counter() - self._began
        pairs = self._steps * self._global_batch
        *means, frames = torch.stack(list(figures)).mean(0).tolist()
        names = ["loss" if name == "total" else f"loss/{name}" for name in sorted(self._losses)]
        row = dict(zip(names, means, strict=True)) | {
            "epoch": step / self._length.steps_per_epoch,
            "learning_rate_factor": factor,
            "pairs_per_second": pairs / elapsed,
            "frames_per_second": frames * len(figures) / elapsed,
            "mfu": self._busy * pairs / elapsed,
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
            f"frames/s={row['frames_per_second']:.0f} mfu={row['mfu']:.1%} "
            f"data_wait={row['data_wait']:.0%} truncated={row['truncated']:.1%} quarantined={int(row['quarantined'])} "
            f"repaired={int(row['repaired'])}"
        )
