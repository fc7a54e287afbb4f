"""Detection of steps whose loss or gradient is not finite, by every rank at the same row of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glscl.training.collectives import gather_objects
from glscl.training.run_log import NonFiniteReport

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


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
        """Take note of one step: its number, and this rank's pairs and terms. Nothing here waits for the device."""
        terms = {**losses} if norm is None else {**losses, "gradient_norm": norm}
        device = losses["total"].device
        values = torch.stack([torch.as_tensor(value, device=device).float() for value in terms.values()])
        self._steps.append(_Step(step, pairs, list(terms), values.isfinite()))

    def first(self, engine: DeepSpeedEngine, step: int) -> int | None:
        """This rank's first step since the last row that went wrong; ``step`` is the last of them, just done."""
        sound = torch.stack([counted.finite.all() for counted in self._steps]).tolist() if self._steps else []
        if not all(sound):
            return self._steps[sound.index(False)].number
        if engine.get_global_grad_norm() is not None:
            return None
        # DeepSpeed has no norm: a gradient gone wrong shows in what it made of the parameters.
        finite = torch.stack([parameter.isfinite().all() for parameter in engine.module.parameters()])
        return None if bool(finite.all()) else step

    def check(self, first_steps: Sequence[int | None]) -> NonFiniteReport | None:
        """What all ranks know of the first step that went wrong for one (collective); forgets the steps if none did."""
        first = min((step for step in first_steps if step is not None), default=None)
        if first is None:
            self._steps = []
            return None
        counted = next(counted for counted in self._steps if counted.number == first)
        wrong = list(compress(counted.terms, (~counted.finite).tolist()))
        ranks = gather_objects((wrong, counted.pairs))
        terms = dict.fromkeys(term for wrong_here, _ in ranks for term in wrong_here)
        return NonFiniteReport(
            first,
            ["loss" if term == "total" else term for term in terms] or ["parameters"],
            [name for _, pairs_there in ranks for name in pairs_there],
        )
