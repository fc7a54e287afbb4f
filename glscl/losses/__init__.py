"""The loss over a global batch: a weighted sum of terms. One file per term, registered by name."""

from __future__ import annotations

from glscl.losses.base import LossInputs, Term, register_term
from glscl.losses.tiled import tiled_cross_entropies, tiled_sigmoid
from glscl.losses.total import (
    LossConfig,
    NeededFeatures,
    applicable_terms,
    compute_losses,
    needed_features,
    needs_logit_bias,
    term_names,
    tiles_apply,
)

__all__ = [
    "LossConfig",
    "LossInputs",
    "NeededFeatures",
    "Term",
    "applicable_terms",
    "compute_losses",
    "needed_features",
    "needs_logit_bias",
    "register_term",
    "term_names",
    "tiled_cross_entropies",
    "tiled_sigmoid",
    "tiles_apply",
]
