"""Video-ColBERT's loss: a sigmoid loss of the frames' similarity, and one of the video tokens'."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from glscl.losses.base import LossInputs, TermOptions, register_term
from glscl.losses.sigmoid import pair_losses


class LevelSigmoidOptions(TermOptions):
    """The two sigmoid losses of Video-ColBERT, in place of the contrastive loss; at weight 0 that is back."""

    frames: float = Field(1.0, ge=0)
    """Weight of the loss of the frames' similarity (λ_F)."""
    video: float = Field(1.0, ge=0)
    """Weight of the loss of the video tokens' similarity (λ_V)."""


@register_term(
    "level_sigmoid", LevelSigmoidOptions, detail="level_logits", replaces=("contrastive",), reads_similarities=False
)
def level_sigmoid(options: LevelSigmoidOptions, inputs: LossInputs) -> Tensor:
    """``λ_F L(t_F MMS_F + b_F) + λ_V L(t_V MMS_V + b_V)``, each with a scale and a bias of its own (arXiv 2503.19009).

    Two losses, never one of the sum that is ranked by. ``L = -(1/N) Σ_ab log σ(z_ab x_ab)``, z = 1 where the text
    describes the video, else -1.
    """
    logits = inputs.row_detail
    assert logits is not None  # the term applies only where they are given
    frames, video = (pair_losses(level, inputs.row_positives).sum(1).mean() for level in logits.unbind(-1))
    return options.frames * frames + options.video * video
