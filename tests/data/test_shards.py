"""Shard sets: what is written, what is read back, and what is refused."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.data.build import BuildOptions, Encoding, Origin, build_shards
from glscl.data.limits import VideoError
from glscl.data.quarantine import read_quarantine
from glscl.data.records import Record
from glscl.data.shards import Manifest, Shard, ShardSet, describe_manifest, open_shard_set, verify_shards
from glscl.errors import UserError
from glscl.system import storage

MakeShards = Callable[..., ShardSet]
ORIGIN = Origin("own", "train", "jsonl", 3, ("own/train.jsonl",))
ODD = ("Straße, naïve café", "日本語の動画", "👩‍🚀 waves\tto\u2028you", 'quotes " and \\ and \x00', "")


def entries(folder: str) -> list[tuple[str, int, int, int, str]]:
    return [(e.name, e.samples, e.pairs, e.bytes, e.sha256) for e in open_shard_set(folder).manifest.shards]


def contents(shard_set: ShardSet) -> list[tuple[str, tuple[str, ...], bytes]]:
    found = []
    for index in range(len(shard_set.manifest.shards)):
        shard = Shard(shard_set, index)
        for position in reversed(range(len(shard.samples))):  # random access
            sample = shard.samples[position]
            found.append((sample.video_id, sample.captions, shard.read(position)))
        shard.close()
    return sorted(found)


def handmade(folder: Path, members: list[tuple[str | tarfile.TarInfo, bytes]], samples: int, pairs: int) -> ShardSet:
    """A set of one tar with any members, under a manifest that fits it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (folder / "shard-000000.tar").write_bytes(target.getvalue())
    described(folder, samples, pairs)
    return open_shard_set(str(folder))


def described(folder: Path, samples: int, pairs: int) -> None:
    data = (folder / "shard-000000.tar").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    entry = {"name": "shard-000000.tar", "samples": samples, "pairs": pairs, "bytes": len(data), "sha256": digest}
    manifest = {
        "domain": "own",
        "split": "train",
        "reader": "jsonl",
        "reader_version": 1,
        "sources": [],
        "encoding": "as is",
        "videos": samples,
        "pairs": pairs,
        "shards": [entry],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def annotation(**changes: Any) -> bytes:
    return json.dumps(
        {"video_id": "a", "captions": ["x"], "start": None, "end": None, "domain": "own"} | changes
    ).encode()


def edit_manifest(folder: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = Path(folder) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_what_is_written_is_read_back(make_shards: MakeShards, make_video: Callable[..., bytes]) -> None:
    shard_set = make_shards(captions=(1, 2, 3, 1, 2, 3, 1), per_shard=3)
    manifest = shard_set.manifest
    assert (manifest.domain, manifest.split, manifest.reader, manifest.sources) == (
        "toy",
        "train",
        "test",
        ("annotations.json",),
    )
    assert (manifest.videos, manifest.pairs, manifest.encoding, manifest.rejected) == (7, 13, "as is", {})
    assert [entry.samples for entry in manifest.shards] == [3, 3, 1]
    counts = (1, 2, 3, 1, 2, 3, 1)
    assert contents(shard_set) == [
        (f"v{n:03d}", tuple(f"v{n:03d} text {i}" for i in range(counts[n])), make_video(seed=n)) for n in range(7)
    ]
    assert verify_shards(shard_set.uri) == []
    told = describe_manifest(manifest)
    assert told["pairs"] == "13 (1.86 captions per video)"
    assert told["rejected"] == "none"


def test_everything_a_record_says_survives(tmp_path: Path, make_video: Callable[..., bytes]) -> None:
    (tmp_path / "clip.avi").write_bytes(make_video())
    records = [
        Record("../../etc/passwd", ODD, 0.25, 1.5, 1.25, {"colour": "röd", "events": [1, {"a": None}]}),
        Record("日本/動画.mp4", ("word " * 10_000,)),
        Record("half \ud83d of a pair", ("half \ud83d of a pair",)),  # cannot be written as UTF-8
    ]
    videos = dict.fromkeys((record.video_id for record in records), str(tmp_path / "clip.avi"))
    build_shards(
        records,
        videos,
        str(tmp_path / "set"),
        ORIGIN,
        BuildOptions(samples_per_shard=10, workers=0, max_bad_fraction=1.0),
    )
    shard = Shard(open_shard_set(str(tmp_path / "set")), 0)
    samples = {sample.video_id: sample for sample in shard.samples}
    first = samples["../../etc/passwd"]
    assert (first.captions, first.start, first.end) == (ODD, 0.25, 1.5)
    assert first.attributes == {"colour": "röd", "events": [1, {"a": None}]}
    assert samples["日本/動画.mp4"].captions == ("word " * 10_000,)
    assert samples["half ? of a pair"].captions == ("half ? of a pair",)
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as tar:
        assert sorted(tar.getnames()) == [f"0000000{n}.{kind}" for n in range(3) for kind in ("json", "mp4", "txt")]


def test_stock_webdataset_reads_the_shards(make_shards: MakeShards) -> None:
    shard_set = make_shards(captions=(2, 1, 3, 1), per_shard=3)
    tars = [shard_set.shard_uri(index) for index in range(2)]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert sorted((s["json"]["video_id"], tuple(s["json"]["captions"]), s["mp4"]) for s in samples) == contents(
        shard_set
    )
    assert {s["json"]["domain"] for s in samples} == {"toy"}
    pairs = list(webdataset.WebDataset(tars, shardshuffle=False).decode().to_tuple("mp4", "txt"))
    assert sorted(text for _, text in pairs) == sorted(captions[0] for _, captions, _ in contents(shard_set))
    assert {video for video, _ in pairs} == {video for *_, video in contents(shard_set)}


def test_sets_from_before_there_was_a_txt_member_are_read(tmp_path: Path) -> None:
    old = handmade(tmp_path / "old", [("0.json", annotation()), ("0.mp4", b"v")], 1, 1)
    new = handmade(tmp_path / "new", [("0.json", annotation()), ("0.mp4", b"v"), ("0.txt", b"\xff")], 1, 1)
    assert Shard(old, 0).samples == Shard(new, 0).samples
    with pytest.raises(UserError, match=r"member '0\.txt' is there twice"):
        Shard(handmade(tmp_path / "two", [*SOUND, ("0.txt", b""), ("0.txt", b"")], 1, 1), 0)
    with pytest.raises(UserError, match=r"sample '1' lacks its video or its annotation"):
        Shard(handmade(tmp_path / "odd", [*SOUND, ("1.txt", b"")], 1, 1), 0)


def test_a_build_is_bounded(make_video: Callable[..., bytes], tmp_path: Path) -> None:
    """Files that are there and cannot be used end a build where they are more than was allowed, and are listed."""
    records = [Record(f"v{n}", ("x",)) for n in range(10)]
    videos = {record.video_id: str(tmp_path / f"{record.video_id}.mp4") for record in records}
    for n, path in enumerate(videos.values()):
        Path(path).write_bytes(b"" if n in (2, 3) else make_video(seed=n))
    output = str(tmp_path / "set")

    def build(limit: float, missing: Sequence[str] = (), **more: Any) -> Manifest:
        chosen = {"samples_per_shard": 2, "shuffle": False, "workers": 0, "max_bad_fraction": limit} | more
        return build_shards(records, videos, output, ORIGIN, BuildOptions(**chosen), missing=missing)

    with pytest.raises(UserError) as caught:
        build(0.1)
    assert str(caught.value) == (
        f"own/train: 2 of 10 videos so far cannot be used, more than --max-bad-fraction (0.1): v2 (empty file); v3 "
        f"(empty file) (all in {output}/quarantine.jsonl); mend or remove them, or raise --max-bad-fraction"
    )
    assert [(e["set"], e["video_id"], e["reason"]) for e in read_quarantine(output)] == [
        (output, "v2", "empty file"), (output, "v3", "empty file"),
    ]  # fmt: skip
    assert not (tmp_path / "set" / "manifest.json").exists()
    manifest = build(0.2, missing=["gone"])  # missing files are the word of --allow-missing
    assert manifest.share() == "8 of 11"
    assert describe_manifest(manifest)["videos"] == "8 of 11"
    assert read_quarantine(output) == []


def test_building_is_a_pure_function(make_shards: MakeShards, tmp_path: Path) -> None:
    first, second = (entries(make_shards(root=str(tmp_path / name)).uri) for name in ("one", "two"))
    assert first == second
    assert (
        open_shard_set(str(tmp_path / "one" / "toy")).manifest.fingerprint()
        == open_shard_set(str(tmp_path / "two" / "toy")).manifest.fingerprint()
    )


@pytest.mark.e2e
def test_ray_tasks_write_the_same_bytes(make_shards: MakeShards, tmp_path: Path, bucket: str) -> None:
    import ray

    bad = {3: b"garbage"}
    encoding = Encoding(short_side=32, rate=2)
    alone = make_shards(captions=(1, 2) * 5, per_shard=2, bad=bad, encoding=encoding)
    ray.init(address="local", num_cpus=2, include_dashboard=False, configure_logging=False)
    try:
        together = make_shards(
            captions=(1, 2) * 5, per_shard=2, bad=bad, encoding=encoding, root=str(tmp_path / "ray"), workers=None
        )
        remote = make_shards(captions=(1, 2) * 5, per_shard=2, bad=bad, encoding=encoding, root=bucket, workers=2)
    finally:
        ray.shutdown()
    assert together.manifest == alone.manifest == remote.manifest
    assert contents(together) == contents(alone) == contents(remote)
    assert verify_shards(remote.uri) == []


def test_on_a_storage_server(make_shards: MakeShards, bucket: str, tmp_path: Path) -> None:
    local = make_shards(captions=(1, 2, 3) * 3, per_shard=4)
    remote = make_shards(captions=(1, 2, 3) * 3, per_shard=4, root=f"{bucket}/deep/down")
    assert remote.uri == "s3://data/deep/down/toy"
    assert remote.manifest == local.manifest
    assert contents(remote) == contents(local)
    assert verify_shards(remote.uri) == []
    shard = Shard(remote, 0, cache_dir=str(tmp_path / "cache" / "new"))
    assert list((tmp_path / "cache" / "new").iterdir()) == []  # the copy has no name to leave behind
    assert shard.read(3)
    client = boto3.client("s3")
    whole = client.get_object(Bucket="data", Key="deep/down/toy/shard-000001.tar")["Body"].read()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    client.put_object(Bucket="data", Key="deep/down/toy/shard-000001.tar", Body=bytes(flipped))
    assert "s3://data/deep/down/toy/shard-000001.tar: checksum differs" in verify_shards(remote.uri)[0]
    client.put_object(Bucket="data", Key="deep/down/toy/shard-000001.tar", Body=whole[:-2000])
    with pytest.raises(UserError, match=r"s3://data/deep/down/toy/shard-000001\.tar: \d+ bytes where manifest\.json"):
        open_shard_set(remote.uri)
    client.delete_object(Bucket="data", Key="deep/down/toy/shard-000001.tar")
    with pytest.raises(UserError, match=r"toy/shard-000001\.tar: listed in manifest\.json but not there"):
        open_shard_set(remote.uri)
    with pytest.raises(UserError, match=r"toy/shard-000001\.tar: listed in manifest\.json but not there"):
        Shard(remote, 1)
    with pytest.raises(UserError, match=r"s3://data/none/manifest\.json: no such file; write the shards with"):
        open_shard_set(f"{bucket}/none")
    with pytest.raises(UserError, match=r"s3://nowhere/x/manifest\.json: .*bucket does not exist"):
        open_shard_set("s3://nowhere/x")


def test_reencoding(make_shards: MakeShards, make_video: Callable[..., bytes]) -> None:
    import av

    times = [n / 24 for n in range(48)]
    bad = {n: make_video(times, size=(160, 96)) for n in range(4)} | {4: b"garbage", 5: b"", 6: make_video()[:-200]}
    shard_set = make_shards(captions=(1,) * 7, per_shard=2, bad=bad, encoding=Encoding(short_side=48, rate=3))
    manifest = shard_set.manifest
    assert (manifest.videos, manifest.pairs, manifest.encoding) == (4, 4, "short side 48, 3 fps")
    assert list(manifest.rejected) == ["v004", "v005", "v006"]
    assert manifest.rejected["v005"] == "empty file"
    assert all(reason.startswith("undecodable") for reason in (manifest.rejected["v004"], manifest.rejected["v006"]))
    assert "1 x empty file" in describe_manifest(manifest)["rejected"]
    assert verify_shards(shard_set.uri) == []
    for _, _, data in contents(shard_set):
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, stream.frames) == (80, 48, 6)
            assert abs(float(stream.duration * stream.time_base) - 2.0) < 0.05


def test_videos_that_cannot_be_read(tmp_path: Path) -> None:
    records = [Record("a", ("x",)), Record("b", ("y",))]
    videos = {"a": str(tmp_path / "gone.mp4"), "b": str(tmp_path)}
    with pytest.raises(
        UserError, match=r"own: none of 2 videos could be read: .*1 x unreadable file \(FileNotFoundErr"
    ):
        build_shards(
            records,
            videos,
            str(tmp_path / "set"),
            ORIGIN,
            BuildOptions(samples_per_shard=1, workers=0, max_bad_fraction=1.0),
        )
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_missing_videos_are_listed(tmp_path: Path, make_video: Callable[..., bytes]) -> None:
    (tmp_path / "a.mp4").write_bytes(make_video())
    videos = {"a": str(tmp_path / "a.mp4")}
    output = str(tmp_path / "set")
    options = BuildOptions(samples_per_shard=4, workers=0)
    manifest = build_shards([Record("a", ("x",))], videos, output, ORIGIN, options, missing=["b"])
    assert manifest.rejected == {"b": "no file"}
    assert open_shard_set(output).manifest == manifest


def test_building_refuses(tmp_path: Path, make_shards: MakeShards) -> None:
    with pytest.raises(UserError, match="domain 'own' split 'train' is empty: nothing to write"):
        build_shards(
            [], {}, str(tmp_path / "set"), ORIGIN, BuildOptions(samples_per_shard=1, workers=0, max_bad_fraction=1.0)
        )
    with pytest.raises(UserError, match="--samples-per-shard is 0"):
        make_shards(per_shard=0)
    make_shards()
    with pytest.raises(UserError, match="already holds a shard set; choose another --output or pass --overwrite"):
        make_shards()


def test_overwriting_leaves_nothing_of_the_old_set(tmp_path: Path, make_video: Callable[..., bytes]) -> None:
    (tmp_path / "a.mp4").write_bytes(make_video())
    records = [Record(str(n), ("x",)) for n in range(6)]
    videos = {record.video_id: str(tmp_path / "a.mp4") for record in records}
    output = str(tmp_path / "set")
    build_shards(records, videos, output, ORIGIN, BuildOptions(samples_per_shard=1, workers=0, max_bad_fraction=1.0))
    build_shards(
        records,
        videos,
        output,
        ORIGIN,
        BuildOptions(samples_per_shard=4, workers=0, overwrite=True, max_bad_fraction=1.0),
    )
    assert storage.list_names(output) == ["manifest.json", "shard-000000.tar", "shard-000001.tar"]
    assert verify_shards(output) == []
    broken = dict.fromkeys(videos, str(tmp_path / "gone.mp4"))
    with pytest.raises(UserError, match="none of 6"):
        build_shards(
            records,
            broken,
            output,
            ORIGIN,
            BuildOptions(samples_per_shard=4, workers=0, overwrite=True, max_bad_fraction=1.0),
        )
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):  # never an old manifest over new tars
        open_shard_set(output)


def test_damage_is_found(make_shards: MakeShards, tmp_path: Path) -> None:
    shard_set = make_shards()
    tar = Path(shard_set.shard_uri(2))
    whole = tar.read_bytes()
    flipped = bytearray(whole)
    flipped[-10_300] ^= 1
    tar.write_bytes(bytes(flipped))
    problems = verify_shards(shard_set.uri)
    assert problems[0] == f"{tar}: checksum differs from the manifest's"
    assert all(str(tar) in problem for problem in problems)
    for length in (len(whole) - 1, len(whole) // 2, 100, 0):
        tar.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"shard-000002\.tar: {length} bytes where manifest\.json says") as caught:
            open_shard_set(shard_set.uri)
        assert "glscl shards verify" in str(caught.value)
        if length < len(whole) - 1:  # the last byte is padding
            with pytest.raises(UserError, match=r"shard-000002\.tar: (unusable|\d samples and)"):
                Shard(shard_set, 2)
    tar.unlink()
    with pytest.raises(UserError, match=r"shard-000002\.tar: listed in manifest\.json but not there"):
        open_shard_set(shard_set.uri)


def test_a_manifest_of_another_set(make_shards: MakeShards) -> None:
    ours, other = make_shards("ours"), make_shards("other", per_shard=15)
    shutil.copy(f"{other.uri}/manifest.json", f"{ours.uri}/manifest.json")
    with pytest.raises(UserError, match=r"ours/shard-000000\.tar: \d+ bytes where manifest\.json says \d+"):
        open_shard_set(ours.uri)


def test_a_manifest_of_another_set_of_the_same_size(make_shards: MakeShards) -> None:
    ours = make_shards("ours", captions=(1,) * 4)
    other = make_shards("othr", captions=(1,) * 4, texts={n: (f"w{n:03d} text 0",) for n in range(4)})
    assert [e.bytes for e in ours.manifest.shards] == [e.bytes for e in other.manifest.shards]
    shutil.copy(f"{other.uri}/manifest.json", f"{ours.uri}/manifest.json")
    problems = verify_shards(ours.uri)
    assert problems[0].endswith("checksum differs from the manifest's")
    assert ".json is of domain 'ours' where manifest.json says 'othr'" in problems[1]
    with pytest.raises(UserError, match="is of domain 'ours' where"):  # nor is it trained on unverified
        Shard(open_shard_set(ours.uri), 0)


def double_first(manifest: dict[str, Any]) -> None:
    manifest["shards"][0]["samples"] += 1
    manifest["shards"][0]["pairs"] += 1
    manifest["videos"] += 1
    manifest["pairs"] += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(pairs=m["pairs"] + 1), "the shards' pairs do not add up to 61"),
        (lambda m: m.update(videos=1), "the shards' samples do not add up to 1"),
        (lambda m: m["shards"][0].update(pairs=-4), r"not a shard manifest \(shards\.0\.pairs: "),
        (lambda m: m.update(shards=[], pairs=0, videos=0), "domain 'toy' split 'train' is empty"),
        (lambda m: m.update(format=7), "format 7, this version reads 1"),
        (lambda m: m.pop("domain"), r"not a shard manifest \(domain: Field required\)"),
        (lambda m: m["shards"][1].update(bytes="many"), r"not a shard manifest \(shards\.1\.bytes: "),
        *(
            (lambda m, name=name: m["shards"][1].update(name=name), r"not a shard manifest \(shards\.1\.name: ")
            for name in ("../../x.tar", "/x.tar", "s3://x/y.tar", "..tar", "x.tar\n", "a\x00.tar", "x", "", "a\\b.tar")
        ),
        *(
            (lambda m, key=key, value=value: m["shards"][0].update({key: value}), rf"\(shards\.0\.{key}: ")
            for key in ("samples", "pairs", "bytes")
            for value in (-1, 1 << 60, 1.0, True, "5", float("nan"), 10**400, None)
        ),
        (lambda m: m["shards"].append(m["shards"][0]), r"shard-000000\.tar is listed 2 times"),
        (lambda m: m["shards"].__setitem__(1, m["shards"][0]), r"shard-000000\.tar is listed 2 times"),
        (lambda m: m.update(domain="a\x1b[31mb"), r"\(domain: .*cannot be printed \('a.x1b"),
        (lambda m: m.update(split="a\u202eb"), r"\(split: .*cannot be printed"),
        (lambda m: m.update(sources=["x" * 5000]), r"\(sources\.0: "),
        (lambda m: m.update(format=True), r"\(format: "),
        (lambda m: m.update(surprise=1), r"not a shard manifest \(surprise: "),
    ],
)
def test_manifests_that_are_refused(
    make_shards: MakeShards, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    shard_set = make_shards()
    edit_manifest(shard_set.uri, change)
    with pytest.raises(UserError, match=message) as caught:
        open_shard_set(shard_set.uri)
    assert shard_set.uri in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "7", '{"a": "\\ud800'])
def test_manifests_that_are_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: not (valid JSON|a shard manifest \(top level)"):
        open_shard_set(str(tmp_path))


def test_counts_that_the_tar_does_not_have(make_shards: MakeShards) -> None:
    shard_set = make_shards()
    edit_manifest(shard_set.uri, double_first)
    with pytest.raises(UserError, match=r"shard-000000\.tar: 5 samples and \d+ pairs where manifest\.json says 6 and"):
        Shard(open_shard_set(shard_set.uri), 0)
    assert len(verify_shards(shard_set.uri)) == 1


def link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("0.mp4")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../../x.json", annotation()), ("../../x.mp4", b"v")], r"'\.\./\.\./x\.json' is not a plain name"),
        ([("/etc/x.json", annotation())], "'/etc/x.json' is not a plain name"),
        ([("a/b.json", annotation()), ("a/b.mp4", b"v")], "'a/b.json' is not a plain name"),
        ([(".json", annotation())], "'.json' is not a plain name"),
        ([("0.json", annotation()), (link(tarfile.SYMTYPE), b"")], "'0.mp4' is not a plain file"),
        ([("0.json", annotation()), (link(tarfile.LNKTYPE), b"")], "'0.mp4' is not a plain file"),
        ([("0.json", annotation()), (link(tarfile.CHRTYPE), b"")], "'0.mp4' is not a plain file"),
        (
            [("0.json", annotation()), ("0.exe", b"v")],
            r"'0\.exe' is neither \.json, \.mp4, \.txt, \.safetensors, \.npy nor a numbered",
        ),
        ([("0.json", annotation())], "sample '0' lacks its video or its annotation"),
        ([("0.json", annotation()), ("0.mp4", b"v"), ("0.mp4", b"w")], "'0.mp4' is there twice"),
        ([("0.json", annotation(x="x" * (9 << 20))), ("0.mp4", b"v")], r"'0\.json' has \d+ bytes"),
        ([("0.json", b'{"video_id": "a", "captions": ["caf\xe9"]}'), ("0.mp4", b"v")], "0.json is not UTF-8 JSON"),
        ([("0.json", '{"video_id": "a"}'.encode("utf-16")), ("0.mp4", b"v")], "0.json is not UTF-8 JSON"),
        ([("0.json", b"[" * 100_000), ("0.mp4", b"v")], "0.json is not UTF-8 JSON"),
        ([("0.json", b"[]"), ("0.mp4", b"v")], "0.json has no list of captions"),
        ([("0.json", annotation(captions=[])), ("0.mp4", b"v")], "0.json has no list of captions"),
        ([("0.json", annotation(captions=["a", 5])), ("0.mp4", b"v")], "0.json has no list of captions"),
        ([("0.json", annotation(video_id=5)), ("0.mp4", b"v")], "0.json has no video_id"),
        ([("0.json", annotation(start="soon")), ("0.mp4", b"v")], "0.json: start and end must be seconds"),
        ([("0.json", annotation(attributes=[1])), ("0.mp4", b"v")], "0.json: attributes must be an object"),
    ],
)
def test_tars_that_are_refused(tmp_path: Path, members: list[tuple[Any, bytes]], message: str) -> None:
    shard_set = handmade(tmp_path / "set", members, 1, 1)
    with pytest.raises(UserError, match=message) as caught:
        Shard(shard_set, 0)
    assert str(tmp_path / "set" / "shard-000000.tar") in str(caught.value)
    assert "\n" not in str(caught.value)
    (problem,) = verify_shards(shard_set.uri)
    assert "shards verify" not in problem  # which is what is running
    assert str(caught.value).startswith(problem)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4095), st.integers(1, 255)), min_size=1, max_size=6), st.booleans())
def test_damaged_tars_never_crash(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]], long_name: bool
) -> None:
    folder = tmp_path_factory.mktemp("set")
    key = "0" * (150 if long_name else 1)  # long names need an extra header
    shard_set = handmade(folder, [(f"{key}.json", annotation()), (f"{key}.mp4", b"v" * 700)], 1, 1)
    path = folder / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    for where, flip in damage:
        data[where] ^= flip
    path.write_bytes(bytes(data))
    try:
        shard = Shard(shard_set, 0)
        assert len(shard.read(0)) <= len(data)
        shard.close()
    except UserError:
        pass


# ------------------------------------------------------------------------------------------------- hostile archives


def info(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for key, value in fields.items():
        setattr(member, key, value)
    return member


SOUND: list[tuple[str | tarfile.TarInfo, bytes]] = [("0.json", annotation()), ("0.mp4", b"v")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../0.json", annotation()), ("../0.mp4", b"v")], "is not a plain name"),
        ([("/etc/0.json", annotation()), ("/etc/0.mp4", b"v")], "is not a plain name"),
        *(
            ([*SOUND, (info("0.json", kind, linkname="/etc/passwd"), b"")], "'0.json' is not a plain file")
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"5")
        ),
        ([*SOUND, (info("1.mp4", pax_headers={"GNU.sparse.map": "0,9", "GNU.sparse.size": "1"}), b"v")], "plain file"),
        ([(info("0.json", pax_headers={"comment": "x" * 100_000}), annotation()), SOUND[1]], "extended header of"),
        ([*SOUND, ("1.json", annotation()), ("1.mp4", b"v")], "more than the 1 samples that manifest.json says"),
        ([("0.json", annotation(start=float("nan"))), SOUND[1]], "NaN is not a number"),
        ([("0.json", annotation()[:-1] + b', "start": 1e999}'), SOUND[1]], "is given twice|is not a number"),
        ([("0.json", annotation()[:-1] + b', "video_id": "b"}'), SOUND[1]], "key 'video_id' is given twice"),
        ([("0.json", annotation(start=3, end=2)), SOUND[1]], "seconds, one after the other"),
        ([("0.json", annotation(start=-1)), SOUND[1]], "seconds, one after the other"),
        ([("0.json", annotation(end=True)), SOUND[1]], "seconds, one after the other"),
        ([("0.json", annotation(end=10**300)), SOUND[1]], "seconds, one after the other"),
        ([("0.json", annotation(video_id="a\x1b[2Jb")), SOUND[1]], r"cannot be printed \('a.x1b\[2Jb'\)"),
        ([("0.json", annotation(video_id="a\u202eb")), SOUND[1]], "cannot be printed"),
        ([("0.json", annotation(video_id=" ")), SOUND[1]], "an empty id"),
        ([("0.json", annotation(video_id="x" * 5000)), SOUND[1]], "an id of 5,000 characters"),
        ([("0.json", b"[" * 100_000), SOUND[1]], "nested too deeply"),
        ([("0.json", annotation(n=0)[:-2] + b"9" * 5000 + b"}"), SOUND[1]], "not UTF-8 JSON"),
        ([("0\x1b[31m.txt", b""), *SOUND], r"sample '0.x1b\[31m' lacks its video"),
    ],
)
def test_hostile_tars(tmp_path: Path, members: list[tuple[Any, bytes]], message: str) -> None:
    shard_set = handmade(tmp_path / "set", members, 1, 1)
    with pytest.raises(UserError, match=message) as caught:
        Shard(shard_set, 0)
    assert "shard-000000.tar" in str(caught.value)
    assert str(caught.value).isprintable()


def raw_tar(*blocks: bytes) -> bytes:
    return b"".join(block + bytes(-len(block) % 512) for block in blocks) + bytes(1024)


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header block with any bytes as its size."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT)[:512])
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256: the next header would be this one


@pytest.mark.parametrize(
    "data",
    [
        raw_tar(header("0.mp4", NEGATIVE)),
        raw_tar(header("0.json", b"00000000000"), header("0.mp4", NEGATIVE)),
        raw_tar(header("x", NEGATIVE, b"x"), b"9 a=b\n"),
        raw_tar(header("x", b"\x80" + b"\xff" * 11, b"x")),
        raw_tar(header("0.mp4", b"\x80" + b"\x7f" * 11)),
        raw_tar(*[header("x", b"00000000006", b"x"), b"6 a=b\n"] * 3000, header("0.mp4", b"00000000000")),
        raw_tar(*[header("x", b"00000000002", b"L"), b"y\0"] * 3000, header("0.mp4", b"00000000000")),
        raw_tar(header("x", b"00000000010", b"x"), b"99999999 a=b\n", header("0.mp4", b"00000000000")),
        raw_tar(header("x", b"77777777777", b"S")),
        gzip.compress(raw_tar(header("0.mp4", b"00000000000"))),
        b"",
        bytes(10240),
    ],
    ids=["negative", "negative later", "negative extension", "huge extension", "huge", "chain of extensions",
         "chain of names", "pax length", "sparse", "gzip", "empty", "zeros"],
)  # fmt: skip
def test_tars_that_lead_astray(tmp_path: Path, data: bytes) -> None:
    """Sizes that lead back for ever, chains without end, more memory than there is: named, at once."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "shard-000000.tar").write_bytes(data)
    described(folder, 1, 1)
    with pytest.raises(UserError, match=r"shard-000000\.tar: "):
        Shard(open_shard_set(str(folder)), 0)


def test_a_video_too_large_is_quarantined(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Shard(make_shards(captions=[1]), 0)
    monkeypatch.setattr("glscl.data.shards.MAX_BYTES", 10)
    with pytest.raises(VideoError, match="more than 0 GiB"):
        shard.read(0)


def test_a_manifest_too_large_is_not_read(make_shards: MakeShards, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = make_shards(captions=[1]).uri
    monkeypatch.setattr("glscl.data.shards.MAX_MANIFEST_BYTES", 10)
    with pytest.raises(UserError, match=r"manifest\.json: \d+ bytes are no shard manifest"):
        open_shard_set(uri)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"pairs": NaN}', "\x00", "\ufeff{}"])
def test_manifests_that_are_no_json(make_shards: MakeShards, text: str) -> None:
    uri = make_shards(captions=[1]).uri
    Path(uri, "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: not (valid JSON|a shard manifest)"):
        open_shard_set(uri)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.9999), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6))
def test_any_damage_to_a_tar_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[float, bytes]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    handmade(folder, [*SOUND, ("1.json", annotation(video_id="b")), ("1.mp4", b"v")], 2, 2)
    data = bytearray((folder / "shard-000000.tar").read_bytes())
    for where, value in damage:
        at = int(where * 4096)  # the four members
        data[at : at + len(value)] = value
    (folder / "shard-000000.tar").write_bytes(data)
    with contextlib.suppress(UserError):
        Shard(open_shard_set(str(folder)), 0).close()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40), st.floats(0, 1))
def test_any_damage_to_a_manifest_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, value: bytes, where: float
) -> None:
    folder = tmp_path_factory.getbasetemp() / "manifested"
    handmade(folder, SOUND, 1, 1)
    data = bytearray((folder / "manifest.json").read_bytes())
    at = int(where * len(data))
    data[at : at + len(value)] = value
    (folder / "manifest.json").write_bytes(data)
    with contextlib.suppress(UserError):
        Shard(open_shard_set(str(folder)), 0).close()


def test_a_negative_size_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "shard-000000.tar").write_bytes(raw_tar(header("0.mp4", NEGATIVE)))
    described(tmp_path, 1, 1)
    with pytest.raises(UserError, match=r"member '0\.mp4' does not follow the one before"):
        Shard(open_shard_set(str(tmp_path)), 0)
