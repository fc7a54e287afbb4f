"""Files that were written before the code was laid out anew are read, mean the same, and are written the same."""

from __future__ import annotations

import copy
import json
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from glscl.errors import UserError
from glscl.options.differences import differing_keys
from glscl.runs.cell import read_cell_file, write_cell_file
from glscl.training.checkpoint.format import TrainState, check_resumable, read_state
from glscl.training.config import RunConfig
from tune.options import SweepConfig
from tune.plan import identifying_values
from tune.trials import read_record, read_trials, write_trials

BEFORE = Path(__file__).parent / "before"


def test_a_checkpoint_of_before_belongs_to_the_same_run() -> None:
    state = read_state(str(BEFORE / "checkpoint"))
    assert (state.step, state.world_size, state.zero_stage) == (16, 1, 1)
    current = RunConfig.model_validate(state.config).model_dump(mode="json")
    check_resumable(state, current, state.manifests)
    assert _only(current, state.config) == state.config, "no key is lost, renamed or of another default"


@pytest.mark.parametrize(
    ("head", "section", "refused"),
    [
        ("glscl", ("loss", "increment_radius"), False),
        ("glscl", ("model", "heads", "gare"), False),
        ("gare", ("loss", "increment_radius"), True),
        ("gare", ("model", "heads", "gare"), True),
        ("gare", ("loss", "channel_decorrelation"), False),  # off
        ("glscl", ("loss", "contrastive"), True),
    ],
)
def test_a_section_that_came_later_is_a_difference_where_it_decides_something(
    head: str, section: tuple[str, ...], refused: bool
) -> None:
    current = RunConfig.model_validate({"model": {"head": head}}).model_dump(mode="json")
    state = TrainState(1, 1, 0, copy.deepcopy(current), ["shards"])
    *path, name = section
    values = state.config
    for key in path:
        values = values[key]
    del values[name]
    expectation = pytest.raises(UserError, match=re.escape(".".join(section))) if refused else nullcontext()
    with expectation:
        check_resumable(state, current, ["shards"])


def _only(values: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """What of the values has a key in ``known``: options that came later are left out."""
    return {
        key: _only(values[key], inner) if isinstance(inner, dict) else values[key]
        for key, inner in known.items()
        if key in values
    }


def test_a_finished_cell_of_before_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    result = read_cell_file(str(BEFORE / "cell"))
    assert result is not None
    assert [test.name for test in result.tests] == ["toy_clips/test", "toy_stories/test"]
    write_cell_file(str(tmp_path), result)
    before, after = (json.loads((folder / "cell.json").read_text()) for folder in (BEFORE / "cell", tmp_path))
    assert after == before


def test_a_sweep_of_before_continues_with_its_trials(tmp_path: Path) -> None:
    saved = json.loads((BEFORE / "sweep" / "sweep.json").read_text())
    sweep = SweepConfig.load("toy_small", storage=str(tmp_path), root=saved["root"])
    assert differing_keys(saved, identifying_values(sweep), ()) == []
    folder = Path(sweep.directory)
    shutil.copytree(BEFORE / "sweep", folder)
    trials = read_trials(sweep)
    assert trials[0].state == "finished"
    record = read_record(sweep, "b573fdeb")
    assert record is not None
    write_trials(sweep, trials)
    assert json.loads((folder / "trials.json").read_text()) == json.loads(
        (BEFORE / "sweep" / "trials.json").read_text()
    )
