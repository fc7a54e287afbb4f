"""The controls of a study: other orders of frames, tested beside finished cells, and what the study says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.evaluation.evaluate import evaluate_model
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.saved import ModelCard, save_model
from glscl.evaluation.wise_ft import listed_mixes
from glscl.models import Retriever
from glscl.runs.cell import (
    CONTROLS,
    RESULT,
    Cell,
    CellResult,
    is_finished,
    read_controls,
    read_result,
    read_wise_ft,
    write_controls,
)
from glscl.runs.cell import ControlTest as Controlled
from glscl.runs.execution import run_cell
from glscl.runs.retests import without_untestable
from glscl.runs.sets import Sets
from glscl.study.controls import control_rows, describe_controls, find_controls
from glscl.study.grid import build_cells
from glscl.study.report import render_study
from glscl.study.results import StudyResults, parse_study
from glscl.system import storage
from glscl.system.nodes import Share
from tests.study.fake import CAPTIONS, VIDEOS, finished, study
from tests.study.study_fixture import make_study

Done = tuple[list[Cell], list[tuple[Cell, CellResult]]]


def _leave_controls(done: Done, frames: str = "shuffled", **changes: Any) -> None:
    """Of 30 % of the clips' texts that are found, none is found any more; stories stay as they were."""
    for number, (cell, result) in enumerate(done[1]):
        tests = read_controls(cell.directory)
        for test in result.tests:
            ranks = {}
            for direction in ("text_to_video", "video_to_text"):
                before = getattr(test.per_query, direction).optimistic
                lost = np.random.default_rng(number).random(len(before)) < (0.3 if test.domain == "toy_clips" else 0.0)
                after = np.where(lost, 9, before)
                ranks[direction] = {"optimistic": after, "pessimistic": after}
            values = {"domain": test.domain, "fingerprint": test.fingerprint, "hubness_skewness": 2.0, "frames": frames}
            tests.append(Controlled.model_validate(values | ranks | changes))
        write_controls(cell.directory, tests)


@pytest.fixture
def done(tmp_path: Path) -> Done:
    config = study(controls=["shuffled"], storage=str(tmp_path))
    return finished(config, lambda cell, domain: 0.8 if domain in cell.domains else 0.4)


def test_changes_are_those_of_the_ranks(done: Done, tmp_path: Path) -> None:
    config = study(controls=["shuffled"], storage=str(tmp_path))
    _leave_controls(done)
    controls = find_controls(config, *done)
    assert len(controls) == 2 * (1 + 2 * 2), "zero-shot, and two variants after two trainings, on two test sets"
    for control in controls:
        own = [(c, r) for c, r in done[1] if (c.variant, c.training) == (control.variant, control.training)]
        before, after = [], []
        for cell, result in own:
            (plain,) = (test for test in result.tests if test.domain == control.test)
            (changed,) = (test for test in read_controls(cell.directory) if test.domain == control.test)
            before += [100.0 * (rank == 1) for rank in plain.per_query.text_to_video.optimistic.tolist()]
            after += [100.0 * (rank == 1) for rank in changed.text_to_video.optimistic.tolist()]
        assert len(after) == len(own) * VIDEOS * CAPTIONS
        recall, change = control.recall["text_to_video"], control.change["text_to_video"]
        assert recall.estimate == pytest.approx(sum(after) / len(after))
        assert change.estimate == pytest.approx((sum(after) - sum(before)) / len(after))
        assert change.seeds == (0 if control.variant == "zero-shot" else 3)
        assert control.hubness == 2.0
        if control.test == "toy_stories":
            assert (change.low, change.estimate, change.high) == (0.0, 0.0, 0.0)
        else:
            assert change.low is not None
            assert change.high is not None
            assert change.low < change.estimate < change.high < 0
    shown = parse_study(make_study(("short",), examples=0)).model_copy(update={"controls": controls})
    sentences = list(describe_controls(shown, "short"))
    assert len(sentences) == 4
    assert sentences[0].startswith(
        "Shuffled frames on toy_clips (in-domain): text-to-video R@1 is shown lower for 2 of 2"
    )
    assert "on toy_stories (cross-domain): text-to-video R@1 is shown lower for 0 of 2 models, higher for 0" in str(
        sentences
    )
    assert list(describe_controls(shown, "long")) == []


def test_only_what_all_seeds_have_is_reported(done: Done, tmp_path: Path) -> None:
    config = study(controls=["shuffled", "single"], storage=str(tmp_path))
    assert find_controls(config, *done) == []
    _leave_controls(done)
    assert {control.frames for control in find_controls(config, *done)} == {"shuffled"}
    storage.remove(storage.join(done[1][-1][0].directory, CONTROLS))
    cell = done[1][-1][0]
    assert len(find_controls(config, *done)) == 8
    assert (cell.variant, cell.training) not in {(c.variant, c.training) for c in find_controls(config, *done)}
    assert find_controls(study(storage=str(tmp_path)), *done) == [], "a study that does not ask"


def test_controls_of_other_sets_are_refused(done: Done, tmp_path: Path) -> None:
    _leave_controls(done, fingerprint="another")
    with pytest.raises(UserError, match="its controls are of another toy_clips than its result; delete the cell's"):
        find_controls(study(controls=["shuffled"], storage=str(tmp_path)), *done)


def test_the_page_shows_every_model() -> None:
    results = make_study(("short",), examples=0)
    shown = StudyResults.model_validate(results)
    rows = control_rows(shown, "short")
    assert len(rows) == len(results["results"])
    assert [control.frames for control in rows[0].controls if control] == ["single", "shuffled"]
    assert rows[0].plain is not None
    page = render_study(results)
    assert "The middle frame alone on toy_stories (cross-domain): text-to-video R@1 is shown lower for 7 of 7" in page
    assert page.count("<b>−12.0</b>") == 2 * len(results["results"]) // 2
    assert 'id="controls"' not in render_study(results | {"controls": []})


ORDERS = ("reversed", "single")


@pytest.fixture
def cell(make_shards: Callable[..., ShardSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Finished before anybody asked for controls, with its model."""
    sets = {name: make_shards(name, captions=(1, 2, 1, 1)) for name in ("one", "two")}
    domains = {name: {"train": ["s"], "test": "t"} for name in sets}
    values = {
        "domains": domains,
        "storage": str(tmp_path / "runs"),
        "conditions": {"short": {"model": {"max_frames": 2}}},
    }
    located = {name: Sets((own.uri,), (), own.uri) for name, own in sets.items()}
    plain, asked = (build_cells(study(**values, controls=orders), located)[1] for orders in ((), ORDERS))
    torch.manual_seed(0)
    model = Retriever(plain.config.model)
    card = ModelCard(
        model=plain.config.model, sample_fps=1.0, decoder="pyav", train_domains=("one",), step=4, seed=1, run="r",
        validation={},
    )  # fmt: skip
    save_model(storage.join(plain.directory, "model"), card, model.state_dict())
    tests = evaluate_model(plain.directory, plain.config.data.test, plain.config.evaluation, ONE, keep_ranks=True)
    config = plain.config.model_dump(mode="json")
    result = {
        "config": config,
        "tests": [test.to_json() for test in tests],
        "step": 4,
        "validation": {},
        "seconds": 1.0,
    }
    storage.write_json(storage.join(plain.directory, RESULT), result)
    monkeypatch.setattr("glscl.runs.execution.train", lambda *_, **__: pytest.fail("trained again"))
    for module in ("execution", "retests"):
        monkeypatch.setattr(f"glscl.runs.{module}.with_machines", lambda config, *_, **__: config)
    monkeypatch.setattr("glscl.runs.retests.share_of_actors", lambda _: ONE)
    assert is_finished(plain)
    assert not is_finished(asked)
    return asked


ONE = Share(1, False, 1.0, 0)


def test_a_finished_cell_is_only_tested(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path(cell.directory, RESULT).read_bytes()
    assert run_cell(cell, keep_model=True).seconds == 1.0
    assert Path(cell.directory, RESULT).read_bytes() == before
    assert is_finished(cell)
    tests = read_controls(cell.directory)
    assert [(test.domain, test.frames) for test in tests] == [(d, o) for d in ("one", "two") for o in ORDERS]
    config = cell.config.evaluation.model_copy(update={"frames": ORDERS})
    direct = evaluate_model(cell.directory, cell.config.data.test, config, ONE, keep_ranks=True)
    for test, expected in zip(tests, (one for one in direct if one.frames), strict=True):
        assert expected.per_query is not None
        assert test.text_to_video.optimistic.tolist() == expected.per_query.text_to_video.optimistic.tolist()
        assert test.fingerprint == expected.fingerprint
    written = Path(cell.directory, CONTROLS).read_bytes()
    assert "captions" not in json.dumps(json.loads(written)), "they are in the result"
    monkeypatch.setattr("glscl.runs.retests.evaluate_model", lambda *_, **__: pytest.fail("tested again"))
    run_cell(cell, keep_model=True)
    assert Path(cell.directory, CONTROLS).read_bytes() == written


def test_only_a_missing_order_is_tested_and_the_model_goes_where_it_should(cell: Cell) -> None:
    run_cell(Cell(*_fields(cell), controls=("single",)), keep_model=True)
    run_cell(cell, keep_model=False)
    assert [test.frames for test in read_controls(cell.directory)] == ["single", "single", "reversed", "reversed"]
    assert not Path(cell.directory, "model").exists()
    assert is_finished(cell)
    with pytest.raises(UserError, match=r"controls: shuffled cannot be tested, because the model of .* was not kept"):
        run_cell(Cell(*_fields(cell), controls=("shuffled",)), keep_model=True)


def test_a_cell_is_tested_while_its_model_is_there(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its model goes afterwards, and nobody asks for more of it."""
    result = read_result(cell)
    assert result is not None
    storage.remove(storage.join(cell.directory, RESULT))
    trained = SimpleNamespace(tests=result.tests, checkpoint_step=4, validation={}, incomplete=[])
    monkeypatch.setattr("glscl.runs.execution._train", lambda *_: trained)
    run_cell(cell, keep_model=False)
    assert is_finished(cell)
    assert not Path(cell.directory, "model").exists()
    assert [test.frames for test in read_controls(cell.directory)] == [*ORDERS, *ORDERS]
    more = replace(cell, controls=("single", "shuffled"), wise_ft=(0.5,))
    unfinished = replace(more, config=cell.config.model_copy(update={"name": "another"}))
    capsys.readouterr()
    left = without_untestable([cell, more, unfinished], "study")
    assert left == [cell, replace(cell, controls=("single",)), unfinished]
    assert all(is_finished(one) for one in left[:2])
    output = capsys.readouterr().out
    assert output.startswith(
        "study: 1 finished cells cannot be tested with shuffled, wise_ft 0.5, because their models"
    )


def test_towers_between_are_tested_beside_the_result(cell: Cell) -> None:
    cell = replace(cell, controls=(), wise_ft=(0.0, 0.5))
    before = Path(cell.directory, RESULT).read_bytes()
    assert not is_finished(cell)
    run_cell(replace(cell, wise_ft=(0.5,)), keep_model=True)
    run_cell(cell, keep_model=False)
    assert is_finished(cell)
    assert Path(cell.directory, RESULT).read_bytes() == before
    assert not Path(cell.directory, CONTROLS).exists()
    tests = {(test.domain, test.towers_alpha): test for test in read_wise_ft(cell.directory)}
    assert list(tests) == [(domain, alpha) for alpha in (0.5, 0.0) for domain in ("one", "two")]
    with pytest.raises(UserError, match=r"wise_ft: 0\.25 cannot be tested, because the model of .* was not kept"):
        run_cell(replace(cell, wise_ft=(0.25,)), keep_model=True)


def test_towers_between_give_the_ranks_of_the_evaluation(cell: Cell) -> None:
    cell = replace(cell, controls=(), wise_ft=(0.0, 0.5))
    run_cell(cell, keep_model=True)
    result = read_result(cell)
    assert result is not None
    direct = evaluate_model(
        cell.directory, cell.config.data.test, cell.config.evaluation, ONE, keep_ranks=True,
        mixes=listed_mixes((0.0, 0.5), ()),
    )  # fmt: skip
    for test, expected in zip(read_wise_ft(cell.directory), direct, strict=True):
        assert expected.per_query is not None
        assert (test.domain, test.towers_alpha) == (expected.domain, expected.towers_alpha)
        for direction in ("text_to_video", "video_to_text"):
            found = getattr(test, direction)
            assert found.optimistic.tolist() == getattr(expected.per_query, direction).optimistic.tolist()
    ranks = [one.text_to_video.optimistic.tolist() for one in read_wise_ft(cell.directory)[:2]]
    assert ranks != [test.per_query.text_to_video.optimistic.tolist() for test in result.tests], "by other towers"


def _fields(cell: Cell) -> tuple[Any, ...]:
    return cell.condition, cell.variant, cell.training, cell.domains, cell.seed, cell.config


def test_controls_of_a_deleted_result_go_with_it(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    run_cell(cell, keep_model=True)
    storage.remove(storage.join(cell.directory, RESULT))
    assert read_result(cell) is None

    def train(*_: object, **__: object) -> None:
        assert read_controls(cell.directory) == []
        raise UserError("trained")

    monkeypatch.setattr("glscl.runs.execution.train", train)
    monkeypatch.setattr("glscl.runs.execution.preflight", lambda _: None)
    with pytest.raises(UserError, match="trained"):
        run_cell(cell, keep_model=True)


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(ValidationError, match="an order of frames is named twice"):
        study(controls=["single", "single"])
    with pytest.raises(ValidationError, match="'single', 'shuffled' or 'reversed'"):
        study(controls=["backwards"])
    with pytest.raises(ValidationError, match="an order of frames is named twice"):
        EvaluationConfig(frames=("single", "single"))
    assert EvaluationConfig(frames=()) == EvaluationConfig(), "nothing asked for, as before there was the option"
    config = study(run={"model": {"clip": "glscl-tiny"}, "evaluation": {"frames": ["single"]}})
    with pytest.raises(
        UserError, match=r"evaluation\.frames: a study names other orders of frames under its own `controls`"
    ):
        build_cells(config, {name: Sets(("s",), (), "t") for name in config.domains})
