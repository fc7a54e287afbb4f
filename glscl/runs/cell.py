"""A cell: one run of a study or sweep, and its result in ``cell.json``. Finished cells are read, never done again."""

import functools
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from glscl.data.frame_changes import FrameOrder
from glscl.data.quarantine import Incomplete
from glscl.data.shards import open_shard_set
from glscl.errors import UserError
from glscl.evaluation.results import Metrics, QueryRanks, RankBounds, Section, Test
from glscl.options.differences import differing_keys
from glscl.runs.options import ZERO_SHOT
from glscl.system import storage
from glscl.training.checkpoint.format import run_differences
from glscl.training.config import RunConfig

RESULT = "cell.json"
CONTROLS = "controls.json"
WISE_FT = "wise_ft.json"


@dataclass(frozen=True, slots=True)
class Cell:
    """One training, tested on every test set; or the towers before any."""

    condition: str
    variant: str  # `ZERO_SHOT` for the towers alone
    training: str  # name of the domain, `UNION` or `ZERO_SHOT`
    domains: tuple[str, ...]  # domains trained on
    seed: int  # of the training; of the towers where they are random
    config: RunConfig  # the whole run. Its run directory is the cell's.
    controls: tuple[FrameOrder, ...] = ()  # other orders of frames that it is tested with, too
    wise_ft: tuple[float, ...] = ()  # the same, shares of the trained towers (`Mix.towers`)

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


class CellTest(Test):
    """One test set of a cell, with every query's ranks."""

    per_query: QueryRanks


class CellResult(Section):
    """What a finished cell leaves."""

    config: dict[str, Any]  # the run's whole configuration
    tests: list[CellTest]  # without examples
    step: int  # of the checkpoint that was tested
    validation: Metrics  # held-out scores of that checkpoint
    incomplete: list[Incomplete] = Field(default_factory=list)  # of its sets; earlier versions did not write them down
    seconds: float  # wall-clock of the last attempt


class Retest(Section):
    """One test set of a finished cell, whose model was tested again, otherwise."""

    domain: str
    fingerprint: str  # of the set's manifest
    hubness_skewness: float
    text_to_video: RankBounds  # of the queries of `CellTest`, in their order
    video_to_text: RankBounds


class ControlTest(Retest):
    """With its frames in another order."""

    frames: FrameOrder


class WiseFtTest(Retest):
    """By towers between those that training began with and the trained ones."""

    towers_alpha: float


class Controls(Section):
    """What ``controls.json`` holds, beside a result that knows nothing of it."""

    tests: list[ControlTest] = Field(default_factory=list)


class WiseFtTests(Section):
    """What ``wise_ft.json`` holds, beside a result that knows nothing of it."""

    tests: list[WiseFtTest] = Field(default_factory=list)


def read_controls(directory: str) -> list[ControlTest]:
    """Read the controls in a cell's directory; none where there is no file."""
    where = storage.join(directory, CONTROLS)
    return Controls.model_validate(storage.read_json(where)).tests if storage.exists(where) else []


def write_controls(directory: str, tests: list[ControlTest]) -> None:
    """Write the controls into a cell's directory."""
    storage.write_json(storage.join(directory, CONTROLS), Controls(tests=tests).model_dump())


def missing_controls(cell: Cell) -> tuple[FrameOrder, ...]:
    """The orders of frames that a finished cell has not been tested with yet."""
    done = {test.frames for test in read_controls(cell.directory)} if cell.controls else set()
    return tuple(order for order in cell.controls if order not in done)


def read_wise_ft(directory: str) -> list[WiseFtTest]:
    """Read the tests with other towers in a cell's directory; none where there is no file."""
    where = storage.join(directory, WISE_FT)
    return WiseFtTests.model_validate(storage.read_json(where)).tests if storage.exists(where) else []


def write_wise_ft(directory: str, tests: list[WiseFtTest]) -> None:
    """Write the tests with other towers into a cell's directory."""
    storage.write_json(storage.join(directory, WISE_FT), WiseFtTests(tests=tests).model_dump())


def missing_wise_ft(cell: Cell) -> tuple[float, ...]:
    """The shares of the trained towers that a finished cell has not been tested with yet."""
    done = {test.towers_alpha for test in read_wise_ft(cell.directory)} if cell.wise_ft else set()
    return tuple(alpha for alpha in cell.wise_ft if alpha not in done)


def is_finished(cell: Cell) -> bool:
    """Whether nothing is left to do of a cell. Raises `UserError`: as `read_result`."""
    return read_result(cell) is not None and not missing_controls(cell) and not missing_wise_ft(cell)


def read_cell_file(directory: str) -> CellResult | None:
    """Read the result in a cell's directory; None where there is none."""
    where = storage.join(directory, RESULT)
    return CellResult.model_validate(storage.read_json(where)) if storage.exists(where) else None


def write_cell_file(directory: str, result: CellResult) -> None:
    """Write the result into a cell's directory."""
    plain = result.model_dump(exclude={"tests"}) | {"tests": [test.to_json() for test in result.tests]}
    storage.write_json(storage.join(directory, RESULT), plain)


def read_result(cell: Cell) -> CellResult | None:
    """A cell's result; None if unfinished. Raises `UserError`: of another configuration, or other test sets."""
    result = read_cell_file(cell.directory)
    if result is None:
        return None
    saved, current = result.config, cell.config.model_dump(mode="json")
    different = run_differences(saved, current)
    different += differing_keys(
        {"testing": saved["evaluation"]}, {"testing": current["evaluation"]}, ("testing.memory_mb",)
    )
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
