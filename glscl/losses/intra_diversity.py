"""GLSCL's intra-diversity loss: concepts of one item stay apart."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term


class IntraDiversityOptions(TermOptions):
    """Distance between the concepts of one text or video (IDL)."""

    weight: float = Field(1e-4, ge=0)
    """Factor of the term in the total (α); 0 switches it off."""
    margin: float = 0.1
    """How far below 1 the mean cosine of two concepts must be."""
    form: Literal["official", "corrected"] = "official"
    """official: the videos' concepts only, as the authors' code does; corrected: the mean of the term over the videos'
    and the texts' concepts."""


@register_term("intra_diversity", IntraDiversityOptions, needs=("concepts",), reads_similarities=False)
def intra_diversity(options: IntraDiversityOptions, inputs: LossInputs) -> Tensor:
    """Hinge on the mean Gram matrix of unit concepts (N, K, D); see `hinge`.

    The official form (zchoi/GLSCL, where the term is called ``Inter_Diversity``) computes the texts' Gram matrix too
    but never uses it. The corrected form is ``½ [hinge(videos) + hinge(texts)]``, and changes nothing else.
    """
    video = hinge(inputs.video["concepts"], options.margin)
    if options.form == "official":
        return video
    return (video + hinge(inputs.text["concepts"], options.margin)) / 2


def hinge(concepts: Tensor, margin: float) -> Tensor:
    """``Σ_{i≠j} [relu(margin + S_ij - S_ii) + relu(margin + S_ij - S_jj)] / (K (K - 1))``, ``S = mean_b C_b C_bᵀ``.

    Zero for a single concept, which has nothing to keep away from.
    """
    queries = concepts.shape[1]
    gram = torch.einsum("bkd,bld->kl", concepts, concepts) / len(concepts)
    itself = gram.diagonal()
    excess = (margin + gram - itself[:, None]).relu() + (margin + gram - itself[None, :]).relu()
    others = ~torch.eye(queries, dtype=torch.bool, device=gram.device)
    return (excess * others).sum() / max(1, queries * (queries - 1))
