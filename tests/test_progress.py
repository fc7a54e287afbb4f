"""Lines of progress where there is no terminal: none for what is quick, then one now and then with the time left."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from glscl.system import progress
from glscl.system.progress import Progress, time_left


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


def test_time_left() -> None:
    assert time_left(10, 0, 5) == ""
    assert time_left(10, 1, 3) == ", about 20 s left"
    assert time_left(600, 1, 3) == ", about 20 min left"
