"""What is copied for a checkpoint is what was there, and one copy is held at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glscl.errors import UserError
from glscl.system.ownership import Fence
from glscl.training import saving
from glscl.training.checkpoint.format import TrainState
from glscl.training.checkpoint.snapshot import HostMemory, Snapshot


def test_a_copy_does_not_follow_what_it_was_made_of() -> None:
    shared = torch.arange(6.0)
    value = {"a": [shared, (shared.view(2, 3).t(),)], "groups": [{"lr": 0.5}], "b": shared}
    copied: Any = HostMemory().copy(value)
    shared += 1
    value["groups"][0]["lr"] = 0.25  # type: ignore[index]
    assert torch.equal(copied["a"][0], torch.arange(6.0))
    assert torch.equal(copied["a"][1][0], torch.arange(6.0).view(2, 3).t())
    assert copied["b"] is copied["a"][0], "one tensor stays one"
    assert copied["groups"] == [{"lr": 0.5}]


def test_pages_serve_again() -> None:
    memory = HostMemory()
    first: Any = memory.copy([torch.zeros(3), torch.zeros(2, dtype=torch.int64)])
    where = [tensor.data_ptr() for tensor in first]
    memory.reuse()
    second: Any = memory.copy([torch.ones(3), torch.ones(2, dtype=torch.int64)])
    assert [tensor.data_ptr() for tensor in second] == where
    memory.reuse()
    other: Any = memory.copy([torch.ones(3), torch.ones(2)])
    assert other[0].data_ptr() == where[0]
    assert other[1].dtype == torch.float32, "a tensor of another kind gets a page of its own"


@pytest.mark.parametrize("fails", [False, True])
def test_the_next_copy_waits_until_this_one_is_written(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where writing fails: the error reaches Ray Train, which ends the run."""
    monkeypatch.chdir(tmp_path)
    written, order = threading.Event(), []

    def write(_: Snapshot) -> None:
        written.wait(10)
        order.append("written")
        if fails:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Snapshot, "write", write)
    monkeypatch.setattr(saving, "take_snapshot", lambda *_: Snapshot("", 0, "", {}, [], lambda *_: None))
    monkeypatch.setattr(saving, "rank", lambda: 0)
    monkeypatch.setattr(saving, "upload", lambda folder, uri: order.append(f"uploaded to {uri}"))
    monkeypatch.setattr(saving.distributed, "barrier", lambda: order.append("all are there"))
    reports: list[Any] = []
    monkeypatch.setattr(saving.ray.train, "report", lambda metrics, **options: reports.append(options))
    monkeypatch.setattr(saving.ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: destination))
    destination = SimpleNamespace(build_checkpoint_path_from_name=str, storage_filesystem=None)
    monkeypatch.setattr(Fence, "check", lambda fence: None)
    saver = saving.Saver(Fence(str(tmp_path), 1, "claim"))
    saver.wait()
    saver.save(SimpleNamespace(), TrainState(1, 1, 1, {}, []), "step_1", 0.0)  # type: ignore[arg-type]
    (options,) = reports
    failures: list[BaseException] = []

    def upload() -> None:
        try:
            options["checkpoint_upload_fn"](options["checkpoint"], "step_1")
        except UserError as error:
            failures.append(error)

    uploading = threading.Thread(target=upload)
    uploading.start()
    waiting = threading.Thread(target=saver.wait)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert order == ["all are there"]
    written.set()
    waiting.join(10)
    uploading.join(10)
    assert not waiting.is_alive()
    assert order[1] == "written"
    assert bool(failures) == fails
    assert (f"uploaded to {tmp_path}/step_1" in order) == (not fails)
    assert fails == (list(tmp_path.glob("checkpoint-*")) == []), "what failed is removed at once"
