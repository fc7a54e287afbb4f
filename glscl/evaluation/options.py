"""Configuration of evaluation."""

from __future__ import annotations

from pydantic import Field

from glscl.options import Options


class EvaluationConfig(Options):
    """Held-out scoring during training, and the test after it."""

    every_epochs: int = Field(default=1, ge=1)
    """Epochs between two scorings of data.validation; the last epoch is always scored."""
    batch_size: int = Field(default=32, ge=1)
    """Videos encoded at once."""
    text_block: int = Field(default=256, ge=1)
    """Texts scored at once."""
    video_block: int = Field(default=256, ge=1)
    """Videos scored at once."""
    examples: int = Field(default=12, ge=0)
    """Example retrievals shown in the report, hits and misses, per test set."""
