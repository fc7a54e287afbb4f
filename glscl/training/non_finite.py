"""Detection of steps whose loss or gradient is not finite, by every rank at the same row of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glscl.errors import RunStoppedError
from glscl.training.collectives import gather_objects
from glscl.training.engine import gradient_norm
from glscl.training.run_log import NonFiniteReport

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class NonFiniteError(RunStoppedError):
    """A step whose loss or gradient is not finite; every rank raises it at the same moment."""

    def __init__(self, report: NonFiniteReport) -> None:
        super().__init__(f"step {report.step}: {', '.join(report.not_finite)} not finite")
        self.report = report


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    pairs: list[str]
    terms: list[str]
    finite: torch.Tensor


class NonFiniteSteps:
    """The steps since the last row of the log, and which of their terms are finite."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    def count(self, step: int, pairs: list[str], losses: dict[str, torch.Tensor], norm: Tensor | float | None) -> None:
        """Take note of one step; nothing here waits for the device.

        Args:
            step: its number, from 1.
            pairs: names of this rank's pairs.
            losses: this rank's terms.
            norm: of the gradient over all ranks, where there is one.
        """
        terms = {**losses} if norm is None else {**losses, "gradient_norm": norm}
        device = losses["total"].device
        finite = torch.stack([torch.as_tensor(value, device=device).float().isfinite() for value in terms.values()])
        self._steps.append(_Step(step, pairs, list(terms), finite))

    def first(self, engine: DeepSpeedEngine, step: int) -> int | None:
        """This rank's first step since the last row that went wrong.

        Args:
            engine: DeepSpeed's, after the last of these steps.
            step: number of the last of these steps.
        """
        for counted in self._steps:
            if not bool(counted.finite.all()):
                return counted.number
        if gradient_norm(engine) is not None:
            return None
        # DeepSpeed has no norm: a gradient gone wrong shows in what it made of the parameters.
        sound = all(bool(parameter.isfinite().all()) for parameter in engine.module.parameters())
        return None if sound else step

    def check(self, first_steps: Sequence[int | None]) -> None:
        """Forget the steps that went well (collective if one did not).

        Args:
            first_steps: `first` of every rank.

        Raises:
            NonFiniteError: one of them went wrong.
        """
        wrong = [step for step in first_steps if step is not None]
        if wrong:
            raise NonFiniteError(self._report(min(wrong)))
        self._steps = []

    def _report(self, step: int) -> NonFiniteReport:
        """What all ranks know about a step (collective)."""
        pairs: list[str] = []
        wrong: list[str] = []
        for counted in self._steps:
            if counted.number == step:
                pairs = counted.pairs
                flags = zip(counted.terms, counted.finite.tolist(), strict=True)
                wrong = [term for term, finite in flags if not finite]
        ranks = gather_objects((wrong, pairs))
        terms = dict.fromkeys(term for wrong_here, _ in ranks for term in wrong_here)
        return NonFiniteReport(
            step,
            ["loss" if term == "total" else term for term in terms] or ["parameters"],
            [name for _, pairs_there in ranks for name in pairs_there],
        )
