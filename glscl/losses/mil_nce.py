"""UATVR's contrast of samples: those of a text and of its video find each other among all."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term
from glscl.losses.contrastive import cross_entropy


class MilNceOptions(TermOptions):
    """Contrastive loss of samples of UATVR's distributions."""

    weight: float = Field(1e-2, ge=0)
    """Factor of the term in the total; 0 switches it off."""


@register_term("mil_nce", MilNceOptions, needs=("samples",))
def mil_nce(options: MilNceOptions, inputs: LossInputs) -> Tensor:
    """``½ [CE(V Tᵀ) + CE(T Vᵀ)]`` of all samples V and T, in each direction a mean over samples and their positives.

    As the authors' code has it (bofang98/UATVR, ``modules/until_module.py``, ``MILNCELoss_BoF``): no temperature, and
    the mean of logarithms over the positives, not the logarithm of their sum. As in the contrastive loss, a video's
    other captions are positives, too.
    """
    own = slice(inputs.first, inputs.first + len(inputs.row_positives))
    text, video = inputs.text["samples"], inputs.video["samples"]
    of_texts = _contrast(text[own], video, inputs.row_positives)
    of_videos = _contrast(video[own], text, inputs.column_positives.T)
    return (of_texts + of_videos) / 2


def _contrast(queries: Tensor, candidates: Tensor, positives: Tensor) -> Tensor:
    """Mean cross-entropy of samples (n, S, D) over samples (N, R, D), of positives (n, N)."""
    of_queries, of_candidates = queries.shape[1], candidates.shape[1]
    positives = positives.repeat_interleave(of_queries, 0).repeat_interleave(of_candidates, 1)
    return cross_entropy(queries.flatten(0, 1) @ candidates.flatten(0, 1).T, positives)
