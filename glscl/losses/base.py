"""Base of loss terms: their options, their inputs and their registry."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field
from torch import Tensor

from glscl.models.heads.base import Features
from glscl.models.registry import Registry
from glscl.options import Options


class TermOptions(Options):
    """Options that every term has; a term's own options derive from this."""

    weight: float = Field(1.0, ge=0)
    """Factor of the term in the total; 0 switches it off."""


@dataclass(frozen=True)
class LossInputs:
    """One process's view of a global batch of N pairs, of which n are its own; pair i is text i with video i.

    Attributes:
        rows: logits (n, N), own texts × all videos.
        columns: logits (N, n), all texts × own videos.
        row_positives: (n, N) bool, True where the text describes the video.
        column_positives: (N, n) bool, the same for ``columns``.
        text: the head's caches of all texts, leading dimension N.
        video: the head's caches of all videos, leading dimension N.
        parts: scores (n, N, P) whose mean, times the logit scale, is ``rows``; None where no term asked for them.
        first: index of the first own pair: own pairs are ``first`` to ``first + n - 1``.
        mean_over_ranks: from a tensor to its mean over the ranks, with gradients; the identity in one process.
        bias: (1,), the logit bias that the sigmoid loss adds to logits; None where no term asked for it.
        cross_entropies: means over own texts and over own videos, where they were computed in tiles; ``rows``,
            ``columns`` and their positives are then empty. Terms that read those never see this.
        sigmoid: mean over own texts of the sigmoid loss, where that was computed in tiles.
        detail: name of the head's `detail`, where a term asked for it.
        row_detail: what that is, (n, N, P), of own texts and all videos.
        column_detail: the same of all texts and own videos, (N, n, P).
        scale: the logit scale (1,), which ``rows`` and ``columns`` hold and the details do not.
    """

    rows: Tensor
    columns: Tensor
    row_positives: Tensor
    column_positives: Tensor
    text: Features
    video: Features
    parts: Tensor | None = None
    first: int = 0
    mean_over_ranks: Callable[[Tensor], Tensor] = field(default=lambda tensor: tensor)
    bias: Tensor | None = None
    cross_entropies: tuple[Tensor, Tensor] | None = None
    sigmoid: Tensor | None = None
    detail: str | None = None
    row_detail: Tensor | None = None
    column_detail: Tensor | None = None
    scale: Tensor | None = None


TermFunction = Callable[[Any, LossInputs], Tensor]


@dataclass(frozen=True)
class Term:
    """A loss term.

    Attributes:
        options: class of its section of the configuration.
        needs: what the head must provide: caches of texts and videos, or "score_parts"; and "logit_bias" of the model.
        function: from (options, inputs) to the unweighted loss, a scalar. Averaged over the ranks it must be the
            loss of the global batch: a mean over own rows and columns, or anything computed from the caches and
            from ``mean_over_ranks`` of such means.
        reads_similarities: whether the function needs ``rows`` or ``columns``, which must then exist as a whole.
        detail: the head's `detail` that the function needs.
        replaces: names of terms in whose place this one is: where it is on and applies, they do not.
    """

    options: type[TermOptions]
    needs: tuple[str, ...]
    function: TermFunction
    reads_similarities: bool = True
    detail: str | None = None
    replaces: tuple[str, ...] = ()

    def applies(self, provided: Collection[str]) -> bool:
        """Whether a head that provides this can be trained with the term."""
        return {*self.needs, *([self.detail] if self.detail else [])} <= set(provided)


LOGIT_BIAS = "logit_bias"
"""What a term may need of the model beside its head."""

registry: Registry[Term] = Registry("loss term", "glscl.losses", "glscl.losses")


def register_term(
    name: str,
    options: type[TermOptions],
    needs: tuple[str, ...] = (),
    *,
    reads_similarities: bool = True,
    detail: str | None = None,
    replaces: tuple[str, ...] = (),
) -> Callable[[TermFunction], TermFunction]:
    """Decorator: make a function known as a loss term, whose name is its field in the configuration.

    The other arguments are those of `Term`.
    """

    def register(function: TermFunction) -> TermFunction:
        registry.add(name, Term(options, needs, function, reads_similarities, detail, replaces))
        return function

    return register
