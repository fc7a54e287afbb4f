"""One command at a time writes into a directory: who comes second is refused, who was taken over changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from glscl.data.quarantine import Quarantine
from glscl.errors import StorageError, UserError
from glscl.system import exclusive, ownership, storage
from glscl.system.ownership import Claim, Fence, TakenOverError, machine_id, owned, start_of
from glscl.system.s3 import S3
from glscl.training.checkpoint.retention import INDEX, Retention
from glscl.training.driver.outputs import STATUS, status_on_failure, write_status
from glscl.training.run_log import METRICS, NonFiniteReport, RunLog

ADVICE = "choose another --name"


@pytest.fixture(params=["local", "s3"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    return f"{root}/runs/r"


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("PERIOD_S", 0.05), ("LIMIT_S", 0.6), ("LEAST_WATCH_S", 0.2), ("_POLL_S", 0.02)):
        monkeypatch.setattr(ownership, name, seconds)
    monkeypatch.setattr(exclusive, "SETTLE_S", 0.0)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def claim_of(pid: int, **changes: Any) -> Claim:
    claim = Claim("token-of-another", "glscl train", "box", machine_id(), pid, start_of(pid) or "")
    return replace(claim, **changes)


def write_claim(directory: str, number: int, claim: Claim) -> str:
    where = storage.join(directory, "owner", f"{number:08d}.json")
    storage.write_bytes(where, claim.to_bytes())
    return where


def claims(directory: str) -> dict[str, Claim]:
    folder = storage.join(directory, "owner")
    return {
        name: Claim(**json.loads(storage.read_bytes(storage.join(folder, name)))) for name in storage.list_names(folder)
    }


def test_of_many_who_create_a_file_one_succeeds(directory: str) -> None:
    words = [f"writer {number}".encode() for number in range(12)]
    with ThreadPoolExecutor(len(words)) as pool:
        created = pool.map(lambda word: exclusive.create(f"{directory}/f", word), words)
        won = [word for word, mine in zip(words, created, strict=True) if mine]
    assert len(won) == 1
    assert storage.read_bytes(f"{directory}/f") == won[0]


@pytest.mark.parametrize("store", ["ignores", "refuses"])
def test_a_store_without_conditional_writes_is_settled(
    store: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = S3._once

    async def once(self: S3, method: str, *arguments: Any, **options: Any) -> Any:
        if options.pop("IfNoneMatch", None) and store == "refuses":
            answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise ClientError(answer, method)
        return await original(self, method, *arguments, **options)

    monkeypatch.setattr(S3, "_once", once)
    where = f"{bucket}/f"
    slept: list[float] = []
    monkeypatch.setattr(exclusive.time, "sleep", slept.append)
    assert exclusive.create(where, b"one")
    assert slept == [exclusive.SETTLE_S]

    monkeypatch.setattr(exclusive.time, "sleep", lambda _: storage.write_bytes(f"{bucket}/g", b"other"))
    assert not exclusive.create(f"{bucket}/g", b"mine"), "another has written meanwhile"
    assert storage.read_bytes(f"{bucket}/g") == b"other"
    if store == "refuses":
        assert not exclusive.create(where, b"two")
        assert storage.read_bytes(where) == b"one"


def test_a_store_that_takes_nothing_says_so(bucket: str) -> None:
    with pytest.raises(StorageError, match="no-such-bucket"):
        exclusive.create("s3://no-such-bucket/f", b"one")


def test_an_answer_that_was_lost_is_not_another_command(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write went through, its answer did not, and the second attempt finds the object there: its own."""
    original = S3._once
    cut: list[str] = []

    async def once(self: S3, method: str, *arguments: Any, **options: Any) -> Any:
        answer = await original(self, method, *arguments, **options)
        if method == "put_object" and not cut:
            cut.append(method)
            raise ConnectionError("cut")
        return answer

    monkeypatch.setattr(S3, "_once", once)
    assert exclusive.create(f"{bucket}/f", b"mine")
    assert cut


def test_the_second_is_refused_and_told_who_and_since_when(
    directory: str, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_claim(directory, 3, claim_of(child.pid))
    with (
        pytest.raises(
            UserError,
            match=rf"{directory} is in use: glscl train on host box, pid {child.pid}, last heartbeat \d+ s ago\. "
            rf"Wait for its end, end it, or choose another --name",
        ),
        owned(directory, ADVICE),
    ):
        pass
    assert list(claims(directory)) == ["00000003.json"]

    # A listing of S3 that is out of date hides no owner.
    with monkeypatch.context() as patch:
        patch.setattr(storage, "list_names", lambda uri: ["00000002.json"])
        with pytest.raises(UserError, match="is in use"), owned(directory, ADVICE):
            pass

    child.kill()
    child.wait()
    with owned(directory, ADVICE) as owner:
        assert owner.fence.number == 4


def test_a_process_that_only_waits_to_be_collected_is_gone(directory: str, child: subprocess.Popen[bytes]) -> None:
    write_claim(directory, 1, claim_of(child.pid))
    child.kill()
    while start_of(child.pid) is not None:
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists(), "nobody has collected it"
    with owned(directory, ADVICE):
        pass


@pytest.mark.parametrize("released", [False, True])
def test_a_claim_that_nobody_holds_is_free_at_once(
    directory: str, released: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process number is another process's by now; or the owner, on whatever machine, has ended in order."""
    monkeypatch.setattr(ownership, "LIMIT_S", 3600.0)
    monkeypatch.setattr(ownership, "LEAST_WATCH_S", 3600.0)
    mine = {"machine": "elsewhere", "released": True} if released else {"started": "1"}
    write_claim(directory, 1, claim_of(os.getpid(), **mine))
    with owned(directory, ADVICE) as owner:
        assert [name for name, claim in claims(directory).items() if not claim.released][-1] == "00000002.json"
        owner.fence.check()
    assert claims(directory)["00000002.json"].released
    text = f"{directory}: taken over from glscl train on host box, pid {os.getpid()}, whose process is gone"
    assert (text in capsys.readouterr().out) is not released


def test_an_owner_on_another_machine_is_watched(directory: str, capsys: pytest.CaptureFixture[str]) -> None:
    claim = claim_of(os.getpid(), machine="elsewhere", host="node-7")
    where = write_claim(directory, 1, claim)
    ended = threading.Event()

    def renew() -> None:
        beat = 0
        while not ended.wait(0.05):
            beat += 1
            exclusive.renew(where, replace(claim, beat=beat).to_bytes())

    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(UserError, match="is in use: glscl train on host node-7"), owned(directory, ADVICE):
        pass
    ended.set()
    renewing.join()
    with owned(directory, ADVICE) as owner:
        assert owner.fence.number == 2
    text = capsys.readouterr().out
    assert f"{directory}: owned by glscl train on host node-7, pid {os.getpid()}; up to 1 s for a sign of life" in text
    assert "which was not heard of for 0.6 s" in text


@pytest.mark.parametrize(("age_s", "wait_s"), [(7200.0, 15), (-7200.0, 60), (20.0, 40)])
def test_an_age_that_the_storage_tells_shortens_the_wait_but_no_clock_is_believed(
    age_s: float, wait_s: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also an owner that seems to be hours old is given three heartbeats; one from the future is not waited for."""
    monkeypatch.setattr(ownership, "LIMIT_S", 60.0)
    monkeypatch.setattr(ownership, "LEAST_WATCH_S", 15.0)
    where = write_claim(str(tmp_path), 1, claim_of(1, machine="elsewhere"))
    os.utime(where, (time.time() - age_s,) * 2)

    def pass_time(_: float) -> None:
        storage.write_bytes(where, claim_of(1, released=True).to_bytes())

    monkeypatch.setattr(ownership.time, "sleep", pass_time)
    with owned(str(tmp_path), ADVICE):
        pass
    text = capsys.readouterr().out
    seconds = int(text.partition("; up to ")[2].split()[0])
    assert wait_s - 10 <= seconds <= wait_s, text  # the age is measured, on a machine that may be slow


def test_who_is_patient_waits_for_the_owners_end(
    directory: str, child: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    write_claim(directory, 1, claim_of(child.pid))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: ownership._claim(directory, ADVICE, 600.0))
        text = ""
        while "waiting for its owner to end" not in text:
            text += capsys.readouterr().out
            time.sleep(0.01)
        assert not waiting.done()
        child.kill()
        child.wait()
        waiting.result().release()
    assert claims(directory)["00000002.json"].released


def test_the_owner_beats_and_releases(directory: str) -> None:
    where = storage.join(directory, "owner", "00000001.json")
    with owned(directory, ADVICE):
        first = exclusive.read(where)
        assert first is not None
        while exclusive.read(where) == first:
            time.sleep(0.01)
        assert not claims(directory)["00000001.json"].released
    assert claims(directory)["00000001.json"].released


def test_who_was_taken_over_notices_and_changes_nothing(directory: str) -> None:
    """As a driver that was frozen: every place that writes or deletes is held up by itself."""
    with owned(directory, ADVICE) as owner:
        log = RunLog(directory, 0, owner.fence)
        log.write(1, {"loss": 1.0})
        log.flush()
        retention = Retention(directory, 1, owner.fence)
        retention.prune_at_start()
        write_status(directory, state="running", verdict="")
        storage.write_bytes(f"{directory}/step_00000001-w1-aaaa/half", b"the other's, under way")

        write_claim(directory, 2, claim_of(os.getpid(), token="the other's", host="node-9"))
        before = contents(directory)
        says = rf"{directory} was taken over by glscl train on host node-9, pid {os.getpid()}"
        writers: list[Callable[[], object]] = [
            retention.prune_at_start,
            retention.prune_at_end,
            owner.fence.check,
            lambda: RunLog(directory, 0, owner.fence),
            Quarantine(directory, 0.0, "knob", fence=owner.fence).write,
            lambda: log.write_non_finite(NonFiniteReport(1, ["loss"], [])),
            *([log.flush, log.close] if storage.is_remote(directory) else []),
        ]
        for write in writers:
            with pytest.raises(TakenOverError, match=says):
                write()
        with pytest.raises(TakenOverError, match=says), status_on_failure(owner.fence):
            raise RuntimeError("its cluster went away meanwhile")
        owner._thread.join()
        with pytest.raises(TakenOverError, match=says):
            owner.check()
    after = contents(directory)
    assert after == before, "neither a heartbeat nor the release writes"
    assert json.loads(after[STATUS])["state"] == "running"
    assert {METRICS, INDEX} <= after.keys()


def contents(directory: str) -> dict[str, bytes]:
    fs, root = storage.filesystem(directory)
    return {path.removeprefix(root).lstrip("/"): fs.cat_file(path) for path in fs.find(root)}


def test_a_directory_that_was_deleted_has_no_owner(tmp_path: Path) -> None:
    directory = str(tmp_path / "r")
    with owned(directory, ADVICE) as owner:
        storage.remove_folder(directory)
        with pytest.raises(TakenOverError, match="its owner/ folder is gone"):
            owner.fence.check()
    assert not Path(directory).exists()


def test_a_fence_travels_as_plain_values(tmp_path: Path) -> None:
    with owned(str(tmp_path), ADVICE) as owner:
        Fence(**json.loads(json.dumps(asdict(owner.fence)))).check()


def test_storage_that_is_away_does_not_end_the_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with owned(str(tmp_path), ADVICE) as owner:
        with monkeypatch.context() as patch:

            def refuse(uri: str, data: bytes) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(exclusive, "renew", refuse)
            text = ""
            while "no heartbeat can be written" not in text:
                text += capsys.readouterr().out
                time.sleep(0.01)
        where = storage.join(str(tmp_path), "owner", "00000001.json")
        first = exclusive.read(where)
        assert first is not None
        while exclusive.read(where) == first:
            time.sleep(0.01)
        owner.check()


def test_the_start_of_a_process_does_not_move_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    before = start_of(os.getpid())
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 1.0)
    assert before == start_of(os.getpid()) is not None
    assert start_of(2**22 + 1) is None
