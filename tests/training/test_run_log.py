"""What a run writes about itself, and how a resumed run takes it up."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from glscl.errors import UserError
from glscl.system import storage
from glscl.training.run_log import METRICS, TENSORBOARD, RunLog, read_metrics


def scalars(folder: str) -> list[tuple[str, int, float]]:
    """(tag, step, value) of every scalar in every event file, checksums checked."""
    found = []
    for name in storage.list_names(folder):
        assert name.startswith("events.out.tfevents"), name
        data = storage.read_bytes(storage.join(folder, name))
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            body = data[at + 12 : at + 12 + length]
            assert int.from_bytes(data[at + 12 + length : at + 16 + length], "little") == masked_crc32c(body)
            event = Event.FromString(body)
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 16 + length
    return found


def test_rows_and_scalars(tmp_path: Path) -> None:
    run = str(tmp_path / "runs" / "a")
    log = RunLog(run, 0)
    log.write(1, {"loss": 2.5, "note": "text"})
    assert read_metrics(run) == [{"step": 1, "loss": 2.5, "note": "text"}], "every row is there at once"
    log.write(2, {"loss": 2.0, "validation_R@1": 50})
    log.close()
    assert read_metrics(run) == [
        {"step": 1, "loss": 2.5, "note": "text"},
        {"step": 2, "loss": 2.0, "validation_R@1": 50},
    ]
    assert sorted(scalars(f"{run}/{TENSORBOARD}")) == [("loss", 1, 2.5), ("loss", 2, 2.0), ("validation_R_1", 2, 50.0)]


def test_a_resumed_run_drops_the_rows_after_its_checkpoint(tmp_path: Path) -> None:
    run = str(tmp_path)
    first = RunLog(run, 0)
    for step in range(1, 7):
        first.write(step, {"loss": float(step)})
    first.close()
    second = RunLog(run, 4)
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]
    second.write(5, {"loss": 50.0})
    second.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(run)][-2:] == [(4, 4.0), (5, 50.0)]
    assert sorted(scalars(f"{run}/{TENSORBOARD}"))[-3:] == [("loss", 5, 5.0), ("loss", 5, 50.0), ("loss", 6, 6.0)]
    RunLog(run, 0).close()  # a run that starts again: nothing of the old one is left
    assert read_metrics(run) == []


def test_a_torn_last_line_is_left_out_and_not_glued_to_the_next(tmp_path: Path) -> None:
    run = str(tmp_path)
    (tmp_path / METRICS).write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    assert read_metrics(run) == [{"step": 1, "loss": 1.0}]
    log = RunLog(run, 5)
    log.write(6, {"loss": 6.0})
    log.close()
    assert [row["step"] for row in read_metrics(run)] == [1, 6]


def test_no_log_yet(tmp_path: Path) -> None:
    assert read_metrics(str(tmp_path / "nowhere")) == []


@pytest.mark.e2e
def test_a_remote_run_directory_is_written_at_every_flush_and_taken_up(bucket: str) -> None:
    run = f"{bucket}/runs/a"
    log = RunLog(run, 0)
    log.write(1, {"loss": 1.0})
    assert read_metrics(run) == []
    log.flush()
    assert read_metrics(run) == [{"step": 1, "loss": 1.0}]
    log.write(2, {"loss": 2.0})
    log.close()
    assert [row["step"] for row in read_metrics(run)] == [1, 2]
    assert scalars(f"{run}/{TENSORBOARD}") == [("loss", 1, 1.0), ("loss", 2, 2.0)]
    again = RunLog(run, 1)  # on another machine: nothing of the first one's scratch folder is used
    again.write(2, {"loss": 20.0})
    again.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(run)] == [(1, 1.0), (2, 20.0)]
    assert sorted(scalars(f"{run}/{TENSORBOARD}")) == [("loss", 1, 1.0), ("loss", 2, 2.0), ("loss", 2, 20.0)]


def test_a_full_disk_ends_the_run_in_a_line(tmp_path: Path) -> None:
    """TensorBoard's own writer would swallow it in a thread and let the training wait for ever."""
    log = RunLog(str(tmp_path), 0)
    log.write(1, {"loss": 1.0})
    full = open("/dev/full", "ab", buffering=0)  # noqa: SIM115 (RunLog closes it)
    log._events._py_recordio_writer._writer = full
    with pytest.raises(
        UserError, match=rf"^{tmp_path}: the log of the run cannot be written \(No space left on device"
    ):
        log.write(2, {"loss": 2.0})
    assert [row["step"] for row in read_metrics(str(tmp_path))] == [1, 2]
