"""Local paths and s3:// through one set of functions."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pyarrow.fs
import pytest

from glscl import storage
from glscl.errors import UserError


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


def test_local_writes_are_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = tmp_path / "file"
    storage.write_bytes(str(where), b"old")
    assert where.stat().st_mode & 0o777 == 0o644

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
