"""Trackers get what the log gets, in the libraries' own offline stores; what they do or fail to do stops no run."""

from __future__ import annotations

import io
import json
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from glscl.cli import main
from glscl.errors import UserError
from glscl.runs.build import build_run
from glscl.training import trackers
from glscl.training.checkpoint.format import run_differences
from glscl.training.config import RunConfig, validate
from glscl.training.run_log import RunLog, read_metrics
from glscl.training.trackers import FILE, check_trackers, start_trackers
from tests.study.fake import study


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_END_S", 600.0)  # a busy machine imports slowly


def configure(folder: Path, *names: str, **more: Any) -> RunConfig:
    return validate({"name": "one", "storage": str(folder), "tracking": {"to": names, **more}}, "test")


def attempt(config: RunConfig, rows: dict[int, dict[str, object]], *, begins: int = 0, failed: bool = False) -> None:
    """What rank 0 does of an attempt at a run."""
    log = RunLog(config.run_directory, begins, None, start_trackers(config))
    for step, row in rows.items():
        log.write(step, row)  # type: ignore[arg-type]
    log.close(failed)


ROWS: dict[int, dict[str, object]] = {
    1: {"loss": 2.5, "note": "text"},
    2: {"loss": 2.0, "validation_text_to_video_R@1": 50, "pairs": ["a", "b"]},
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], MlflowClient]:
    """An MLflow store of this test's own, and a client of it."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return lambda: MlflowClient(uri)


def runs_of(client: MlflowClient, project: str = "glscl") -> list[Run]:
    return list(client.search_runs([client.get_experiment_by_name(project).experiment_id]))


def history(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_mlflow_has_the_rows_and_a_resumed_run_goes_on_there(
    tmp_path: Path,
    store: Callable[[], MlflowClient],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "hunter2-hunter2")
    config = configure(tmp_path, "mlflow", group="hunter2-hunter2/grouped")
    attempt(config, ROWS, failed=True)
    (run,) = runs_of(store())
    assert run.info.status == "FAILED"
    attempt(config, {2: {"loss": 1.9}, 3: {"loss": 1.5}}, begins=1)
    assert capfd.readouterr().out == "", "nothing went wrong"
    (run,) = runs_of(store())
    assert run.info.status == "FINISHED"
    assert history(store(), run, "loss") == [(1, 2.5), (2, 2.0), (2, 1.9), (3, 1.5)]
    assert history(store(), run, "validation_text_to_video_R_1") == [(2, 50.0)]
    assert run.data.params["training.global_batch"] == str(config.training.global_batch)
    assert run.data.tags["glscl.id"] == json.loads((tmp_path / "one" / FILE).read_text())["id"]
    assert run.data.tags["group"] == "[secret]/grouped"
    assert b"hunter2" not in (tmp_path / "mlflow.db").read_bytes(), "a secret that got into a configuration"
    assert [row["step"] for row in read_metrics(config.run_directory)] == [1, 2, 3]


def test_wandb_offline_has_the_rows_under_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    config = configure(tmp_path, "wandb", project="mine", group="grouped")
    attempt(config, ROWS)
    attempt(config, {3: {"loss": 0.15625}}, begins=2)
    assert capfd.readouterr().out == ""
    known = json.loads((tmp_path / "one" / FILE).read_text())["id"]
    folders = sorted((tmp_path / "one" / "wandb").glob("offline-run-*"))
    data = [(folder / f"run-{known}.wandb").read_bytes() for folder in folders]
    assert sum(b"validation_text_to_video_R@1" in one for one in data) == 1
    assert sum(b"0.15625" in one for one in data) == 1
    for one in data:
        assert [word for word in (b"mine", b"grouped", b"/one", b"loss") if word not in one] == []


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio wants pillow < 13, which constraints.txt has not")
def test_trackio_has_the_rows_and_a_resumed_run_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    config = configure(tmp_path, "trackio", group="grouped")
    attempt(config, ROWS)
    attempt(config, {3: {"loss": 1.5}}, begins=2)
    assert capfd.readouterr().out == ""
    (file,) = (tmp_path / "trackio").glob("glscl*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    known = json.loads((tmp_path / "one" / FILE).read_text())["id"]
    assert {name.rpartition("-")[2] for name, *_ in rows} == {known}
    assert [(step, json.loads(text)["loss"]) for _, step, text in rows] == [(1, 2.5), (2, 2.0), (3, 1.5)]


@pytest.fixture
def deaf() -> Iterator[str]:
    """A server that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in held:
            connection.close()


def _listen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is printed from here on. Reading pytest's own capture while a thread prints now and then loses a line."""
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)  # not in a fixture: before each test pytest sets it anew
    return printed


def test_a_server_that_is_not_there_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _listen(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:hunter2-hunter2@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = configure(tmp_path, "mlflow")
    log = RunLog(config.run_directory, 0, None, start_trackers(config))
    (tracker,) = log._trackers._trackers
    log.write(1, {"loss": 2.5})
    lines = _wait_for_line(said)
    assert lines.startswith("tracker mlflow: MlflowException: ")
    assert lines.endswith("; the run goes on, and metrics.jsonl has all rows\n")
    assert lines.count("\n") == 1
    assert "hunter2" not in lines
    monkeypatch.setattr(trackers, "_END_S", 0.2)
    process = tracker._process
    log.close()
    assert process is not None
    assert process.returncode == -9, "nothing is left of it"
    assert said.getvalue()[len(lines) :].startswith("tracker mlflow: did not take everything in time")
    assert read_metrics(config.run_directory) == [{"step": 1, "loss": 2.5}]


def test_a_server_that_hangs_costs_rows_there_and_no_step(
    tmp_path: Path, deaf: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", deaf)
    monkeypatch.setattr(trackers, "_ROWS", 5)
    monkeypatch.setattr(trackers, "_END_S", 0.2)
    config = configure(tmp_path, "mlflow")
    rows = {step: {f"a_long_name_of_a_figure_{n}": 1.0 for n in range(50)} for step in range(1, 200)}
    attempt(config, rows)  # type: ignore[arg-type]  # more than queue and pipe hold: it would stand still for ever
    out = capfd.readouterr().out.splitlines()
    assert out[0].startswith("tracker mlflow: is 5 rows behind")
    assert sum("is 5 rows behind" in line for line in out) == 1
    assert any("lacks " in line for line in out)
    assert len(read_metrics(config.run_directory)) == 199


def test_a_tracker_that_breaks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _listen(monkeypatch)
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit(3)")
    monkeypatch.setattr(trackers, "_PROGRAM", str(program))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    config = configure(tmp_path, "mlflow")
    log = RunLog(config.run_directory, 0, None, start_trackers(config))
    (tracker,) = log._trackers._trackers
    assert tracker._process is not None
    tracker._process.wait()
    for step in range(1, 4):
        log.write(step, {"loss": 1.0})
    assert "tracker mlflow: ended by itself (status 3)" in _wait_for_line(said)
    log.close()
    assert len(read_metrics(config.run_directory)) == 3


def _wait_for_line(said: io.StringIO) -> str:
    while "\n" not in said.getvalue():
        time.sleep(0.05)
    return said.getvalue()


def test_what_cannot_work_is_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(*names: str) -> str:
        with pytest.raises(UserError) as caught:
            check_trackers(configure(tmp_path, *names).tracking)
        return str(caught.value)

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "MLFLOW_TRACKING_URI" in refusal("mlflow")
    for relative in ("sqlite:///mlflow.db", "mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", relative)
        assert f"it is '{relative}'" in refusal("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    check_trackers(configure(tmp_path, "mlflow", "wandb").tracking)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert refusal("trackio") == "tracking.to: trackio is not installed: pip install 'glscl[trackio]'"
    words = ["train", "--data.train", str(tmp_path), "--storage", str(tmp_path), "--tracking.to", "wandb", "--dry-run"]
    assert main(words) == 2
    assert capsys.readouterr().out.splitlines()[-1].endswith("pip install 'glscl[wandb]'")
    with pytest.raises(UserError, match="twice"):
        configure(tmp_path, "wandb", "wandb")


def test_the_runs_of_a_study_are_a_group_and_trackers_decide_nothing_of_a_run() -> None:
    config = study(name="s1", run={"tracking": {"to": ["wandb"]}})
    run = build_run(config, "/s/s1/cells/c", "glscl-a-1", 1, [], {"train": ["/a"], "validation": [], "test": []})
    assert run.tracking.group == "s1"
    named = build_run(config, "/s", "x", 1, [{"tracking": {"group": "mine"}}], {"train": ["/a"]})
    assert named.tracking.group == "mine"
    old = {key: value for key, value in run.model_dump(mode="json").items() if key != "tracking"}
    assert run_differences(old, run.model_dump(mode="json")) == []
