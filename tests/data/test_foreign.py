"""Tars that other programs wrote: indexed once as they are, then a shard set like any other."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import boto3
import pytest
import webdataset

from glscl.cli import main
from glscl.data.foreign import index_shards
from glscl.data.shards import Shard, ShardSet, open_shard_set, verify_shards
from glscl.errors import UserError
from glscl.system import progress

Members = Mapping[str, bytes | str]


def tar(members: Members) -> bytes:
    """A tar of these members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            body = data if isinstance(data, bytes) else data.encode()
            if name.endswith("/"):
                info.type, body = tarfile.DIRTYPE, b""
            info.size = len(body)
            file.addfile(info, io.BytesIO(body))
    return out.getvalue()


def folder(path: Path, tars: Mapping[str, Members]) -> str:
    path.mkdir(parents=True, exist_ok=True)
    for name, members in tars.items():
        (path / name).write_bytes(tar(members))
    return str(path)


def samples(shard_set: ShardSet) -> list[tuple[str, tuple[str, ...], bytes]]:
    found = []
    for index in range(len(shard_set.manifest.shards)):
        shard = Shard(shard_set, index)
        found += [(s.video_id, s.captions, shard.read(n)) for n, s in enumerate(shard.samples)]
        shard.close()
    return found


def video2dataset(path: Path, videos: list[bytes]) -> str:
    """As its WebDatasetSampleWriter does: webdataset's TarWriter, keys of shard and number, a parquet file beside."""
    path.mkdir(parents=True)
    for shard in range(2):
        with webdataset.TarWriter(str(path / f"{shard:05d}.tar")) as writer:
            for number, video in enumerate(videos[shard * 2 : shard * 2 + 2]):
                key = f"{shard:05d}{number:04d}"
                meta = {
                    "videoid": 7_000 + 10 * shard + number, "url": "https://x", "key": key, "status": "success",
                    "error_message": None, "caption": f"caption {key}", "yt_meta_dict": None, "duration": float("nan"),
                }  # fmt: skip
                writer.write({
                    "__key__": key, "mp4": video, "m4a": b"sound", "txt": f"caption {key}",
                    "json": json.dumps(meta, indent=4),
                })  # fmt: skip
        (path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (path / f"{shard:05d}_stats.json").write_text("{}")
    return str(path)


def test_long_reading_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    where = folder(tmp_path / "set", {f"{n}.tar": {"a.mp4": b"video", "a.txt": "a caption"} for n in range(3)})
    index_shards(where)
    assert re.findall(r"reading \S+: (\d of 3) tars, about \d+ s left", capsys.readouterr().out) == ["1 of 3", "2 of 3"]


def test_video2dataset(tmp_path: Path, make_video: Callable[..., bytes], capsys: pytest.CaptureFixture[str]) -> None:
    videos = [make_video(seed=n) for n in range(4)]
    where = video2dataset(tmp_path / "webvid", videos)
    before = {path.name: path.read_bytes() for path in Path(where).iterdir()}
    assert main(["shards", "index", where, "--domain", "web", "--split", "train"]) == 0
    assert f"glscl: OK {where}: 4 videos, 4 pairs in 2 tars" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in Path(where).iterdir() if path.name in before} == before
    shard_set = open_shard_set(where)
    manifest = shard_set.manifest
    assert (manifest.domain, manifest.split, manifest.reader, manifest.rejected) == ("web", "train", "webdataset", {})
    keys = ("000000000", "000000001", "000010000", "000010001")
    ids = ("7000", "7001", "7010", "7011")
    assert samples(shard_set) == [
        (video_id, (f"caption {key}",), video) for video_id, key, video in zip(ids, keys, videos, strict=True)
    ]
    assert main(["shards", "verify", where]) == 0
    assert main(["shards", "info", where]) == 0
    assert "reader: webdataset (version 1)" in capsys.readouterr().out
    assert main(["shards", "index", where]) == 2
    assert "manifest.json: is there already; pass --overwrite" in capsys.readouterr().out
    (Path(where) / "00001.tar").write_bytes(before["00000.tar"])
    problems = verify_shards(where)
    assert problems
    assert not any("shards verify" in problem for problem in problems)
    (Path(where) / "00001.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"run `glscl shards verify \S+` and copy it again, or run `glscl shards index"):
        open_shard_set(where)


def test_any_video_extension_and_what_else_lies_in_a_tar(tmp_path: Path) -> None:
    """Folders, notes of WebDataset, embeddings, sound, thumbnails; keys in folders; extensions in capitals."""
    where = folder(tmp_path / "set", {
        "a-0.tar": {
            "__meta__/x.json": "{}", "./": b"", "./part/": b"", "./part/one.WEBM": b"1",
            "./part/one.TXT": "\ufeffone \n",
            "./part/one.npy": b"x", "./part/one.jpg": b"thumbnail", "two.mkv": b"2", "two.en.vtt": b"x",
            "two.json": '{"caption": " two ", "video_id": "id 2", "fps": NaN}', "README": b"?",
        },
        "a-1.tar": {
            "3.json": '{"captions": ["x", "y "], "video_id": 33}', "3.mov": b"quicktime", "3.mp4": b"3", "3.txt": "no",
            "4.mp4": b"4", "4.txt": "four", "4.json": "[not json",
            "5.mp4": b"5", "5.txt": "five\nin two lines", "5.json": '{"key": "five"}',
        },
    })  # fmt: skip
    manifest, notes = index_shards(where)
    assert (manifest.domain, manifest.split, notes) == ("set", "train", [])
    assert (manifest.videos, manifest.pairs, manifest.rejected) == (5, 6, {})
    assert samples(open_shard_set(where)) == [
        ("part/one", ("one",), b"1"), ("id 2", ("two",), b"2"), ("33", ("x", "y"), b"3"), ("4", ("four",), b"4"),
        ("five", ("five\nin two lines",), b"5"),
    ]  # fmt: skip
    assert verify_shards(where) == []


def test_samples_that_lack_something_are_left_out_and_listed(tmp_path: Path) -> None:
    whole = {f"{n}.{kind}": b"x" for n in range(6) for kind in ("mp4", "txt")}
    where = folder(tmp_path / "set", {
        "0.tar": {
            **whole, "silent.mp4": b"v", "silent.txt": " ", "text.txt": "no video", "page.jpg": b"", "page.txt": "x",
            "latin.mp4": b"v", "latin.txt": b"caf\xe9", "long.mp4": b"v", "long.txt": "x" * 1_000_001,
            "surrogate.mp4": b"v", "surrogate.json": '{"caption": "\\ud83d"}',
            "odd.mp4": b"v", "odd.txt": "x", "odd.json": '{"video_id": "\\u001b[31m"}',
        },
    })  # fmt: skip
    with pytest.raises(UserError) as caught:
        index_shards(where, max_bad_fraction=0.5)
    assert "7 of 13 samples cannot be used (" in str(caught.value)
    assert (
        "more than --max-bad-fraction (0.5): 0.tar/silent (no caption); 0.tar/text (no video); 0.tar/page (a pic"
        in (str(caught.value))
    )
    assert not (tmp_path / "set" / "manifest.json").exists()
    manifest, _ = index_shards(where, max_bad_fraction=0.6)
    assert manifest.share() == "6 of 13"
    assert {key.removeprefix("0.tar/"): reason for key, reason in manifest.rejected.items()} == {
        "silent": "no caption", "text": "no video", "page": "a picture and no video",
        "latin": "a caption that is not UTF-8", "long": "a caption of 1,000,001 characters",
        "surrogate": "a caption with half of a surrogate pair",
        "odd": "an id with a character that cannot be printed ('\\x1b[31m')",
    }  # fmt: skip
    assert len(samples(open_shard_set(where))) == 6
    assert verify_shards(where) == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.jpg": b""}, "no usable sample: 0 has no caption"),
        ({"0.npz": b"", "0.txt": "x", "0.json": "{}"}, r"no video in it \(\.json, \.npz, \.txt\)"),
        ({"0.mp4": b""}, "no usable sample: 0 has no caption"),
        ({}, "no video in it"),
    ],
)
def test_tars_without_a_usable_sample(tmp_path: Path, members: Members, message: str) -> None:
    where = folder(tmp_path / "set", {"0.tar": {"0.mp4": b"v", "0.txt": "x"}, "1.tar": members})
    with pytest.raises(UserError, match=rf"set/1\.tar: unusable \({message}.*\); mend it, or move it out"):
        index_shards(where)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"nowhere: no folder with \*\.tar files directly in it"):
        index_shards(str(tmp_path / "nowhere"))
    where = folder(tmp_path / "set", {"with space.tar": {"0.mp4": b"v", "0.txt": "x"}})
    with pytest.raises(UserError, match=r"with space\.tar: String should match pattern .*; rename it"):
        index_shards(where)
    twice = folder(tmp_path / "twice", {"0.tar": {"0.mp4": b"v", "./0.mp4": b"w", "0.txt": "x"}})
    with pytest.raises(UserError, match=r"twice/0\.tar: unusable \(member '\./0\.mp4' is there twice\)"):
        index_shards(twice)
    (tmp_path / "twice" / "0.tar").write_bytes(tar({"0.mp4": b"v" * 5000, "0.txt": "x"})[:3000])
    with pytest.raises(UserError, match=r"twice/0\.tar: unusable \(member '0\.mp4' is cut short\)"):
        index_shards(twice)
    sound = folder(tmp_path / "sound", {"0.tar": {"0.mp4": b"v", "0.txt": "x"}})
    with pytest.raises(UserError, match=r"--domain: .* a character that cannot be printed"):
        index_shards(sound, domain="\x1b[31m")
    assert main(["shards", "index"]) == 2
    assert "takes the folder or s3:// prefix of the tars first" in capsys.readouterr().out


def test_our_own_tars_whose_manifest_is_lost(make_shards: Callable[..., ShardSet]) -> None:
    ours = make_shards(captions=(1, 2, 3), per_shard=2)
    before = samples(ours)
    (Path(ours.uri) / "manifest.json").unlink()
    manifest, _ = index_shards(ours.uri)
    assert (manifest.videos, manifest.pairs) == (3, 6)
    assert samples(open_shard_set(ours.uri)) == before


def test_ids_that_stand_for_several_clips_are_told(tmp_path: Path) -> None:
    clip = {"mp4": "v", "txt": "x", "json": '{"video_id": "film"}'}
    members = {f"film_{number}.{kind}": data for number in range(2) for kind, data in clip.items()}
    manifest, notes = index_shards(folder(tmp_path / "set", {"0.tar": members}))
    assert manifest.videos == 2
    assert notes == ["1 ids stand for several samples: film"]


def test_on_a_storage_server(bucket: str) -> None:
    client = boto3.client("s3")
    for number in range(2):
        body = tar({f"{number}.mp4": f"video {number}", f"{number}.txt": f"caption {number}"})
        client.put_object(Bucket="data", Key=f"web/vid/{number:05d}.tar", Body=body)
    manifest, _ = index_shards(f"{bucket}/web/vid/")
    assert manifest.domain == "vid"
    shard_set = open_shard_set(f"{bucket}/web/vid")
    assert samples(shard_set) == [(str(n), (f"caption {n}",), f"video {n}".encode()) for n in range(2)]
    assert verify_shards(shard_set.uri) == []
