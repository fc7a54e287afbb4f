"""GLSCL's inter-consistency loss: a pair's concepts agree, as far as a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term

PUBLISHED_BATCH = {"msrvtt": 128, "msvd": 128, "lsmdc": 128, "didemo": 32, "activitynet": 64}
"""Global batch, by training domain, at which the official form was published (zchoi/GLSCL, ``train_*.sh``)."""
_USUAL_BATCH = 128  # of domains that it was not published for


class InterConsistencyOptions(TermOptions):
    """Agreement of the text and video concepts (ICL)."""

    margin_weight: float = Field(0.005, ge=0)
    """Weight of the margin part inside the term (β)."""
    target: float = 0.75
    """Agreement that the margin part pulls each query to."""
    form: Literal["official", "corrected"] = "official"
    """official: agreement summed over the batch and divided by the number of queries, as the authors' code does;
    corrected: divided by the batch size, which makes it the mean cosine."""


@register_term("inter_consistency", InterConsistencyOptions, needs=("concepts",), reads_similarities=False)
def inter_consistency(options: InterConsistencyOptions, inputs: LossInputs) -> Tensor:
    """``MSE(mean_b C^v_b, mean_a C^t_a) + β Σ_k (r_k - target)²``; see `parts`."""
    mse, margin = parts(options, inputs.text["concepts"], inputs.video["concepts"])
    return mse + options.margin_weight * margin


def parts(options: InterConsistencyOptions, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """The two parts, unweighted, of unit concepts (N, K, D) of texts and videos, pair by pair.

    ``r_k = Σ_b C^v_bk · C^t_bk / K`` in the official form (zchoi/GLSCL, where the term is called
    ``Intra_Consistency``): the target is then met at a mean cosine of ``target · K / N``, so that the part pushes
    agreement down in large batches and grows with them. The corrected form divides by N instead, and changes nothing
    else: ``r_k`` is the mean cosine of query k.

    Returns:
        mean squared difference of the batch-mean concepts, and ``Σ_k (r_k - target)²``.
    """
    mse = F.mse_loss(video.mean(0), text.mean(0))
    count = video.shape[1] if options.form == "official" else video.shape[0]
    agreement = (video * text).sum((0, 2)) / count
    return mse, (agreement - options.target).square().sum()


def note_on_batch(
    options: InterConsistencyOptions, queries: int, global_batch: int, domains: Sequence[str]
) -> str | None:
    """What to know before a run in the official form starts at another batch than it was published at.

    Args:
        options: of the term.
        queries: K.
        global_batch: N.
        domains: trained on.

    Returns:
        one line with the knob; None where the term is off, corrected, or at the published batch of one of the domains.
    """
    published = sorted({PUBLISHED_BATCH.get(domain, _USUAL_BATCH) for domain in domains} or {_USUAL_BATCH})
    if options.form != "official" or not options.weight * options.margin_weight or global_batch in published:
        return None
    batches = " or ".join(f"{batch} (about {_first_size(options, queries, batch):,.3g})" for batch in published)
    return (
        f"loss.inter_consistency in its official form depends on the batch: about "
        f"{_first_size(options, queries, global_batch):,.4g} at the first step at {global_batch} pairs, beside a "
        f"contrastive loss of about {math.log(global_batch):.1f}; published at {batches}. Set "
        f"loss.inter_consistency.form to corrected, or training.global_batch to {published[-1]}"
    )


def _first_size(options: InterConsistencyOptions, queries: int, pairs: int) -> float:
    """The weighted margin part where all concepts of a query agree, as they nearly do before training."""
    return options.weight * options.margin_weight * queries * (pairs / queries - options.target) ** 2
