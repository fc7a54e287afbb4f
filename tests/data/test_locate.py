"""Finding video files by id, on disk and on a storage server."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.data.benchmarks import read
from glscl.data.locate import describe_missing, locate_videos
from glscl.errors import UserError


def files(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")
    return str(folder)


def located(folder: str, *ids: str) -> list[str | None]:
    """Paths relative to the folder, in the order of the ids."""
    found, missing, _ = locate_videos(ids, folder)
    assert [i for i in ids if i not in found] == missing
    return [found[i].removeprefix(f"{folder}/") if i in found else None for i in ids]


@pytest.mark.parametrize(
    ("video_id", "name"),
    [
        ("video0", "video0.mp4"),
        ("video0", "video0.WEBM"),
        ("video0", "video0.strange"),
        ("video0", "video0"),
        ("video0", "a/b/c/video0.mkv"),
        ("1@N0_2_3a.mov", "1@N0_2_3a.mov"),
        ("1@N0_2_3a.mov", "1@N0_2_3a.MOV"),
        ("1@N0_2_3a.mov", "1@N0_2_3a.mp4"),  # re-encoded under another extension
        ("1@N0_2_3a.mov", "1@N0_2_3a.mov.mp4"),  # or under one more
        ("1@N0_2_3a.null", "1@N0_2_3a.mp4"),
        ("1@N0_2_3a.", "1@N0_2_3a."),
        ("1@N0_2_3a.", "1@N0_2_3a"),
        ("1@N0_2_3a.", "1@N0_2_3a.mp4"),
        ("1@N0_2_3a.", "1@N0_2_3a..mp4"),
        ("0001_Film_00.00.51.926-00.00.54.129", "0001_Film/0001_Film_00.00.51.926-00.00.54.129.avi"),
        ("0001_Film_00.00.51.926-00.00.54.129", "0001_Film_00.00.51.926-00.00.54.129"),
        ("-4wsuPCjDBc_5_15", "-4wsuPCjDBc_5_15.avi"),
        ("sub/b.mp4", "sub/b.mp4"),
        ("./sub/b", "sub/b.mp4"),
        ("d.v/b", "d.v/b"),
    ],
)
def test_an_id_finds_its_file(tmp_path: Path, video_id: str, name: str) -> None:
    assert located(files(tmp_path, name), video_id) == [name]


@pytest.mark.parametrize(
    ("video_id", "name"),
    [
        ("video1", "video10.mp4"),
        ("video0", "Video0.mp4"),  # YouTube ids differ by case alone
        ("video0", "video0.json"),
        ("video0", "video0.JSON"),
        ("video0", "video0.mp4.part"),
        ("video0.mp4", "video0.mp4.part"),
        ("Film_00.00.54.129", "Film_00.00.54.mp4"),  # ".129" is no extension
        ("Film_00.00.54.129", "Film_00.00.54.140.mp4"),
        ("sub/b.mp4", "other/b.mp4"),
        ("video0", "video0.mp4/inside.txt"),
    ],
)
def test_an_id_does_not_find_another_file(tmp_path: Path, video_id: str, name: str) -> None:
    assert located(files(tmp_path, name), video_id) == [None]


def test_one_choice_among_several(tmp_path: Path) -> None:
    folder = files(
        tmp_path, "x.avi", "z/x.mp4", "a/x.mp4", "deeper/down/x.mp4", "x.strange", "y.MOV", "y.mp4", "y.json"
    )
    assert located(folder, "x", "x.avi", "x.mkv", "z/x", "y.mov", "y") == [
        "a/x.mp4",
        "x.avi",
        "a/x.mp4",
        "z/x.mp4",
        "y.MOV",
        "y.mp4",
    ]


NFC, NFD = "Caf\u00e9", "Cafe\u0301"


@pytest.mark.parametrize(("listed", "there"), [(NFC, NFD), (NFD, NFC)])
def test_accents_composed_or_apart_are_the_same_name(tmp_path: Path, listed: str, there: str) -> None:
    folder = files(tmp_path, f"{there}.mp4", f"a/{there} 2.MOV", f"{there}/b.mp4")
    assert located(folder, listed, f"{listed}.mp4", f"{listed}.avi", f"{listed} 2", f"a/{listed} 2", f"{listed}/b") == [
        f"{there}.mp4", f"{there}.mp4", f"{there}.mp4", f"a/{there} 2.MOV", f"a/{there} 2.MOV", f"{there}/b.mp4",
    ]  # fmt: skip
    assert located(folder, "Cafe", f"{listed.upper()}", "\ufb01") == [None, None, None]  # nothing else is folded


def test_of_both_forms_the_very_name_is_taken(tmp_path: Path) -> None:
    folder = files(tmp_path, f"{NFC}.mp4", f"z/{NFD}.mp4")
    (tmp_path / "z" / f"{NFD}.mp4").write_bytes(b"another")
    assert located(folder, NFC, NFD, f"{NFD}.avi") == [f"{NFC}.mp4", f"z/{NFD}.mp4", f"z/{NFD}.mp4"]
    mixed = files(tmp_path / "m", f"{NFC} {NFC}.mp4", f"{NFD} {NFD}.mp4")
    (tmp_path / "m" / f"{NFD} {NFD}.mp4").write_bytes(b"another")
    with pytest.raises(UserError, match="1 of 1 ids fit several different files"):
        locate_videos([f"{NFC} {NFD}"], mixed)


def test_different_files_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = files(tmp_path, "test/7.mp4", "train/7.mp4", "train/8.mp4", "8.mp4", "9.mp4", "again/9.mp4")
    (tmp_path / "train" / "7.mp4").write_bytes(b"VIDEO")  # as many bytes
    (tmp_path / "train" / "8.mp4").write_bytes(b"longer video")
    with pytest.raises(UserError) as caught:
        locate_videos(["7", "8", "9"], folder)
    assert f"{folder}: 2 of 3 ids fit several different files of one name: " in str(caught.value)
    assert "7 (test/7.mp4, train/7.mp4), 8 (8.mp4, train/8.mp4); name the folder meant" in str(caught.value)
    # what mends it: paths as ids, or the folder that is meant
    assert located(folder, "train/7", "./8.mp4", "9") == ["train/7.mp4", "8.mp4", "9.mp4"]
    assert located(f"{folder}/train", "7", "8") == ["7.mp4", "8.mp4"]


def test_files_that_differ_in_their_extension_are_told(tmp_path: Path) -> None:
    folder = files(tmp_path, "a.webm", "low/a.mp4", "b.mp4", "b.mkv")
    (tmp_path / "a.webm").write_bytes(b"another")
    found, _, notes = locate_videos(["a", "b"], folder)
    assert found == {"a": f"{folder}/low/a.mp4", "b": f"{folder}/b.mp4"}
    assert notes == ["1 of 2 ids fit files of several extensions, of which one is taken: a (low/a.mp4, not a.webm)"]


def test_paths_of_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files(tmp_path / "v", "sub/b.mp4")
    assert locate_videos([f"{folder}/sub/b.mp4"], folder)[0] == {f"{folder}/sub/b.mp4": f"{folder}/sub/b.mp4"}
    monkeypatch.chdir(tmp_path)
    assert locate_videos(["b"], "v")[0] == {"b": f"{folder}/sub/b.mp4"}  # absolute: workers run elsewhere
    assert locate_videos(["b"], "v/")[0] == {"b": f"{folder}/sub/b.mp4"}


def test_links(tmp_path: Path) -> None:
    files(tmp_path / "disk1", "a.mp4")
    files(tmp_path / "disk2", "b.mp4")
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "one").symlink_to(tmp_path / "disk1")
    (folder / "b.mp4").symlink_to(tmp_path / "disk2" / "b.mp4")
    (folder / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (folder / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder)  # two loops: without a guard, as many paths as 2 ** 40
    assert located(str(folder), "a", "b", "gone") == ["one/a.mp4", "b.mp4", None]


def test_order_and_repeats(tmp_path: Path) -> None:
    folder = files(tmp_path, "a.mp4", "b.mp4")
    found, missing, _ = locate_videos(["n2", "b", "n1", "a", "b", "n2"], folder)
    assert list(found) == ["b", "a"]
    assert missing == ["n2", "n1"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder; --videos names"):
        locate_videos(["a"], str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"a\.mp4: not a folder; --videos names"):
        locate_videos(["a"], files(tmp_path, "a.mp4") + "/a.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_not_taken_for_empty(tmp_path: Path) -> None:
    folder = files(tmp_path, "closed/a.mp4")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(UserError, match="closed: cannot be read"):
            locate_videos(["a"], folder)
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_describe_missing() -> None:
    assert describe_missing(["a", "b"], 1_200, "/v") == "2 of 1,200 videos are not in /v: a, b"
    ids = [f"id{number}" for number in range(25)]
    assert describe_missing(ids, 30, "/v") == f"25 of 30 videos are not in /v: {', '.join(ids[:20])} and 5 more"


@pytest.mark.parametrize(
    ("name", "splits"), [("msrvtt", {"train_9k": 60, "test_1k_a": 30}), ("activitynet", {"train": 45, "val_1": 25})]
)
def test_all_real_clips_are_found(shared: Path, name: str, splits: dict[str, int]) -> None:
    folder = str(shared / "clips" / name)
    for split, videos in splits.items():
        ids = [record.video_id for record in read(name, folder, split).records]
        found, missing, _ = locate_videos(ids, f"{folder}/videos")
        assert missing == []
        assert len(set(found.values())) == videos
        assert all(Path(path).name == f"{video_id}.mp4" for video_id, path in found.items())


def test_every_didemo_name_finds_its_own_file(shared: Path, tmp_path: Path) -> None:
    ids = [record.video_id for record in read("didemo", str(shared / "annotations/DiDeMo"), "test").records]
    assert located(files(tmp_path / "raw", *ids), *ids) == ids
    stems = [video_id.rpartition(".")[0] for video_id in ids]
    assert located(files(tmp_path / "again", *(f"{stem}.mp4" for stem in stems)), *ids) == [f"{s}.mp4" for s in stems]


names = st.text(st.sampled_from("abB._-0"), min_size=1, max_size=6).filter(lambda name: name.strip("."))


@settings(max_examples=100, deadline=None)
@given(stems=st.sets(names, min_size=1, max_size=6), extension=st.sampled_from(["mp4", "AVI", "mov"]))
def test_any_set_of_names(tmp_path_factory: pytest.TempPathFactory, stems: set[str], extension: str) -> None:
    folder = files(tmp_path_factory.mktemp("any"), *(f"{stem}.{extension}" for stem in stems))
    assert located(folder, *sorted(stems)) == [f"{stem}.{extension}" for stem in sorted(stems)]
    assert located(folder, *(f"{s}.{extension}" for s in sorted(stems))) == [f"{s}.{extension}" for s in sorted(stems)]


def test_videos_and_annotations_on_a_storage_server(bucket: str) -> None:
    client = boto3.client("s3")
    rows = "".join(f'{{"video_id": "{video_id}", "caption": "x"}}\n' for video_id in ("a", "1@N_2.", "no"))
    client.put_object(Bucket="data", Key="own/train.jsonl", Body=rows.encode())
    for key in ("own/videos/deep/a.MP4", "own/videos/1@N_2..mp4", "own/videos2/no.mp4"):
        client.put_object(Bucket="data", Key=key, Body=b"video")
    result = read("jsonl", f"{bucket}/own", "train")
    assert result.sources == [f"{bucket}/own/train.jsonl"]
    assert read("jsonl", f"{bucket}/own/train.jsonl", "train").records == result.records
    assert locate_videos([record.video_id for record in result.records], f"{bucket}/own/videos/") == (
        {"a": f"{bucket}/own/videos/deep/a.MP4", "1@N_2.": f"{bucket}/own/videos/1@N_2..mp4"},
        ["no"],
        [],
    )
    for key, body in {f"own/more/{NFD}.mp4": b"1", "own/more/x/7.mp4": b"2", "own/more/y/7.mp4": b"3"}.items():
        client.put_object(Bucket="data", Key=key, Body=body)
    assert locate_videos([NFC], f"{bucket}/own/more")[0] == {NFC: f"{bucket}/own/more/{NFD}.mp4"}
    with pytest.raises(UserError, match=r"1 of 1 ids fit several different files of one name: 7 \(x/7.mp4, y/7.mp4\)"):
        locate_videos(["7"], f"{bucket}/own/more")
    with pytest.raises(UserError, match="s3://data/nowhere: no such folder, or nothing in it; --videos"):
        locate_videos(["a"], f"{bucket}/nowhere")
    with pytest.raises(UserError, match=r"s3://data/own/dev\.jsonl: no such file; its splits are train"):
        read("jsonl", f"{bucket}/own", "dev")
    with pytest.raises(UserError, match=r"s3://data/own/MSRVTT_data\.json: no such file"):
        read("msrvtt", f"{bucket}/own", "train_full")
    with pytest.raises(UserError, match="s3://data/none: no such file or folder"):
        read("msrvtt", f"{bucket}/none", "train_full")
