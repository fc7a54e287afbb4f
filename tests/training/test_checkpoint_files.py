"""The files of a checkpoint, without an engine: who reads which, where they lie meanwhile, and what a refusal says."""

from __future__ import annotations

import errno
import glob
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from glscl.errors import UserError
from glscl.system import storage
from glscl.training.checkpoint import format as checkpoint
from glscl.training.checkpoint import transfer
from glscl.training.checkpoint.format import IncompleteCheckpointError, TrainState
from tests.training.test_checkpoint import flip, put


def test_each_part_hashes_the_files_of_its_own_ranks(tmp_path: Path) -> None:
    folder = str(tmp_path / put(str(tmp_path), 1))
    flip(f"{folder}/deepspeed/rank-0")
    checkpoint.check_complete(folder, 1, 2)
    for part, parts in ((0, 1), (0, 2)):
        with pytest.raises(IncompleteCheckpointError, match="deepspeed/rank-0: checksum differs"):
            checkpoint.check_complete(folder, part, parts)
    os.truncate(f"{folder}/deepspeed/rank-0", 3)
    with pytest.raises(IncompleteCheckpointError, match="3 bytes where 1000 were saved"):
        checkpoint.check_complete(folder, 1, 2)  # sizes of all


def test_a_copy_lies_in_the_scratch_folder_and_goes(bucket: str, tmp_path: Path) -> None:
    name = put(f"{bucket}/run", 1)
    with transfer.local_copy(f"{bucket}/run/{name}", str(tmp_path)) as folder:
        assert Path(folder).parent == tmp_path
        assert Path(folder).name.startswith("checkpoint-")
        names = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
        assert names == {"deepspeed/rank-0", "deepspeed/rank-1", "state.json", "files-00000.json", "files-00001.json"}
    assert os.listdir(tmp_path) == []


def test_a_local_one_is_read_where_it_is(tmp_path: Path) -> None:
    name = put(str(tmp_path), 1)
    with transfer.local_copy(str(tmp_path / name)) as folder:
        assert folder == str(tmp_path / name)


def test_brackets_in_a_local_path_are_no_pattern(tmp_path: Path) -> None:
    """DeepSpeed looks for its files with `glob`."""
    run, scratch = tmp_path / "runs [v2]", tmp_path / "scratch"
    scratch.mkdir()
    name = put(str(run), 1)
    with transfer.local_copy(str(run / name), str(scratch)) as folder:
        assert Path(folder).is_relative_to(scratch)
        assert len(glob.glob(os.path.join(folder, "deepspeed", "rank-*"))) == 2
        assert checkpoint.check_complete(folder).step == 1
    assert os.listdir(scratch) == []
    assert checkpoint.check_complete(str(run / name)).step == 1


def test_the_list_is_uploaded_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("files-00001.json", "a/deepspeed", "z", "state.json")
    for name in names:
        storage.write_bytes(str(tmp_path / "mine" / name), b"")
    order: list[str] = []
    monkeypatch.setattr(storage, "upload", lambda source, uri: order.append(uri))
    transfer.upload(str(tmp_path / "mine"), "s3://data/run/step")
    assert order[-1] == "s3://data/run/step/files-00001.json"
    assert set(order) == {
        f"s3://data/run/step/{name}" for name in ("files-00001.json", "a/deepspeed", "z", "state.json")
    }


def test_a_refused_upload_keeps_the_system_s_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(str(tmp_path / "mine" / "x"), b"")

    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, "ignored")

    monkeypatch.setattr(storage, "upload", fail)
    with pytest.raises(UserError, match=rf"written \({os.strerror(errno.EDQUOT)}\).*checkpoint.keep"):
        transfer.upload(str(tmp_path / "mine"), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos\nframe #0"), "unexpected pos;"),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0\nframe"),
            "PytorchStreamWriter failed writing file data/0;",
        ),
        (RuntimeError("basic_ios::clear: iostream error"), "iostream error;"),
        (SafetensorError("I/O error: No space left"), "I/O error: No space left;"),
        (OSError(errno.ENOSPC, "x"), "No space left on device;"),
        (OSError("without a number"), "without a number;"),
        (RuntimeError("iostream error " + "x" * 300), "x{185};"),
    ],
)
def test_what_cannot_be_written_is_explained(error: Exception, said: str, tmp_path: Path) -> None:
    with (
        pytest.raises(
            UserError, match=rf"{tmp_path}/c: a checkpoint could not be written \(.*{said} [1-9]\d* MB are free"
        ),
        transfer.explained_full_disk(str(tmp_path / "c")),
    ):
        raise error


def test_what_is_no_want_of_room_is_left_as_it_is(tmp_path: Path) -> None:
    for error in (RuntimeError("something else"), ValueError("x")):
        with pytest.raises(type(error), match=str(error)), transfer.explained_full_disk(str(tmp_path / "c")):
            raise error


def test_nothing_to_load_is_an_incomplete_checkpoint(tmp_path: Path) -> None:
    class Engine:
        optimizer = SimpleNamespace(param_groups=[], state={})

        def load_checkpoint(self, folder: str, tag: str, **_: Any) -> tuple[None, dict[str, Any]]:
            assert (folder, tag) == (str(tmp_path), "deepspeed")
            return None, {}

    with pytest.raises(IncompleteCheckpointError, match=f"{tmp_path}: DeepSpeed found nothing to load"):
        checkpoint.restore(Engine(), str(tmp_path), TrainState(1, 1, 0, {"seed": 1}, []), 0)


def test_generators_start_from_what_no_other_rank_or_step_has() -> None:
    seen = set()
    for seed in (0, 1, 7):
        for step in (0, 1, 2, 1000):
            for rank in (0, 1, 63):
                checkpoint.seed_generators(seed, step, rank)
                seen.add(torch.initial_seed())
                assert torch.initial_seed() == seed * 1_000_003 + step * 65_537 + rank
    assert len(seen) == 36


def test_a_name_says_step_workers_and_attempt() -> None:
    assert checkpoint.directory_name(12, 3, "5c535a33") == "step_00000012-w3-5c535a33"


def test_an_unreadable_entry_names_its_place(tmp_path: Path) -> None:
    folder = tmp_path / put(str(tmp_path), 1)
    (folder / "files-00001.json").write_text(json.dumps({"x": {"bytes": "1", "sha256": ""}}))
    with pytest.raises(IncompleteCheckpointError, match=r"^files-00001\.json: unreadable \(x\.bytes: "):
        checkpoint.read_state(str(folder)) and checkpoint.check_files(str(folder))
