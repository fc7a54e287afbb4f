"""Heads: features in, text × video similarity out. One file per head, registered by name."""

from __future__ import annotations

from glscl.models.heads.base import (
    Draws,
    Features,
    Head,
    HeadFacts,
    LengthTiedHead,
    build_head,
    head_class,
    head_names,
    register_head,
)

__all__ = [
    "Draws",
    "Features",
    "Head",
    "HeadFacts",
    "LengthTiedHead",
    "build_head",
    "head_class",
    "head_names",
    "register_head",
]
