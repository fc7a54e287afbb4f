"""The result of a cell, as ``cell.json`` holds it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from glscl.evaluation.results import Incomplete, Metrics, QueryRanks, Test
from glscl.system import storage

RESULT = "cell.json"


class CellTest(Test):
    """One test set of a cell, with every query's ranks."""

    per_query: QueryRanks


class CellResult(BaseModel):
    """What a finished cell leaves."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    config: dict[str, Any]
    """The run's whole configuration."""
    tests: list[CellTest]
    """Without examples."""
    step: int
    """Of the checkpoint that was tested."""
    validation: Metrics
    """Held-out scores of that checkpoint, by name."""
    incomplete: list[Incomplete] = []
    """Sets of which videos are missing; earlier versions did not write this down."""
    seconds: float
    """Wall-clock of the last attempt."""


def read_cell_file(directory: str) -> CellResult | None:
    """Read the result in a cell's directory; None where there is none."""
    where = storage.join(directory, RESULT)
    return CellResult.model_validate(storage.read_json(where)) if storage.exists(where) else None


def write_cell_file(directory: str, result: CellResult) -> None:
    """Write the result into a cell's directory."""
    plain = result.model_dump(exclude={"tests"}) | {"tests": [test.to_json() for test in result.tests]}
    storage.write_json(storage.join(directory, RESULT), plain)
