"""The loss over a global batch: a weighted sum of terms. One file per term, registered by name."""

from __future__ import annotations

from glscl.losses.base import LossInputs, Term, register_term
from glscl.losses.tiled import tiled_cross_entropies, tiled_sigmoid
from glscl.losses.total import (
    LossConfig,
    applicable_terms,
    compute_losses,
    needs_logit_bias,
    needs_score_parts,
    term_names,
    tiles_apply,
)

__all__ = [
    "LossConfig",
    "LossInputs",
    "Term",
    "applicable_terms",
    "compute_losses",
    "needs_logit_bias",
    "needs_score_parts",
    "register_term",
    "term_names",
    "tiled_cross_entropies",
    "tiled_sigmoid",
    "tiles_apply",
]
