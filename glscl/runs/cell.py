"""A cell: one run of a study or sweep. Finished cells are read, never done again."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.options.differences import differing_keys
from glscl.runs.options import ZERO_SHOT
from glscl.runs.results import CellResult, read_cell_file
from glscl.training.checkpoint.format import FREE_KEYS
from glscl.training.config import RunConfig


@dataclass(frozen=True, slots=True)
class Cell:
    """One training, tested on every test set; or the towers before any.

    Attributes:
        condition: name of the condition.
        variant: name of the variant; `ZERO_SHOT` for the towers alone.
        training: name of the domain, `UNION` or `ZERO_SHOT`.
        domains: domains trained on.
        seed: of the training; of the towers where they are random.
        config: the whole run. Its run directory is the cell's.
    """

    condition: str
    variant: str
    training: str
    domains: tuple[str, ...]
    seed: int
    config: RunConfig

    def to_values(self) -> dict[str, Any]:
        """Plain values, to send to another process."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"config": self.config.model_dump(mode="json")}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Cell:
        """The cell that `to_values` sent."""
        return cls(**{**values, "config": RunConfig.model_validate(values["config"])})

    @property
    def directory(self) -> str:
        """The cell's run directory."""
        return self.config.run_directory

    @property
    def label(self) -> str:
        """Name for lines of the log."""
        if self.training == ZERO_SHOT:
            return f"{self.condition}: {ZERO_SHOT} towers"
        return f"{self.condition}: {self.variant} on {self.training}, seed {self.seed}"


def read_result(cell: Cell) -> CellResult | None:
    """Read the result of a finished cell; None if it is not finished.

    Raises:
        UserError: it is the result of another configuration, or of other test sets.
    """
    result = read_cell_file(cell.directory)
    if result is None:
        return None
    saved, current = result.config, cell.config.model_dump(mode="json")
    different = differing_keys(saved, current, FREE_KEYS)
    different += differing_keys({"testing": saved["evaluation"]}, {"testing": current["evaluation"]}, ())
    if [_fingerprint(uri) for uri in cell.config.data.test] != [test.fingerprint for test in result.tests]:
        different.append("data.test: other test sets")
    if different:
        raise UserError(
            f"{cell.directory} is a finished cell of another configuration: {'; '.join(different[:5])}. Choose another "
            f"--name, restore these values, or delete the cell's folder to have it done again"
        )
    return result


@functools.cache
def _fingerprint(uri: str) -> str:
    """Fingerprint of a test set, which is the same for hundreds of cells and may lie behind a slow listing."""
    return open_shard_set(uri).manifest.fingerprint()
