"""Base class of every configuration section: typed, frozen, unknown keys refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MAX_LAYERS = 256
"""Most layers of anything: each is an object of its own, whose number no file can make cheap."""
MAX_SIZE = 1_000_000
"""Largest width, length or number of anything that a model is made of; a mistyped one is refused before memory is."""


class Options(BaseModel):
    """A section of the run configuration; the docstring under each field is its help text."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )
