"""T-MASS's support text: the text on the rim of its mass, towards its own video, is contrasted, too."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term
from glscl.losses.contrastive import cross_entropy


class SupportTextOptions(TermOptions):
    """Contrastive loss of T-MASS's support texts."""

    weight: float = Field(0.8, ge=0)
    """Factor of the term in the total; 0 switches it off. 0.8 is the authors' command for MSR-VTT, 0 theirs for
    others."""


@register_term("support_text", SupportTextOptions, detail="support")
def support_text(options: SupportTextOptions, inputs: LossInputs) -> Tensor:
    """``½ [CE(S) + CE(Sᵀ)]`` of the support texts' similarities times the logit scale.

    As the authors' code has it (Jiamian-Wang/T-MASS-text-video-retrieval, ``trainer/trainer_stochastic.py``), but that
    a video's other captions are positives, too, as in the contrastive loss.
    """
    rows, columns, scale = inputs.row_detail, inputs.column_detail, inputs.scale
    assert rows is not None  # the term applies only where they are given
    assert columns is not None
    assert scale is not None
    text_to_video = cross_entropy(scale * rows[..., 0], inputs.row_positives)
    video_to_text = cross_entropy(scale * columns[..., 0].T, inputs.column_positives.T)
    return (text_to_video + video_to_text) / 2
