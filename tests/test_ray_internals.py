"""One package stands on private parts of Ray, and no code that runs in earnest stands on the tools of tests."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
from pathlib import Path

import pytest
from ray.train import ControllerError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner

from glscl.errors import UserError
from glscl.system.ray_internals.cluster import print_no_traceback_of
from glscl.system.ray_internals.train import PatientController

ROOT = Path(__file__).parents[1]
PRIVATE = re.compile(r"\bray\.(_private|_raylet|\w+(\.\w+)*\._(internal|private))\b|\binternal_kv\b")


def production() -> list[Path]:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", ":!tests", ":!stress", ":!benchmarks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in tracked.stdout.splitlines()]


def test_one_package_stands_on_private_parts_of_ray() -> None:
    users = {path.relative_to(ROOT).parent for path in production() if PRIVATE.search(path.read_text(encoding="utf-8"))}
    assert users == {Path("glscl/system/ray_internals")}


def test_no_module_mocks_in_earnest() -> None:
    assert not [path for path in production() if "unittest.mock" in path.read_text(encoding="utf-8")]


def test_what_a_user_has_to_mend_ends_a_worker_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("ray.train.v2._internal.util")
    logger.addHandler(caplog.handler)  # Ray's loggers do not propagate
    try:
        print_no_traceback_of(UserError)
        for error, printed in ((UserError("a knob"), False), (ValueError("a fault"), True)):
            caplog.clear()

            def fail(error: Exception = error) -> None:
                raise error

            runner = ThreadRunner()
            runner.run(fail)
            runner._thread.join()
            assert runner.get_error() is not None
            assert ("Traceback" in caplog.text) is printed
    finally:
        logger.removeHandler(caplog.handler)
        logger.filters.clear()


def test_the_controller_takes_a_users_mistake_for_the_end_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray prints a traceback of every error that is not its own."""

    async def fail(controller: TrainController) -> None:
        raise UserError("a knob")

    monkeypatch.setattr(TrainController, "_step", fail)
    with pytest.raises(ControllerError) as caught:
        asyncio.run(PatientController._step(object.__new__(PatientController)))
    assert str(caught.value.controller_failure) == "a knob"
