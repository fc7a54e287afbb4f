"""Nothing that loads a checkpoint's files can be made to run code by them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from glscl.errors import RunStoppedError
from glscl.training.checkpoint.safe_load import SWITCH, safe_loading


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_load_that_asks_for_everything_gets_tensors_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the look at the files beforehand has missed something, and where the user's shell switches it off."""
    monkeypatch.setenv(SWITCH, "0")
    file, harm = tmp_path / "evil.pt", tmp_path / "harm"
    torch.save({"x": torch.ones(2), "extra": Evil(harm)}, file)
    with (
        pytest.raises(RunStoppedError, match=r"checkpoint step_1 is refused: .*--name"),
        safe_loading(str(tmp_path / "elsewhere"), "step_1"),
    ):
        torch.load(file, weights_only=False)
    assert not harm.exists()
    assert os.environ[SWITCH] == "0"
    torch.load(file, weights_only=False)
    assert harm.exists(), "the test would show nothing"
