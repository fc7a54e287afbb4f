"""Shard sets: what is written, what is read back, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl import storage
from glscl.data.build import Encoding, Origin, build_shards
from glscl.data.records import Record
from glscl.data.shards import Shard, ShardSet, describe, open_shard_set, verify_shards
from glscl.errors import UserError

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
            found.append((sample.video_id, sample.captions, shard.video(position)))
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
    told = describe(manifest)
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
    build_shards(records, videos, str(tmp_path / "set"), ORIGIN, samples_per_shard=10, workers=0)
    shard = Shard(open_shard_set(str(tmp_path / "set")), 0)
    samples = {sample.video_id: sample for sample in shard.samples}
    first = samples["../../etc/passwd"]
    assert (first.captions, first.start, first.end) == (ODD, 0.25, 1.5)
    assert first.attributes == {"colour": "röd", "events": [1, {"a": None}]}
    assert samples["日本/動画.mp4"].captions == ("word " * 10_000,)
    assert samples["half ? of a pair"].captions == ("half ? of a pair",)
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as tar:
        assert sorted(tar.getnames()) == [f"0000000{n}.{kind}" for n in range(3) for kind in ("json", "mp4")]


def test_stock_webdataset_reads_the_shards(make_shards: MakeShards) -> None:
    shard_set = make_shards(captions=(2, 1, 3, 1), per_shard=3)
    tars = [shard_set.shard_uri(index) for index in range(2)]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert sorted((s["json"]["video_id"], tuple(s["json"]["captions"]), s["mp4"]) for s in samples) == contents(
        shard_set
    )
    assert {s["json"]["domain"] for s in samples} == {"toy"}


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
    assert shard.video(3)
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
    assert "1 x empty file" in describe(manifest)["rejected"]
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
        build_shards(records, videos, str(tmp_path / "set"), ORIGIN, samples_per_shard=1, workers=0)
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_missing_videos_are_listed(tmp_path: Path, make_video: Callable[..., bytes]) -> None:
    (tmp_path / "a.mp4").write_bytes(make_video())
    videos = {"a": str(tmp_path / "a.mp4")}
    output = str(tmp_path / "set")
    manifest = build_shards(
        [Record("a", ("x",))], videos, output, ORIGIN, samples_per_shard=4, workers=0, missing=["b"]
    )
    assert manifest.rejected == {"b": "no file"}
    assert open_shard_set(output).manifest == manifest


def test_building_refuses(tmp_path: Path, make_shards: MakeShards) -> None:
    with pytest.raises(UserError, match="domain 'own' split 'train' is empty: nothing to write"):
        build_shards([], {}, str(tmp_path / "set"), ORIGIN, samples_per_shard=1, workers=0)
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
    build_shards(records, videos, output, ORIGIN, samples_per_shard=1, workers=0)
    build_shards(records, videos, output, ORIGIN, samples_per_shard=4, workers=0, overwrite=True)
    assert storage.list_names(output) == ["manifest.json", "shard-000000.tar", "shard-000001.tar"]
    assert verify_shards(output) == []
    broken = dict.fromkeys(videos, str(tmp_path / "gone.mp4"))
    with pytest.raises(UserError, match="none of 6"):
        build_shards(records, broken, output, ORIGIN, samples_per_shard=4, workers=0, overwrite=True)
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
        (lambda m: m["shards"][0].update(pairs=-4), "the shards' pairs do not add up"),
        (lambda m: m.update(shards=[], pairs=0, videos=0), "domain 'toy' split 'train' is empty"),
        (lambda m: m.update(format=7), "format 7, this version reads 1"),
        (lambda m: m.pop("domain"), r"not a shard manifest \(domain: Field required\)"),
        (lambda m: m["shards"][1].update(bytes="many"), r"not a shard manifest \(shards\.1\.bytes: "),
        (lambda m: m["shards"][1].update(name="../../x.tar"), r"x\.tar: listed in manifest\.json but not there"),
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
        ([("0.json", annotation()), ("0.exe", b"v")], r"'0\.exe' is neither \.mp4 nor \.json"),
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
    assert verify_shards(shard_set.uri) == [str(caught.value)]


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
        assert len(shard.video(0)) <= len(data)
        shard.close()
    except UserError:
        pass
