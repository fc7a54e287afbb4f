"""Validated sections of a configuration, read from YAML and from a command line: their base class."""

from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

MAX_LAYERS = 256
"""Most layers of any module. Each is an object, so that a mistyped number would cost memory before it is noticed."""
MAX_SIZE = 1_000_000
"""Largest width, length or number in a model; a mistyped one is refused before memory is allocated."""


class Options(BaseModel):
    """A section of the run configuration; the docstring under each field is its help text."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Pydantic takes true for 1: a key for numbers refuses it."""
        given = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(one, bool) for one in given):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            if kinds & {int, float} and bool not in kinds:
                raise ValueError("give a number; true and false are none")
        return value


def _kinds(annotation: object) -> set[object]:
    """All types that an annotation is composed of."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))
