"""The loss over a global batch: a weighted sum of terms. One file per term, registered by name."""

from __future__ import annotations

from glscl.losses.base import LossInputs, Term, register_term
from glscl.losses.tiled import tiled_cross_entropies
from glscl.losses.total import (
    LossConfig,
    NeededFeatures,
    applicable_terms,
    compute_losses,
    needed_features,
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
    "register_term",
    "term_names",
    "tiled_cross_entropies",
    "tiles_apply",
]
