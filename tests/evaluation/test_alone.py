"""An evaluation in the process that asks for it leaves its number of threads as it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from glscl.evaluation import alone
from glscl.evaluation.options import EvaluationConfig
from glscl.system.nodes import Share


@pytest.mark.parametrize(("variable", "inside"), [(None, 3), ("1", 2)])
def test_threads_are_the_workers_share_unless_the_user_has_set_them(
    variable: str | None, inside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "_Counting", lambda *_: SimpleNamespace())
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with alone.Alone("/folder", EvaluationConfig(), Share(1, False, 3.0, 0)):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
