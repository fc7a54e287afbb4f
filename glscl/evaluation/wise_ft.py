"""WiSE-FT: weights between those that training began with and those that it ended with (Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glscl.errors import UserError
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.saved import initial_model
from glscl.models.adapters import merge_lora
from glscl.models.freezing import group_of

if TYPE_CHECKING:
    from glscl.models.retriever import Retriever


@dataclass(frozen=True, slots=True)
class Mix:
    """How much of the trained weights there is, 0 to 1; the rest is of the initial ones."""

    towers: float = 1.0
    """Of the clip towers, LoRA's changes included, and the logit scale (and bias); 0 are the zero-shot towers."""
    head: float = 1.0
    """Of the head and the frame context; 0 are those that training began with."""
    is_listed: bool = False
    """Whether it is one of several, so that results name it."""

    @property
    def is_trained(self) -> bool:
        """Whether nobody asked for other weights than the trained ones."""
        return self.towers == self.head == 1.0 and not self.is_listed

    @property
    def label(self) -> str:
        """What is added to the name of a test set that is scored with several mixes."""
        if not self.is_listed:
            return ""
        return f", towers α={self.towers:g}" + ("" if self.head == 1.0 else f", head α={self.head:g}")

    @property
    def alphas(self) -> dict[str, float]:
        """As the result of a test holds them, which says nothing where nobody asked."""
        return {} if self.is_trained else {"towers_alpha": self.towers, "head_alpha": self.head}


def configured_mix(config: EvaluationConfig) -> Mix:
    """The weights that a run's configuration asks for."""
    towers, head = (1.0 if alpha is None else alpha for alpha in (config.towers_alpha, config.head_alpha))
    return Mix(towers, head)


def listed_mixes(towers: Sequence[float], heads: Sequence[float]) -> tuple[Mix, ...]:
    """Every combination of the numbers for the towers and for the head, 1 where there is none; none without any.

    Raises `UserError`: a number is not from 0 to 1, or is given twice.
    """
    for option, alphas in (("--alphas", towers), ("--head-alphas", heads)):
        if wrong := [alpha for alpha in alphas if not 0 <= alpha <= 1]:
            raise UserError(f"{option} = {wrong[0]:g}: give numbers from 0 (as training began) to 1 (as it ended)")
        if len(set(alphas)) < len(alphas):
            raise UserError(f"{option}: a number is given twice")
    if not towers and not heads:
        return ()
    return tuple(Mix(*both, is_listed=True) for both in product(towers or (1.0,), heads or (1.0,)))


class Interpolation:
    """A trained model that takes on weights between its initial and its trained ones.

    LoRA's changes are first added to the weights that they change, so that ``towers`` is a straight line between two
    sets of towers. ``uri`` is where the model is saved. Raises `UserError`: its pretrained towers are not there.
    """

    def __init__(self, model: Retriever, uri: str) -> None:
        self._model = model
        initial = initial_model(uri)
        for one in (initial, model):
            merge_lora(one)
        self._initial = initial.state_dict()
        self._trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def set(self, mix: Mix) -> None:
        """Let the model have these weights; numbers that are no fractions stay the trained ones."""
        self._model.load_state_dict(
            {name: self._between(name, trained, mix) for name, trained in self._trained.items()}
        )

    def _between(self, name: str, trained: Tensor, mix: Mix) -> Tensor:
        alpha = mix.head if group_of(name, self._model.config) == "head" else mix.towers
        if alpha == 1.0 or not trained.is_floating_point():
            return trained
        return torch.lerp(self._initial[name].to(trained), trained, alpha)
