"""Annotation files from strangers: read, or refused in words that name the file; never another exception."""

from __future__ import annotations

import contextlib
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.data import benchmarks
from glscl.data.benchmarks import msvd, read
from glscl.errors import UserError
from stress.fuzz_inputs import make_annotations, mutate

FOLDERS = make_annotations()
JSON_READERS = ("msrvtt", "activitynet", "didemo", "vatex")


def folder(root: Path, name: str, changed: bytes | str | None = None) -> str:
    """A small sound folder of a reader, with other contents of its main file."""
    _, main, files = FOLDERS[name]
    root = root / name
    root.mkdir(exist_ok=True)
    for file, content in (files | ({} if changed is None else {main: changed})).items():
        (root / file).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return str(root)


def refusal(root: Path, name: str, changed: bytes | str) -> str:
    split, main, _ = FOLDERS[name]
    with pytest.raises(UserError) as caught:
        read(name, folder(root, name, changed), split)
    message = str(caught.value)
    assert f"{name}/{main}" in message
    assert message.isprintable()
    return message


def test_the_folders_are_sound_and_all_readers_are_there(tmp_path: Path) -> None:
    assert sorted(FOLDERS) == benchmarks.benchmark_names()
    for name, (split, *_) in FOLDERS.items():
        assert len(read(name, folder(tmp_path, name), split).records) == 6


@pytest.mark.parametrize("name", sorted(FOLDERS))
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_mutants_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str, seed: int) -> None:
    split, main, files = FOLDERS[name]
    content = files[main]
    data = content if isinstance(content, bytes) else content.encode()
    root = tmp_path_factory.getbasetemp() / "mutants"
    root.mkdir(exist_ok=True)
    with contextlib.suppress(UserError):  # every other exception fails the test
        assert read(name, folder(root, name, mutate(data, data, random.Random(seed))), split).records


@pytest.mark.parametrize("name", JSON_READERS)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 5000, "4300 digits"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ("NaN", "NaN is not a number"),
        ("[1e999]", "1e999 is not a number"),
        ("", "not valid JSON"),
        ("null", "expected"),
    ],
)
def test_json_that_nobody_means(tmp_path: Path, name: str, text: str, says: str) -> None:
    assert says in refusal(tmp_path, name, text)


def test_a_video_that_is_described_twice_is_not_lost(tmp_path: Path) -> None:
    entry = '{"duration": 9, "timestamps": [], "sentences": ["One."]}'
    message = refusal(tmp_path, "activitynet", f'{{"v_1": {entry}, "v_1": {entry}}}')
    assert "key 'v_1' is given twice" in message


@pytest.mark.parametrize("video_id", ["a\x1b[2Jb", "a\x00b", "a\u202eb", "x" * 5000, "a\u2028b", "\x9b31m"])
def test_ids_that_a_terminal_would_obey(tmp_path: Path, video_id: str) -> None:
    import json

    row = json.dumps({"video_id": video_id, "caption": "x"})
    assert ("cannot be printed" if len(video_id) < 99 else "5,000 characters") in refusal(tmp_path, "jsonl", row)
    assert "cannot be printed" in refusal(tmp_path, "lsmdc", "a\x1b[31m\t1\t1\t1\t1\ttext\n")


def test_ids_in_any_script_are_fine(tmp_path: Path) -> None:
    ids = ["日本\u3000動画", "naïve café", "👩\u200d🚀", "a b/c.mp4", "\u05d0\u05d1"]
    rows = "".join(f'{{"video_id": "{video_id}", "caption": "x"}}\n' for video_id in ids)
    assert [record.video_id for record in read("jsonl", folder(tmp_path, "jsonl", rows), "t").records] == ids


def test_enormous_captions(tmp_path: Path) -> None:
    message = refusal(tmp_path, "jsonl", f'{{"video_id": "a", "caption": "{"x" * 1_000_001}"}}')
    assert "a caption of 1,000,001 characters" in message


def test_a_pickle_in_which_one_list_stands_everywhere(tmp_path: Path) -> None:
    """A few kilobytes that stand for gigabytes of words."""
    words = ["word"] * (msvd.MAX_TOKENS + 1)
    data = pickle.dumps({"clip0_1_2": [words] * 10_000})
    assert len(data) < 100_000
    assert "a caption of 1,001 words" in refusal(tmp_path, "msvd", data)


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glscl.data.benchmarks.base.MAX_BYTES", 10)
    assert "bytes are no annotation file" in refusal(tmp_path, "jsonl", '{"video_id": "a", "caption": "x"}')


def test_mutants_of_official_files(shared: Path, tmp_path: Path) -> None:
    """The published annotations with bits flipped, cut, spliced."""
    source = shared / "annotations" / "DiDeMo"
    files = {path.name: path.read_bytes() for path in sorted(source.iterdir()) if path.name.startswith("val")}
    data = files["val_data.json"][:200_000].rpartition(b"},")[0] + b"}]"
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for seed in range(40):
        (tmp_path / "val_data.json").write_bytes(mutate(data, data, random.Random(seed)))
        with contextlib.suppress(UserError):
            assert read("didemo", str(tmp_path), "val").records
