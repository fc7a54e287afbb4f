"""A name is a name: nothing in it is a pattern, a version or an escape, on any storage."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pyarrow.fs
import pytest

from glscl.system import storage

NAMES = (
    "runs [v2]",
    "run*",
    "run?",
    "r[u-z]n",
    "{a,b}",
    "**",
    "x?versionId=x",
    "x#y",
    "100%",
    "a%20b",
    "a+b",
    "a&b=c;d",
    "a:b",
    "~",
    "$HOME",
    "'\"`",
    "re\u0301sume\u0301",  # decomposed, as macOS writes it
    "r\u00e9sum\u00e9",
    "\u65e5\u672c \U0001f3ac",
    " leading and trailing ",
    "-",
    "...",
)
OTHERS = ("run", "runs", "runs v", "runs 2", "runABC", "run2", "run1", "rvn", "a", "b", "ab", "a b", "x", "100", "deep")


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder and an empty prefix."""
    return str(tmp_path / "root") if request.param == "local" else f"{request.getfixturevalue('bucket')}/root"


def _everything(root: str) -> set[str]:
    """Paths under the root, as the disk or another client of the store has them."""
    if storage.is_remote(root):
        pages = boto3.client("s3").list_objects_v2(Bucket="data", Prefix="root/")
        return {entry["Key"].removeprefix("root/") for entry in pages.get("Contents", [])}
    return {os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names}


def test_every_operation_takes_names_as_they_are(root: str, tmp_path: Path) -> None:
    for other in OTHERS:
        storage.write_bytes(storage.join(root, other, "step_1", "theirs"), b"")
    theirs = _everything(root)
    for name in NAMES:
        folder = storage.join(root, name, "step_1")
        storage.write_bytes(storage.join(folder, name), b"mine")
        storage.write_bytes(storage.join(folder, "deep", "file"), b"mine too")
        assert _everything(root) == theirs | {f"{name}/step_1/{name}", f"{name}/step_1/deep/file"}
        assert storage.exists(folder)
        assert storage.exists(storage.join(folder, name))
        assert storage.list_names(storage.join(root, name)) == ["step_1"]
        assert storage.list_names(folder) == sorted([name, "deep"])
        assert storage.list_names(storage.join(folder, name)) == []
        assert storage.wrong_sizes(folder, {name: 4, "deep/file": 8, "x": 1}) == {"x": None}
        assert storage.size(storage.join(folder, name)) == 4
        assert storage.read_bytes(storage.join(folder, name)) == b"mine"
        with storage.open_read(storage.join(folder, name)) as file:
            assert file.read() == b"mine"
        storage.download(storage.join(folder, name), str(tmp_path / "copy"))
        storage.upload(str(tmp_path / "copy"), storage.join(folder, "new", name))
        storage.remove(storage.join(folder, "deep", "file"))
        assert _everything(root) == theirs | {f"{name}/step_1/{name}", f"{name}/step_1/new/{name}"}
        storage.remove_folder(folder)
        assert _everything(root) == theirs, name


def test_ray_s_filesystem_takes_names_as_they_are(root: str) -> None:
    for other in OTHERS:
        storage.write_bytes(storage.join(root, other, "theirs"), b"")
    theirs = _everything(root)
    for name in NAMES[:8]:
        path, filesystem = storage.ray_storage(storage.join(root, name))
        filesystem = filesystem or pyarrow.fs.LocalFileSystem()
        filesystem.create_dir(f"{path}/step_1", recursive=True)
        for file in ("one", "deep/two"):
            filesystem.create_dir(os.path.dirname(f"{path}/step_1/{file}"), recursive=True)
            with filesystem.open_output_stream(f"{path}/step_1/{file}") as stream:
                stream.write(b"from arrow")
        with filesystem.open_input_stream(f"{path}/step_1/one") as stream:
            assert stream.read() == b"from arrow"
        below = pyarrow.fs.FileSelector(path, recursive=True)
        assert {entry.path for entry in filesystem.get_file_info(below) if entry.is_file} == {
            f"{path}/step_1/one",
            f"{path}/step_1/deep/two",
        }
        assert _everything(root) == theirs | {f"{name}/step_1/one", f"{name}/step_1/deep/two"}
        filesystem.delete_file(f"{path}/step_1/one")
        assert _everything(root) == theirs | {f"{name}/step_1/deep/two"}
        filesystem.delete_dir(f"{path}/step_1")
        assert _everything(root) == theirs, name


def test_keys_that_only_an_object_store_has(bucket: str) -> None:
    """Empty names, folders that are objects, and an object of a folder's name."""
    client = boto3.client("s3")
    keys = ["/lead/x", "lead/x", "a//b/x", "a/b/x", "console/", "console/x", "twin", "twin/x", "twin1/x"]
    for key in keys:
        client.put_object(Bucket="data", Key=key, Body=b"")

    def left() -> list[str]:
        return [entry["Key"] for entry in client.list_objects_v2(Bucket="data")["Contents"]]

    assert storage.list_names("s3://data//lead") == ["x"]
    assert storage.list_names(f"{bucket}/console") == ["x"]
    storage.remove_folder("s3://data//lead")
    storage.remove_folder(f"{bucket}/a//b")
    storage.remove_folder(f"{bucket}/console")
    storage.remove_folder(f"{bucket}/twin")
    assert left() == ["a/b/x", "lead/x", "twin", "twin1/x"]
    storage.remove(f"{bucket}/twin")
    with pytest.raises(ValueError, match="s3://data: a whole bucket is not deleted"):
        storage.remove_folder(bucket)
    assert left() == ["a/b/x", "lead/x", "twin1/x"]


def test_more_than_a_listing_holds_is_deleted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "4")
    client = boto3.client("s3")
    for number in range(40):
        client.put_object(Bucket="data", Key=f"run/step_1/{number}", Body=b"")
    client.put_object(Bucket="data", Key="run/step_10/x", Body=b"")
    storage.remove_folder(f"{bucket}/run/step_1")
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket="data")["Contents"]] == ["run/step_10/x"]
