"""What a trial does, with trainings that a test makes up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glscl.errors import UserError
from glscl.runs.cell import Cell
from tests.tune.fake import FIRST, STEPS, setup
from tune.objective import Score, Setup, build_runs, compute_objective, read_history, trials_folder
from tune.trial import run_trial
from tune.trials import read_record

VALUES = {"model.heads.glscl.tau": 2.0, "training.lr_head": 1e-3}


def log(run_directory: str, rows: dict[int, dict[str, float]]) -> None:
    """Held-out scores as a run logs them, among rows of losses."""
    folder = Path(run_directory)
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"step": 1, "loss": 3.0}]
    for step, domains in rows.items():
        scores = {f"validation/{name}/text_to_video_R@1": value for name, value in domains.items()}
        lines += [{"step": step, "loss": 2.0}, {"step": step, "validation_R@1": 0.0, **scores}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Replace training by writing a log; returns the run directories as they are trained."""

    def make(fail: str = "") -> list[str]:
        done: list[str] = []

        def run_cell(cell: Cell, keep_model: bool) -> None:
            done.append(cell.config.run_directory)
            names = [
                name for name in ("toy_clips", "toy_stories") if any(name in u for u in cell.config.data.validation)
            ]
            log(cell.config.run_directory, {step: dict.fromkeys(names, step + len(names)) for step in (FIRST, STEPS)})
            if fail:
                raise UserError(fail)

        monkeypatch.setattr("tune.trial.run_cell", run_cell)
        return done

    return make


def test_the_objective_across_domains() -> None:
    scores = {"toy_clips": 10.0, "toy_stories": 4.0}
    assert compute_objective(setup().sweep, scores) == 7.0
    assert compute_objective(setup(objective="worst").sweep, scores) == 4.0
    assert compute_objective(setup(objective="leave_one_domain_out").sweep, scores) == 7.0


def test_a_step_counts_once_all_trainings_have_scored_it(tmp_path: Path) -> None:
    ready = setup(objective="leave_one_domain_out")
    found = build_runs(ready.sweep, ready.sets, str(tmp_path), {}, 1)
    log(found["without_toy_clips"].run_directory, {5: {"toy_clips": 1.0}, 10: {"toy_clips": 3.0}})
    assert read_history(ready.sweep, found) == []
    log(found["without_toy_stories"].run_directory, {5: {"toy_stories": 2.0}})
    assert read_history(ready.sweep, found) == [Score(5, 1.5, {"toy_clips": 1.0, "toy_stories": 2.0})]


@pytest.mark.parametrize(
    ("objective", "trainings", "last"), [("mean", 1, STEPS + 2), ("leave_one_domain_out", 2, STEPS + 1)]
)
def test_the_last_step_is_reported_when_all_is_on_disk(
    objective: str, trainings: int, last: float, trained: Callable[..., list[str]], tmp_path: Path
) -> None:
    ready = setup(storage=str(tmp_path), objective=objective)
    done = trained()
    seen: list[tuple[int, bool]] = []
    run_trial(ready, "one", VALUES, lambda row: seen.append((row["step"], read_record(ready.sweep, "one") is not None)))
    assert seen[-1] == (STEPS, True)
    assert [step for step, _ in seen] == [FIRST, STEPS]
    assert len(done) == trainings
    result = read_record(ready.sweep, "one")
    assert result is not None
    assert result.history[-1].objective == last
    assert result.values == VALUES

    again: list[dict[str, Any]] = []
    run_trial(ready, "one", VALUES, again.append)
    assert len(done) == trainings, "a finished trial is not trained again"
    assert [row["step"] for row in again] == [FIRST, STEPS]


def test_what_an_interruption_left_is_reported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = setup(storage=str(tmp_path))
    (config,) = build_runs(ready.sweep, ready.sets, f"{trials_folder(ready.sweep)}/one", VALUES, 1).values()
    log(config.run_directory, {FIRST: {"toy_clips": 1.0, "toy_stories": 2.0}})

    def go_on(cell: Cell, keep_model: bool) -> None:
        both = {"toy_clips": 1.0, "toy_stories": 2.0}
        log(config.run_directory, {FIRST: both, STEPS: both})

    monkeypatch.setattr("tune.trial.run_cell", go_on)
    seen: list[int] = []
    run_trial(ready, "one", VALUES, lambda row: seen.append(row["step"]))
    assert seen == [FIRST, STEPS]


def test_bad_input_fails_a_trial_for_good(trained: Callable[..., list[str]], tmp_path: Path) -> None:
    ready: Setup = setup(storage=str(tmp_path))
    done = trained(fail="the loss is not a number")
    for _ in range(2):  # Ray Tune tries again; what would only happen again is not trained again
        with pytest.raises(UserError, match="not a number"):
            run_trial(ready, "one", VALUES, lambda row: None)
    assert len(done) == 1


def test_cost_is_the_heads_multiply_adds(trained: Callable[..., list[str]], tmp_path: Path) -> None:
    ready = setup(storage=str(tmp_path), cost="multiply_adds", scheduler="none")
    trained()
    rows: list[dict[str, Any]] = []
    run_trial(ready, "few", VALUES | {"model.heads.glscl.queries": 2}, rows.append)
    run_trial(ready, "many", VALUES | {"model.heads.glscl.queries": 8}, rows.append)
    assert 0 < rows[0]["cost"] < rows[-1]["cost"]
