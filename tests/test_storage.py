"""Local paths and s3:// through one set of functions."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import boto3
import pyarrow.fs
import pytest
from botocore.exceptions import ClientError

from glscl.cli import main
from glscl.errors import StorageError, UserError
from glscl.system import environment, s3, storage
from glscl.system.s3 import S3
from tests.fault_proxy import KINDS, FaultProxy


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder and an empty prefix."""
    return str(tmp_path / "root") if request.param == "local" else f"{request.getfixturevalue('bucket')}/root"


def test_write_read_list_remove(root: str, tmp_path: Path) -> None:
    assert storage.list_names(root) == []
    assert not storage.exists(root)
    deep = storage.join(root, "a", "b.bin")
    storage.write_bytes(deep, b"one")
    storage.write_bytes(deep, b"two" * 100)
    assert storage.read_bytes(deep) == b"two" * 100
    storage.write_json(storage.join(root, "c.json"), {"é": [1, None]})
    assert storage.read_json(storage.join(root, "c.json")) == {"é": [1, None]}
    assert "é".encode() in storage.read_bytes(storage.join(root, "c.json"))
    assert storage.list_names(root) == ["a", "c.json"]
    assert storage.list_names(storage.join(root, "a")) == ["b.bin"]
    assert storage.exists(root)
    assert storage.exists(storage.join(root, "a"))
    assert storage.exists(deep)
    with storage.open_read(deep) as file:
        file.seek(3)
        assert file.read(4) == b"twot"
    storage.download(deep, str(tmp_path / "copy"))
    storage.upload(str(tmp_path / "copy"), storage.join(root, "new", "d"))
    assert storage.read_bytes(storage.join(root, "new", "d")) == b"two" * 100
    storage.remove(deep)
    storage.remove(deep)
    assert not storage.exists(deep)
    with pytest.raises(UserError, match=r"b\.bin: no such file"):
        storage.read_json(deep)


def test_what_is_no_json(root: str) -> None:
    where = storage.join(root, "x.json")
    for data in (b"{", b"", b'{"a": "\xe9"}'):
        storage.write_bytes(where, data)
        with pytest.raises(UserError, match=r"x\.json: not valid JSON \("):
            storage.read_json(where)


def test_ray_storage(root: str) -> None:
    path, filesystem = storage.ray_storage(root)
    filesystem = filesystem or pyarrow.fs.LocalFileSystem()
    filesystem.create_dir(path, recursive=True)
    with filesystem.open_output_stream(f"{path}/file") as file:
        file.write(b"from arrow")
    assert storage.read_bytes(storage.join(root, "file")) == b"from arrow"


def test_what_others_write_is_seen(bucket: str) -> None:
    """Another process adds objects after this one listed the folder."""
    client = boto3.client("s3")
    client.put_object(Bucket="data", Key="run/first", Body=b"1")
    assert storage.list_names(f"{bucket}/run") == ["first"]
    client.put_object(Bucket="data", Key="run/second", Body=b"2")
    assert storage.exists(f"{bucket}/run/second")
    assert storage.list_names(f"{bucket}/run") == ["first", "second"]
    client.put_object(Bucket="data", Key="run/first", Body=b"longer")
    assert storage.read_bytes(f"{bucket}/run/first") == b"longer"
    client.delete_object(Bucket="data", Key="run/first")
    assert not storage.exists(f"{bucket}/run/first")


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027, 0o077])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int) -> None:
    """Of files written and uploaded, of those replaced, and of folders made on the way."""
    source = tmp_path / "source"
    source.write_bytes(b"shard")
    before = os.umask(umask)
    try:
        for _ in range(2):
            storage.write_json(str(tmp_path / "new" / "status.json"), {})
            storage.upload(str(source), str(tmp_path / "new" / "shard.tar"))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    assert modes == {"status.json": 0o666 & ~umask, "shard.tar": 0o666 & ~umask}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~umask


def test_local_writes_are_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "file"
    storage.write_bytes(str(where), b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_bytes(str(where), b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert where.read_bytes() == b"old"


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_goes_with_everything_in_it(remote: bool, tmp_path: Path, bucket: str) -> None:
    root = bucket if remote else str(tmp_path)
    for name in ("run/step_1/a", "run/step_1/deep/b", "run/step_10/c"):
        storage.write_bytes(storage.join(root, name), b"x")
    storage.remove_folder(storage.join(root, "run/step_1"))
    storage.remove_folder(storage.join(root, "run/step_1"))
    assert storage.list_names(storage.join(root, "run")) == ["step_10"]


def test_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage.resolve("a/../b/") == str(tmp_path / "b")
    assert storage.resolve("~/x") == "/home/somebody/x"
    assert storage.resolve("file:///y/z") == "/y/z"
    assert storage.resolve("s3://bucket/key/") == "s3://bucket/key"
    assert storage.join("s3://bucket/key/", "a", "b") == "s3://bucket/key/a/b"
    assert [storage.is_remote(uri) for uri in ("s3://b/k", "/a", "file:///a", "a")] == [True, False, False, False]
    for uri in ("gs://b/k", "http://host/x", "S4://b"):
        with pytest.raises(UserError, match="is not supported; use a local path or s3://bucket/key"):
            storage.resolve(uri)


# ------------------------------------------------------------------------------------------------- that misbehaves

DATA = bytes(range(256)) * 400


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the pauses."""
    monkeypatch.setattr(s3, "FIRST_PAUSE_S", 0.001)


def _read(root: str) -> None:
    assert storage.read_bytes(f"{root}/data") == DATA


def _stream(root: str) -> None:
    with storage.open_read(f"{root}/data") as file:
        assert file.read(1000) == DATA[:1000]
        file.seek(90_000)
        assert file.read() == DATA[90_000:]


def _download(root: str) -> None:
    storage.download(f"{root}/data", "copy")
    assert Path("copy").read_bytes() == DATA


def _upload(root: str) -> None:
    Path("local").write_bytes(DATA[::-1])
    storage.upload("local", f"{root}/new")
    assert storage.read_bytes(f"{root}/new") == DATA[::-1]


def _write(root: str) -> None:
    storage.write_json(f"{root}/new", {"a": 1})
    assert storage.read_json(f"{root}/new") == {"a": 1}


def _remove(root: str) -> None:
    storage.remove(f"{root}/data")
    assert not storage.exists(f"{root}/data")


def _remove_folder(root: str) -> None:
    storage.remove_folder(root)
    assert not storage.exists(f"{root}/data")


def _look(root: str) -> None:
    assert storage.exists(f"{root}/data")
    assert not storage.exists(f"{root}/none")
    assert storage.wrong_sizes(root, {"data": len(DATA), "none": 1}) == {"none": None}


def _as_ray_does(root: str) -> None:
    path, filesystem = storage.ray_storage(root)
    filesystem.create_dir(f"{path}/step")
    with filesystem.open_output_stream(f"{path}/step/file") as file:
        file.write(b"from arrow")
    with filesystem.open_input_stream(f"{path}/step/file") as file:
        assert file.read() == b"from arrow"


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_outlasts_a_fault(
    kind: str,
    bucket: str,
    proxy: FaultProxy,
    impatient: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for operation, methods in (
        (_read, "HEAD GET"),
        (_stream, "HEAD GET"),
        (_download, "HEAD GET"),
        (_upload, "PUT"),
        (_write, "PUT"),
        (_remove, "DELETE"),
        (_remove_folder, "GET DELETE"),
        (_look, "HEAD GET"),
        (_as_ray_does, "PUT HEAD GET"),
    ):
        root = f"{bucket}/{operation.__name__}"
        storage.wrong_sizes(root, {})  # what a stale list will answer
        storage.write_bytes(f"{root}/data", DATA)
        before = proxy.injected[kind]
        for method in methods.split():
            stale = kind == "stale_list"  # the first of a kind passes
            if stale and operation is _remove_folder:
                continue  # it may leave something behind
            listed = stale or (operation is _remove_folder and method == "GET")
            proxy.force(kind, 2 if stale else 1, only=f"{method} /data{'?' if listed else ''}")
        operation(root)
        proxy.relent()
        happened = proxy.injected[kind] - before
        if kind == "truncate":
            assert happened == 1 or operation not in (_read, _stream, _download), operation.__name__
        elif kind == "stale_list":
            assert happened == 1 or operation is not _look
        else:
            assert happened == len(methods.split()), operation.__name__


def test_a_fifth_of_all_requests_fails(
    bucket: str, proxy: FaultProxy, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    proxy.kinds, proxy.rate = tuple(KINDS), 0.2
    for number in range(4):
        root = f"{bucket}/{number}"
        storage.write_bytes(f"{root}/data", DATA)
        for operation in (_read, _stream, _download, _upload, _write, _as_ray_does, _look, _remove):
            operation(root)
    assert sum(proxy.injected.values()) > proxy.requests / 20
    assert len(proxy.injected) >= 4


def test_uploads_in_parts(
    bucket: str, proxy: FaultProxy, impatient: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are sent again; an answer lost after the last step fails nothing; a failed upload leaves nothing."""
    local, size = tmp_path / "local", 6 << 20
    local.write_bytes(os.urandom(2 * size + 5))
    fs, path = storage.filesystem(f"{bucket}/big")
    proxy.force("error503", only="PUT /data/big?partNumber=2")
    once, completed = S3._once, []

    async def lost(self: S3, method: str, *arguments: object, **options: object) -> object:
        if method == "complete_multipart_upload":
            if completed:
                raise FileNotFoundError from ClientError({"Error": {"Code": "NoSuchUpload"}}, method)
            completed.append(await once(self, method, *arguments, **options))
            raise ConnectionError("reset")
        return await once(self, method, *arguments, **options)

    monkeypatch.setattr(S3, "_once", lost)
    fs.put_file(str(local), path, chunksize=size)
    monkeypatch.setattr(S3, "_once", once)
    assert proxy.injected == {"error503": 1}
    assert completed
    assert storage.read_bytes(f"{bucket}/big") == local.read_bytes()

    monkeypatch.setenv(s3.DEADLINE, "0")
    for forced in ("PUT /data/other?partNumber=3", "DELETE /data/other?uploadId"):
        proxy.force("error500", only=forced)
    with pytest.raises(StorageError, match="s3://data/other: upload part failed"):
        fs.put_file(str(local), "data/other", chunksize=size)
    assert not storage.exists(f"{bucket}/other")


def test_the_end_of_patience_is_one_line(
    bucket: str, proxy: FaultProxy, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{bucket}/run/x", b"1")
    clock = SimpleNamespace(monotonic=lambda: 0.3 * proxy.injected.get("slow_down", 0))  # however often it is asked
    monkeypatch.setattr(s3, "time", clock)
    monkeypatch.setenv(s3.DEADLINE, "1")
    proxy.force("slow_down", 99, only="GET /data/run/x")
    with pytest.raises(StorageError) as caught:
        storage.read_bytes(f"{bucket}/run/x")
    message = str(caught.value)
    assert message.startswith("s3://data/run/x: get object failed for 1 s, 4 times; the last time: An error occurred ")
    assert message.endswith("GLSCL_STORAGE_DEADLINE_S (1) says for how long one request is tried")
    assert "\n" not in message
    assert proxy.injected == {"slow_down": 4}
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args  # it comes from a worker
    monkeypatch.setenv(s3.DEADLINE, "soon")
    with pytest.raises(UserError, match="GLSCL_STORAGE_DEADLINE_S=soon: not a number of seconds"):
        storage.read_bytes(f"{bucket}/run/x")


def test_what_is_down_is_waited_for(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{bucket}/x", DATA)
    proxy.stop()
    monkeypatch.setattr(s3._jitter, "uniform", lambda low, high: proxy.start() and 0.0)  # it comes back in the pause
    assert storage.read_bytes(f"{bucket}/x") == DATA


def test_a_download_that_fails_leaves_no_file(
    bucket: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{bucket}/x", DATA)
    monkeypatch.setenv(s3.DEADLINE, "0")
    proxy.force("truncate", only="GET /data/x")
    with pytest.raises(StorageError, match="s3://data/x: get object failed"):
        storage.download(f"{bucket}/x", str(tmp_path / "copy"))
    assert os.listdir(tmp_path) == []


def test_what_will_not_pass_is_said_at_once(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match=r"s3://nowhere/x: put object: .*bucket does not exist; check AWS_PROFILE"):
        storage.write_bytes("s3://nowhere/x", b"")
    assert proxy.requests == 1

    async def refuse(*_: object, **__: object) -> None:
        raise ClientError({"Error": {"Code": "SignatureDoesNotMatch"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "")

    monkeypatch.setattr(S3, "_once", refuse)
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        storage.read_bytes(f"{bucket}/x")


def test_files_that_are_not_deleted_are_not_passed_over(bucket: str, proxy: FaultProxy) -> None:
    storage.write_bytes(f"{bucket}/run/x", b"")
    proxy.denied = frozenset({"DELETE"})
    with pytest.raises(StorageError, match=r"s3://data/run/x: delete object: .*AccessDenied"):
        storage.remove_folder(f"{bucket}/run")
    with pytest.raises(StorageError, match=r"s3://data/run/x: delete object: .*AccessDenied"):
        storage.remove(f"{bucket}/run/x")


def test_tidying_up_ends_nothing(
    bucket: str, proxy: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{bucket}/run/x", b"")
    proxy.denied = frozenset({"DELETE"})
    assert not storage.tidy(f"{bucket}/run")
    assert not storage.tidy(f"{bucket}/run/x", storage.remove)
    for line, name in zip(capsys.readouterr().out.splitlines(), ("run", "run/x"), strict=True):
        assert line.startswith(f"s3://data/{name} stays behind, because it cannot be removed (s3://data/run/x: delete ")
        assert "AccessDenied" in line
    storage.check_writable(f"{bucket}/run", "--storage")
    assert "/run/.glscl-" in capsys.readouterr().out
    proxy.denied = frozenset()
    assert storage.tidy(f"{bucket}/run")
    assert storage.tidy(f"{bucket}/run"), "what is not there is gone"
    assert capsys.readouterr().out == ""

    def fail(_: str) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(storage.shutil, "rmtree", fail)
    storage.write_bytes(str(tmp_path / "run" / "x"), b"")
    assert not storage.tidy(str(tmp_path / "run"))
    assert capsys.readouterr().out.endswith("(PermissionError: not yours)\n")


def test_ray_s_filesystem_is_the_same_in_every_process(bucket: str) -> None:
    _, filesystem = storage.ray_storage(bucket)
    assert isinstance(filesystem.handler.fs, S3)
    again = pickle.loads(pickle.dumps(filesystem))
    assert again == filesystem
    assert isinstance(again.handler.fs, S3)


def test_a_command_whose_endpoint_cannot_be_reached_ends_soon(
    bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(s3, "FIRST_CONTACT_S", 0.2)
    proxy.stop()
    assert main(["shards", "info", f"{bucket}/shards"]) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("glscl: FAILED s3://data/shards/manifest.json: head object failed for ")
    assert last.endswith(f'"{proxy.url}/data/shards/manifest.json"; check AWS_ENDPOINT_URL and the network')
    proxy.start()
    assert main(["shards", "info", f"{bucket}/shards"]) == 2
    assert not environment.first_answer_due.is_set(), "after an answer the deadline is that of running work"
