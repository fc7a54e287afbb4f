"""Signals become exceptions inside a command, and are left alone outside."""

from __future__ import annotations

import os
import signal

import pytest

from glscl.errors import Stopped
from glscl.system.stopping import deferred, ends_by_signal, reinstall_handlers


def test_a_signal_ends_a_command_with_its_name() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def command() -> None:
        with ends_by_signal():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as ray.init sets one of its own
            reinstall_handlers()
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped by SIGTERM") as stop:
        command()
    assert stop.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_signal_is_noted_and_the_second_ends() -> None:
    seen = []

    def command() -> None:
        with ends_by_signal(), deferred() as asked:
            seen.append(asked())
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append(asked())
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="stopped by SIGINT at once"):
        command()
    assert seen == [0, signal.SIGTERM]


def test_a_program_that_imports_glscl_keeps_its_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with deferred() as asked:
        reinstall_handlers()
        assert signal.getsignal(signal.SIGTERM) is before
        assert asked() == 0
