"""Readers against the official annotation files, and against files of the official form with every kind of damage."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.data import benchmarks
from glscl.data.benchmarks import ReadResult, read
from glscl.data.benchmarks.base import register
from glscl.errors import UserError, printable

FOLDERS = {"msrvtt": "MSRVTT", "msvd": "MSVD", "didemo": "DiDeMo", "activitynet": "ActivityNet"}


def official(shared: Path, name: str, split: str) -> ReadResult:
    return read(name, str(shared / "annotations" / FOLDERS[name]), split)


def pairs(result: ReadResult) -> int:
    return sum(len(record.captions) for record in result.records)


def write(folder: Path, name: str, content: Any) -> str:
    """Write bytes, text or JSON; return the folder."""
    folder.mkdir(exist_ok=True, parents=True)
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def refusal(name: str, folder: object, split: str) -> str:
    with pytest.raises(UserError) as caught:
        read(name, str(folder), split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- official files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split", "videos", "captions"),
    [
        ("msrvtt", "train_9k", 9_000, 180_000),
        ("msrvtt", "train_7k", 7_010, 140_200),
        ("msrvtt", "train_full", 6_513, 130_260),
        ("msrvtt", "val_full", 497, 9_940),
        ("msrvtt", "test_full", 2_990, 59_800),
        ("msrvtt", "test_1k_a", 1_000, 1_000),
        ("msvd", "train", 1_200, 48_774),
        ("msvd", "val", 100, 4_290),
        ("msvd", "test", 670, 27_763),
        ("didemo", "val", 1_065, 1_065),
        ("didemo", "test", 1_004, 1_004),
        ("activitynet", "train", 10_009, 10_009),
        ("activitynet", "val_1", 4_917, 4_917),
    ],
)
def test_official_counts(shared: Path, name: str, split: str, videos: int, captions: int) -> None:
    result = official(shared, name, split)
    assert (len(result.records), pairs(result)) == (videos, captions)
    assert len({record.video_id for record in result.records}) == videos
    assert all(text and text == text.strip() for record in result.records for text in record.captions)
    assert result.sources
    assert all(Path(source).is_file() for source in result.sources)


def test_msrvtt_1k_a_keeps_the_protocols_repeated_sentences_and_order(shared: Path) -> None:
    records = official(shared, "msrvtt", "test_1k_a").records
    assert len({record.captions for record in records}) == 995
    assert (records[0].video_id, records[0].captions) == ("video9770", ("a person is connecting something to system",))
    train = {record.video_id for record in official(shared, "msrvtt", "train_9k").records}
    assert not train & {record.video_id for record in records}


def test_msrvtt_times_are_not_a_part_of_the_published_file(shared: Path) -> None:
    record = official(shared, "msrvtt", "train_full").records[0]
    assert (record.video_id, record.start, record.end, record.duration) == ("video0", None, None, 11.72)


def test_msvd_keeps_repeated_captions(shared: Path) -> None:
    result = official(shared, "msvd", "test")
    assert sum(len(set(record.captions)) for record in result.records) == 24_033


def test_didemo_takes_the_list_as_the_protocols_set_and_says_so(shared: Path) -> None:
    for split, extra in (("test", 33), ("val", 29)):
        result = official(shared, "didemo", split)
        listed = (shared / "annotations/DiDeMo" / f"{split}_list.txt").read_text().split()
        assert [record.video_id for record in result.records] == listed
        (note,) = result.notes
        assert note.startswith(f"{extra} annotated videos are not in {split}_list.txt")
    assert sum(record.video_id.endswith(".") for record in official(shared, "didemo", "test").records) == 27


def test_didemo_paragraph_is_the_descriptions_in_file_order(shared: Path) -> None:
    rows = json.loads((shared / "annotations/DiDeMo/test_data.json").read_text())
    joined = 0
    for record in official(shared, "didemo", "test").records[:20]:
        texts = [row["description"].strip() for row in rows if row["video"] == record.video_id]
        assert record.captions == (" ".join(texts),)
        assert (record.start, record.end) == (None, 30.0)
        joined += len(texts) > 1
    assert joined > 10


def test_activitynet_reports_ids_without_annotation(shared: Path) -> None:
    for split, bare in (("train", 15), ("val_1", 9)):
        (note,) = official(shared, "activitynet", split).notes
        assert note.startswith(f"{bare} ids of ")
        assert "no annotation" in note
        assert note.count(", v_") + 1 == bare
    records = {record.video_id: record for record in official(shared, "activitynet", "val_1").records}
    assert max(len(record.captions[0].split()) for record in records.values()) == 332
    assert records["v_uqiMw7tQ1Cc"].captions[0] == (
        "A weight lifting tutorial is given. "
        "The coach helps the guy in red with the proper body placement and lifting technique."
    )
    assert records["v_uqiMw7tQ1Cc"].duration == 55.15


@pytest.mark.parametrize(
    ("name", "split", "videos"),
    [
        ("msrvtt", "train_9k", 60),
        ("msrvtt", "test_1k_a", 30),
        ("activitynet", "train", 45),
        ("activitynet", "val_1", 25),
    ],
)
def test_real_clips(shared: Path, name: str, split: str, videos: int) -> None:
    result = read(name, str(shared / "clips" / name), split)
    assert len(result.records) == videos
    assert result.notes == []


def test_reading_twice_gives_the_same(shared: Path) -> None:
    assert official(shared, "activitynet", "val_1") == official(shared, "activitynet", "val_1")


# ---- files of the official form -------------------------------------------------------------------------------------


def test_msvd_pickle_of_tokens(tmp_path: Path) -> None:
    captions = {"a_1_2": [["a", "cat"], ["a", "cat"]], "b_0_9": [["ein", "Käfer"]], "c_0_1": [["x"]]}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        folder = write(tmp_path / str(protocol), "raw-captions.pkl", pickle.dumps(captions, protocol))
        write(Path(folder), "test_list.txt", "b_0_9\na_1_2\n\nmissing_1_2\n")
        result = read("msvd", folder, "test")
        assert [(r.video_id, r.captions) for r in result.records] == [
            ("b_0_9", ("ein Käfer",)),
            ("a_1_2", ("a cat",) * 2),
        ]
        assert result.notes == ["1 ids of test_list.txt have no annotation and are left out: missing_1_2"]


def test_msvd_pickle_of_python_2_bytes(tmp_path: Path) -> None:
    pickled = b"(dp0\nS'a_1_2'\np1\n(lp2\n(lp3\nS'a'\np4\naS'cat'\np5\naas."
    pickletools.dis(pickled, out=io.StringIO())
    write(tmp_path, "test_list.txt", "a_1_2\n")
    assert read("msvd", write(tmp_path, "raw-captions.pkl", pickled), "test").records[0].captions == ("a cat",)


class _Bomb:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def test_msvd_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    write(tmp_path, "test_list.txt", "a\n")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        write(tmp_path, "raw-captions.pkl", pickle.dumps({"a": _Bomb(str(marker))}, protocol))
        message = refusal("msvd", tmp_path, "test")
        assert "raw-captions.pkl: refused" in message
        assert "mkdir" in message
        assert not marker.exists()
    pickle.loads(pickle.dumps(_Bomb(str(marker))))
    assert marker.exists()  # so that the assertion above can fail


@pytest.mark.parametrize("damaged", [b"", b"no pickle", pickle.dumps({"a": [["b"]]})[:-6], b"\x80\x04]."])
def test_msvd_damaged_pickle(tmp_path: Path, damaged: bytes) -> None:
    write(tmp_path, "test_list.txt", "a\n")
    assert "raw-captions.pkl" in refusal("msvd", write(tmp_path, "raw-captions.pkl", damaged), "test")


def test_msvd_without_captions_names_both_files(tmp_path: Path) -> None:
    message = refusal("msvd", write(tmp_path, "test_list.txt", "a\n"), "test")
    assert "captions_msvd.json or raw-captions.pkl" in message


def test_lsmdc(tmp_path: Path) -> None:
    clip = "0001_American_Beauty_00.00.51.926-00.00.54.129"
    lines = [
        f'{clip}\t00.00.51.926\t00.00.54.129\t00.00.51.926\t00.00.54.129\t"Later, she  waits. ',
        "b\t0\t1\t0\t1\tIt ends\u2028here.\r",
        f"{clip}\t0\t1\t0\t1\tSOMEONE laughs.",
        "",
    ]
    for split, name in {
        "train": "LSMDC16_annos_training.csv",
        "val": "LSMDC16_annos_val.csv",
        "test": "LSMDC16_challenge_1000_publictect.csv",
    }.items():
        folder = write(tmp_path, name, "\n".join(lines))
        result = read("lsmdc", folder, split)
        assert [(r.video_id, r.captions) for r in result.records] == [
            (clip, ('"Later, she  waits.', "SOMEONE laughs.")),
            ("b", ("It ends\u2028here.",)),
        ]
        assert result.sources == [f"{folder}/{name}"]


def test_lsmdc_test_of_the_official_size(tmp_path: Path) -> None:
    lines = [f"clip{i}\t0\t1\t0\t1\tsentence {i % 990}\n" for i in range(1_000)]
    result = read("lsmdc", write(tmp_path, "LSMDC16_challenge_1000_publictect.csv", "".join(lines)), "test")
    assert (len(result.records), pairs(result)) == (1_000, 1_000)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a\t0\t1\t0\t1", "5 tab-separated columns, expected 6"),
        ("a\t0\t1\t0\t1\tb\tc", "7 tab-separated columns"),
        ("a\t0\t1\t0\t1\t ", "empty caption"),
        (" \t0\t1\t0\t1\tb", "empty clip id"),
    ],
)
def test_lsmdc_malformed(tmp_path: Path, line: str, said: str) -> None:
    message = refusal("lsmdc", write(tmp_path, "LSMDC16_annos_val.csv", f"a\t0\t1\t0\t1\tfine\n{line}\n"), "val")
    assert "LSMDC16_annos_val.csv, line 2" in message
    assert said in message


def vatex_folder(tmp_path: Path, shared: Path) -> Path:
    """The official lists of ids with caption files of the official form."""
    source = shared / "annotations" / "VATEX"
    held_out: list[str] = []
    for name in ("train_list.txt", "val_list.txt", "test_list.txt", "test1k5_sec_list.txt"):
        write(tmp_path, name, (source / name).read_text())
        if name != "train_list.txt":
            held_out += (source / name).read_text().split()

    def rows(ids: list[str]) -> list[dict[str, Any]]:
        return [
            {"videoID": i, "enCap": [f" {i} caption {n}." for n in range(10)], "chCap": ["中文"] * 10}
            for i in sorted(set(ids))
        ]

    write(tmp_path, "vatex_training_v1.0.json", rows((source / "train_list.txt").read_text().split()))
    write(tmp_path, "vatex_validation_v1.0.json", rows(held_out))
    return tmp_path


def test_vatex_counts(tmp_path: Path, shared: Path) -> None:
    folder = vatex_folder(tmp_path, shared)
    counts = {"train": 25_991, "val": 1_500, "test": 1_500, "test1k5": 1_500}
    ids = {}
    for split, videos in counts.items():
        result = read("vatex", str(folder), split)
        assert (len(result.records), pairs(result), result.notes) == (videos, videos * 10, [])
        ids[split] = {record.video_id for record in result.records}
    assert not ids["val"] & ids["test"]
    assert len(ids["test1k5"] & ids["test"]) == 724
    record = read("vatex", str(folder), "val").records[0]
    assert record.video_id == "3c0hLqxvSSI_000000_000010"
    assert record.captions[1] == "3c0hLqxvSSI_000000_000010 caption 1."


def test_vatex_public_test_fills_what_validation_lacks(tmp_path: Path) -> None:
    write(tmp_path, "test_list.txt", "b\na\nc\n")
    write(tmp_path, "vatex_validation_v1.0.json", [{"videoID": "a", "enCap": ["of validation"]}])
    assert "2 ids of test_list.txt" in read("vatex", str(tmp_path), "test").notes[0]
    public = [{"videoID": "b", "enCap": ["of public"]}, {"videoID": "a", "enCap": ["of public"]}]
    result = read("vatex", write(tmp_path, "vatex_public_test_english_v1.1.json", public), "test")
    assert [r.captions for r in result.records] == [("of public",), ("of validation",)]
    assert result.notes == ["1 ids of test_list.txt have no annotation and are left out: c"]


def test_didemo_train_without_a_list(tmp_path: Path) -> None:
    rows = [{"video": "a.", "description": " one. "}, {"video": "b.mov", "description": "x"}]
    rows += [{"video": "a.", "description": "two."}]
    result = read("didemo", write(tmp_path, "train_data.json", rows), "train")
    assert [(r.video_id, r.captions) for r in result.records] == [("a.", ("one. two.",)), ("b.mov", ("x",))]
    assert result.notes == ["no train_list.txt: every annotated video is taken"]


def test_activitynet_val_2_and_no_id_list(tmp_path: Path) -> None:
    entry = {"duration": 3, "timestamps": [[0, 3]], "sentences": [" a.", "\nb. ", " "]}
    result = read("activitynet", write(tmp_path, "val_2.json", {"v_x": entry}), "val_2")
    assert [(r.video_id, r.captions, r.duration) for r in result.records] == [("v_x", ("a. b.",), 3.0)]
    assert "no val_ids.json" in result.notes[0]


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_names_and_splits() -> None:
    expected = ["activitynet", "csv", "didemo", "jsonl", "lsmdc", "msrvtt", "msvd", "vatex"]
    assert benchmarks.benchmark_names() == expected
    with pytest.raises(UserError, match=r"unknown benchmark 'msrvt', did you mean 'msrvtt'.*known: activitynet, csv"):
        benchmarks.find_benchmark("msrvt")
    with pytest.raises(ValueError, match="two readers are called 'msvd'"):
        register("msvd", version=1)(benchmarks.find_benchmark("msvd").read)


def test_unknown_split_lists_the_splits(tmp_path: Path) -> None:
    message = refusal("msrvtt", tmp_path, "train9k")
    assert "did you mean 'train_9k'" in message
    assert "train_9k, train_7k, train_full, val_full, test_full, test_1k_a" in message


def test_missing_folder_and_file(tmp_path: Path) -> None:
    message = refusal("msrvtt", tmp_path / "nowhere", "train_9k")
    assert f"{tmp_path}/nowhere: no such file or folder" in message
    assert "--annotations" in message
    for name, split, file in [
        ("msrvtt", "train_9k", "MSRVTT_data.json"),
        ("msrvtt", "test_1k_a", "MSRVTT_JSFUSION_test.csv"),
        ("didemo", "train", "train_data.json"),
        ("activitynet", "val_2", "val_2.json"),
        ("lsmdc", "val", "LSMDC16_annos_val.csv"),
        ("vatex", "test1k5", "test1k5_sec_list.txt"),
        ("jsonl", "mine", "mine.jsonl"),
    ]:
        message = refusal(name, tmp_path, split)
        assert f"{tmp_path}/{file}: no such file" in message
        assert "--annotations" in message
    write(tmp_path, "file", "")
    assert "file/MSRVTT_data.json: no such file" in refusal("msrvtt", tmp_path / "file", "train_9k")


MSRVTT = {
    "videos": [{"video_id": "video0", "split": "train", "start time": 0.0, "end time": 1.0}],
    "sentences": [{"video_id": "video0", "caption": "a"}],
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"videos": None}, "'videos': expected a list"),
        ({"sentences": [{"caption": "a"}]}, "sentences[0]: 'video_id' is missing"),
        ({"sentences": [{"video_id": "video0", "caption": " "}]}, "sentences[0]: empty caption"),
        ({"sentences": [{"video_id": "video0"}]}, "sentences[0]: expected a text, found NoneType"),
        ({"sentences": [7]}, "sentences[0]: expected an object {...}, found int"),
        ({"sentences": [{"video_id": "x", "caption": "a"}]}, "videos[0]: 'video0' has no sentence"),
        ({"videos": [{**MSRVTT["videos"][0], "end time": "1"}]}, "videos[0], 'end time': expected seconds"),
    ],
)
def test_malformed_json_names_file_and_key(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = write(tmp_path, "MSRVTT_data.json", {**MSRVTT, **change})
    message = refusal("msrvtt", folder, "train_full")
    assert "MSRVTT_data.json" in message
    assert said in message


def test_not_json_and_not_utf8(tmp_path: Path) -> None:
    write(tmp_path, "MSRVTT_data.json", '{"videos": [}')
    assert "MSRVTT_data.json: not valid JSON (Expecting value: line 1" in refusal("msrvtt", tmp_path, "train_full")
    write(tmp_path, "MSRVTT_data.json", "[" * 200_000)
    assert "MSRVTT_data.json: not valid JSON" in refusal("msrvtt", tmp_path, "train_full")
    write(tmp_path, "MSRVTT_data.json", json.dumps(MSRVTT, indent=1).encode().replace(b'"a"', b'"\xe9"'))
    assert "MSRVTT_data.json, line 13: not UTF-8" in refusal("msrvtt", tmp_path, "train_full")


def test_empty_split(tmp_path: Path) -> None:
    write(tmp_path, "MSRVTT_data.json", MSRVTT)
    assert "msrvtt split 'val_full' is empty" in refusal("msrvtt", tmp_path, "val_full")
    write(tmp_path, "MSRVTT_train.9k.csv", "video_id\nvideo5\n")
    message = refusal("msrvtt", tmp_path, "train_9k")
    assert "MSRVTT_train.9k.csv; 1 ids of MSRVTT_train.9k.csv have no annotation" in message
    write(tmp_path, "MSRVTT_train.9k.csv", "id\nvideo0\n")
    assert "no column 'video_id'; the columns are id" in refusal("msrvtt", tmp_path, "train_9k")
    assert "mine.jsonl" in refusal("jsonl", write(tmp_path, "mine.jsonl", "\n"), "mine")


# ---- anybody's own videos -------------------------------------------------------------------------------------------


def test_jsonl_every_field(tmp_path: Path) -> None:
    rows = [
        {"video_id": "a", "captions": [" one ", "two"], "start": 1, "end": 2.5, "duration": 1.5, "source": "x"},
        {"video": "sub/b.mp4", "caption": "three", "attributes": {"shape": "square"}, "start": None},
        {"video_id": "a", "caption": "two", "start": 1.0, "end": 2.5, "duration": 1.5},
    ]
    folder = write(tmp_path, "mine.jsonl", "\ufeff" + "\r\n\n".join(json.dumps(row) for row in rows))
    result = read("jsonl", folder, "mine")
    first, second = result.records
    assert (first.video_id, first.captions) == ("a", ("one", "two", "two"))
    assert (first.start, first.end, first.duration, first.attributes) == (1.0, 2.5, 1.5, {})
    assert (second.video_id, second.captions, second.attributes) == ("sub/b.mp4", ("three",), {"shape": "square"})
    assert result.notes == ["fields that are not used: 'source'"]
    assert read("jsonl", f"{folder}/mine.jsonl", "anything").records == result.records


def test_csv_every_field(tmp_path: Path) -> None:
    text = (
        "video_id,caption,captions,start,end,attributes\n"
        'a," one, two",,1,2.5,"{""k"": 1}"\n'
        'b,,"[""x"", ""y""]",,,\n'
        '\na,"three\nlines",,1.0,2.5,"{""k"": 1}"\n'
    )
    result = read("csv", write(tmp_path, "train.csv", text), "train")
    assert [(r.video_id, r.captions) for r in result.records] == [
        ("a", ("one, two", "three\nlines")),
        ("b", ("x", "y")),
    ]
    assert (result.records[0].start, result.records[0].end, result.records[0].attributes) == (1.0, 2.5, {"k": 1})
    assert (result.records[1].start, result.records[1].attributes) == (None, {})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"video_id": "a", "caption": ""}', "empty caption"),
        ('{"video_id": "a", "captions": ["x", "  "]}', "empty caption"),
        ('{"video_id": "a", "captions": []}', "'captions' is empty"),
        ('{"video_id": "a", "captions": "x"}', "'captions': expected a list"),
        ('{"video_id": "a", "captoin": "x"}', "unknown field 'captoin', did you mean 'caption'?"),
        ('{"video_id": "a", "caption": "x", "captions": ["x"]}', "give either 'caption' or 'captions'"),
        ('{"video_id": "a", "video": "a", "caption": "x"}', "give either 'video_id' or 'video'"),
        ('{"caption": "x"}', "give either 'video_id' or 'video'"),
        ('{"video_id": 7, "caption": "x"}', "'video_id': expected a text, found int"),
        ('{"video_id": " ", "caption": "x"}', "'video_id' is empty"),
        ('{"video_id": "a", "caption": "x", "start": -1}', "'start': expected seconds"),
        ('{"video_id": "a", "caption": "x", "end": NaN}', "not valid JSON (NaN is not a number)"),
        ('{"video_id": "a", "caption": "x", "end": true}', "'end': expected seconds"),
        ('{"video_id": "a", "caption": "x", "duration": "3"}', "'duration': expected seconds"),
        ('{"video_id": "a", "caption": "x", "start": 2, "end": 2}', "'end' (2) is not after 'start' (2)"),
        ('{"video_id": "a", "caption": "x", "attributes": []}', "'attributes': expected an object"),
        ('{"video_id": "a", "caption": "\\ud800"}', "half of a surrogate pair"),
        ('{"video_id": "ok", "caption": "x", "start": 1}', "'ok' has another 'start' than on line 1"),
        ('{"video_id": "a", "caption": "x"', "not valid JSON"),
        (f'{{"video_id": "a", "caption": "x", "start": {"9" * 5000}}}', "not valid JSON"),
        ('["a"]', "expected an object {...}, found list"),
    ],
)
def test_jsonl_malformed_names_file_and_line(tmp_path: Path, row: str, said: str) -> None:
    folder = write(tmp_path, "mine.jsonl", f'{{"video_id": "ok", "caption": "fine"}}\n\n{row}\n')
    message = refusal("jsonl", folder, "mine")
    assert "mine.jsonl, line 3" in message
    assert said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("video_id,caption\na,x,y\n", "line 2: 3 fields under 2 columns"),
        ("video_id,caption\nb,x\na,\n", "line 3, 'caption': empty caption"),
        ("video_id,caption,start\na,x,soon\n", "line 2, 'start': expected seconds, found 'soon'"),
        ("video_id,caption,start\na,x,inf\n", "line 2, 'start': expected seconds"),
        ("video_id,captions\na,[x]\n", "line 2, 'captions': not valid JSON"),
        ("video_id,caption,caption\na,x,y\n", "line 1: several columns are called 'caption'"),
        ('video_id,caption\na,"x\n', "not valid CSV"),
        (f"video_id,caption\na,{'x' * 200_000}\n", "line 2: not valid CSV (field larger"),
        ("video_id;caption\na;x\n", "line 2: give either 'video_id' or 'video'"),
    ],
)
def test_csv_malformed_names_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    message = refusal("csv", write(tmp_path, "mine.csv", text), "mine")
    assert "mine.csv" in message
    assert said in message


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_rows_that_are_not_utf8(tmp_path: Path, kind: str) -> None:
    lines = {"jsonl": b'{"video_id": "a", "caption": "x"}\n', "csv": b"video_id,caption\n"}
    bad = {"jsonl": b'{"video_id": "b", "caption": "caf\xe9"}\n', "csv": b"b,caf\xe9\n"}
    message = refusal(kind, write(tmp_path, f"mine.{kind}", lines[kind] + bad[kind]), "mine")
    assert f"mine.{kind}, line 2: not UTF-8" in message


def test_own_splits_are_suggested(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "")
    message = refusal("jsonl", write(tmp_path, "test.jsonl", ""), "trian")
    assert "did you mean 'train'?" in message
    assert "its splits are test, train" in message


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())
own_rows = st.lists(st.tuples(texts.filter(lambda text: printable(text.strip())), texts), min_size=1, max_size=8)


def expected(rows: list[tuple[str, str]]) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for video_id, text in rows:
        captions.setdefault(video_id.strip(), []).append(text.strip())
    return captions


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@settings(max_examples=200, deadline=None)
@given(rows=own_rows, ascii_only=st.booleans())
def test_jsonl_round_trip_of_any_text(scratch: Path, rows: list[tuple[str, str]], ascii_only: bool) -> None:
    lines = [json.dumps({"video_id": i, "caption": text}, ensure_ascii=ascii_only) for i, text in rows]
    result = read("jsonl", write(scratch, "any.jsonl", "\n".join(lines)), "any")
    assert {record.video_id: list(record.captions) for record in result.records} == expected(rows)
    assert [record.video_id for record in result.records] == list(expected(rows))


@settings(max_examples=200, deadline=None)
@given(rows=own_rows, line_end=st.sampled_from(["\n", "\r\n"]))
def test_csv_round_trip_of_any_text(scratch: Path, rows: list[tuple[str, str]], line_end: str) -> None:
    table = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if line_end == "\n" else csv.QUOTE_MINIMAL  # Python's writer leaves "\r" bare with "\n"
    csv.writer(table, lineterminator=line_end, quoting=quoting).writerows([("video_id", "caption"), *rows])
    result = read("csv", write(scratch, "any.csv", table.getvalue()), "any")
    assert {record.video_id: list(record.captions) for record in result.records} == expected(rows)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60), kind=st.sampled_from(["jsonl", "csv"]))
def test_any_bytes_are_read_or_refused_in_words(scratch: Path, data: bytes, kind: str) -> None:
    header = b"video_id,caption\n" if kind == "csv" else b""
    folder = write(scratch, f"bytes.{kind}", header + data)
    with contextlib.suppress(UserError):  # every other exception fails the test
        assert all(text.strip() for record in read(kind, folder, "bytes").records for text in record.captions)
