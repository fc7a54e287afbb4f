"""Lines of progress where there is no terminal: none for what is quick, then one now and then with the time left."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glscl.system import progress
from glscl.system.progress import Progress, time_left
from glscl.training.driver import launch


def test_lines_come_late_and_seldom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with Progress("reading", 2000, "videos") as counted:
        for second in range(100):
            clock.now = 1000.0 + second
            counted.advance(20)
        clock.now += 100
        counted.reach(5000)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "reading: 620 of 2,000 videos, about 67 s left",
        "reading: 1,220 of 2,000 videos, about 38 s left",
        "reading: 1,820 of 2,000 videos, about 9 s left",
    ]
    assert counted.done == 2000


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("reading", 3, "videos") as counted:
        counted.advance()
        counted.advance(2)
    assert "reading" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_what_was_done_before_does_not_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with Progress("a study", 20, "cells", done=10) as counted, Progress("training", 20, "steps", done=None) as resumed:
        clock.now = 100.0
        counted.reach(11)
        resumed.reach(10)  # its start took a while
        clock.now = 140.0
        resumed.reach(11)
    assert capsys.readouterr().out.splitlines() == [
        "a study: 11 of 20 cells, about 15 min left",
        "training: 11 of 20 steps, about 6 min left",
    ]


def test_what_has_a_log_of_its_own_has_a_bar_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with Progress("training", 20, "steps", lines=False) as counted:
        clock.now = 1000.0
        counted.reach(10)
    assert capsys.readouterr().out == ""


def on_terminal(*words: str, folder: Path) -> str:
    """What `glscl` shows on a terminal of 80 columns."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "glscl", *words]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=follower, stderr=follower) as process:
        os.close(follower)
        shown = b""
        with suppress(OSError):  # its end
            while piece := os.read(leader, 1 << 16):
                shown += piece
    os.close(leader)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown)


TOY = ("toy", "--domain", "toy_clips", "--split", "test", "--count", "6", "--processes", "1", "--output")


def test_drawing_videos_shows_a_bar_on_a_terminal_and_nothing_in_a_pipe(tmp_path: Path) -> None:
    shown = plain(on_terminal(*TOY, "seen", folder=tmp_path))
    assert "drawing toy_clips/test" in shown
    assert re.search(r"[0-6]/6 videos", shown)
    assert "glscl: OK" in shown
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "glscl", *TOY, "unseen"]
    piped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert piped.stdout == "glscl: OK unseen: 6 videos, 24 captions\n"


class Terminal(io.StringIO):
    """A terminal that remembers."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_training_shows_its_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    """The driver follows the ranks' heartbeats: in `train`, `quickstart` and the pretraining of studies and sweeps."""
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    steps = iter([0, 3, 40, 79])
    outcome: Future[Any] = Future()

    class Watchdog:
        period_s = 0.0

        def poll(self) -> None:
            return None

        def step(self) -> int:
            step = next(steps)
            if step == 79:
                outcome.set_result(SimpleNamespace(return_value=None))
            return step

    trainer: Any = SimpleNamespace(fit=outcome.result)
    owner: Any = SimpleNamespace(check=lambda: None)
    watchdog: Any = Watchdog()
    monkeypatch.setattr(launch, "_POLL_S", 0.01)
    with Progress("training r", 80, "steps", done=None, lines=False) as counted:
        launch._run_watched(trainer, watchdog, owner, counted)
    shown = out.getvalue()
    if terminal:
        assert "training r" in shown
        assert re.search(r"79/80 steps, about \d+ s left", plain(shown))
    else:
        assert shown == ""


def test_time_left() -> None:
    assert time_left(10, 0, 5) == ""
    assert time_left(10, 1, 3) == ", about 20 s left"
    assert time_left(600, 1, 3) == ", about 20 min left"
