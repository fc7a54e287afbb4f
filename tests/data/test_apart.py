"""Nothing is chosen on what is tested or trained on; sets of one domain have names of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glscl.data import apart
from glscl.data.apart import NamedSet, check_held_out, check_not_trained, distinct_names, is_test_split, video_ids
from glscl.data.build import BuildOptions, Origin, build_shards
from glscl.data.records import Record
from glscl.data.shards import ShardSet, open_shard_set, verify_shards
from glscl.errors import UserError

MakeSet = Callable[..., ShardSet]


@pytest.fixture
def make_set(make_shards: MakeSet, tmp_path: Path) -> MakeSet:
    """A set of the videos v000, v001 ... with some ids replaced and any manifest."""

    def make(folder: str, videos: int = 3, per_shard: int = 2, **changes: Any) -> ShardSet:
        made = make_shards("msrvtt", captions=(1,) * videos, per_shard=per_shard, root=str(tmp_path / folder))
        path = Path(made.uri) / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return open_shard_set(made.uri)

    return make


def named(key: str, shard_set: ShardSet) -> list[NamedSet]:
    return [NamedSet(f"data.{key}", shard_set)]


def test_shared_videos_are_found_whatever_sets_they_are_in(make_set: MakeSet) -> None:
    train = make_set("train", split="train", video_ids=["a", "b", "c"])
    held_out = make_set("dev", split="dev", per_shard=3, video_ids=["d", "e", "f"])
    test = make_set("1k", split="1k_a", per_shard=1, video_ids=["g", "h", "i"])
    assert check_held_out(named("validation", held_out), named("train", train), named("test", test)) == []
    wrong = make_set("wrong", 5, split="1k", per_shard=4, video_ids=["i", "x", "h", "g", "\u00e9"])
    with pytest.raises(UserError, match=r"^data\.validation: \S+wrong/msrvtt shares 3 videos of 5 with ") as told:
        check_held_out(named("validation", wrong), named("train", train), named("test", test))
    assert f"data.test: {test.uri} (g, h, i); choose on a held-out part" in str(told.value)
    assert "--hold-out" in str(told.value)
    more = make_set("more", 4, split="all", per_shard=4, video_ids=["g", "h", "i", "c"])
    with pytest.raises(UserError, match=r"shares 1 video of 4 with data\.train: \S+ \(c\); choose"):
        check_held_out(named("validation", more), named("train", train), named("test", held_out))
    four = make_set("four", 4, split="other", video_ids=["c", "i", "h", "g"])
    with pytest.raises(UserError, match=r"shares 4 videos .*\(c, g, h, \.\.\.\)"):
        check_held_out(named("validation", more), [], named("test", four))
    with pytest.raises(UserError, match=r"data\.test: \S+ shares 1 video .* with data\.train: .*; leave it out"):
        check_not_trained(named("test", more), named("train", train), "leave it out")
    with pytest.raises(UserError, match=r"data\.test: \S+ is also in data\.train: .*; leave it out"):
        check_not_trained(named("test", train), named("train", train), "leave it out")


def test_the_same_set_and_the_same_name_are_found(make_set: MakeSet) -> None:
    one, other = (
        make_set("one", split="1k_a", video_ids=["a", "b", "c"]),
        make_set("two", split="dev", video_ids=list("def")),
    )
    with pytest.raises(UserError, match=r"data\.validation: \S+ is also in data\.test: "):
        check_held_out(named("validation", one), named("train", one), named("test", one))
    with pytest.raises(UserError, match=r"data\.validation: \S+ is also in data\.train: "):
        check_held_out(named("validation", one), named("train", one), [])
    again = make_set("again", split="1k_a", per_shard=3, video_ids=list("xyz"))  # built once more, other shards
    with pytest.raises(UserError, match=r"is msrvtt/1k_a, and so is data\.test: \S+one"):
        check_held_out(named("validation", again), [], named("test", one))
    check_held_out(named("validation", again), named("train", one), named("test", other))
    test = make_set("test", split="test_1k", video_ids=list("uvw"))
    with pytest.raises(UserError, match=r"is the test split msrvtt/test_1k; choose"):
        check_held_out(named("validation", test), [], [])


def test_ids_of_another_domain_name_other_videos(make_set: MakeSet, make_shards: MakeSet) -> None:
    one, other = make_set("one", split="dev"), make_shards("msvd", captions=(1,) * 3)
    assert video_ids(one) == video_ids(other) == {"v000", "v001", "v002"}
    assert check_held_out(named("validation", one), named("train", other), named("test", other)) == []


def test_sets_of_older_versions_are_read_if_that_is_cheap(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = make_set("old", split="dev", video_ids=[]), make_set("new", split="1k_a", per_shard=3)
    assert old.manifest.video_ids == ()
    with pytest.raises(UserError, match=r"shares 3 videos of 3 with .*\(v000, v001, v002\)"):
        check_held_out(named("validation", old), [], named("test", new))
    apart._video_ids.cache_clear()
    monkeypatch.setattr(apart, "MOST_READ", 2)
    (note,) = check_held_out(named("validation", old), [], named("test", new))
    assert note == (
        f"data.validation was not compared with data.test: the manifest of {old.uri} lists no ids (build the shards "
        "again)"
    )
    (note,) = check_held_out(named("validation", new), named("train", old), [])
    assert f"the manifest of {old.uri}" in note
    apart._video_ids.cache_clear()


def test_no_tar_of_a_remote_set_is_read(make_shards: MakeSet, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_shards("msrvtt", captions=(1,) * 3, root=bucket)
    monkeypatch.setattr(apart, "Shard", None)
    assert video_ids(made) == {"v000", "v001", "v002"}


def test_a_built_set_lists_the_videos_that_are_in_it(make_shards: MakeSet, tmp_path: Path) -> None:
    made = make_shards("toy", captions=(1, 2, 1, 1), per_shard=2, bad={1: b""})
    stored = [sample.video_id for index in range(2) for sample in apart.Shard(made, index).samples]
    assert list(made.manifest.video_ids) == stored
    assert sorted(stored) == ["v000", "v002", "v003"]
    assert verify_shards(made.uri) == []


def test_a_list_of_other_length_is_not_believed(make_set: MakeSet) -> None:
    assert video_ids(make_set("odd", split="odd", video_ids=["a"])) == {"v000", "v001", "v002"}


def test_ids_are_written_as_the_tars_have_them(tmp_path: Path, make_video: Callable[..., bytes]) -> None:
    """A lone surrogate, which JSON annotations may hold, is no UTF-8."""
    path = tmp_path / "video.mp4"
    path.write_bytes(make_video())
    records = [Record("a\ud83d", ("text",)), Record("b", ("text",))]
    videos = {record.video_id: str(path) for record in records}
    origin = Origin("toy", "train", "test", 1, ())
    build_shards(records, videos, str(tmp_path / "out"), origin, BuildOptions(samples_per_shard=2, workers=0))
    made = open_shard_set(str(tmp_path / "out"))
    assert video_ids(made) == {sample.video_id for sample in apart.Shard(made, 0).samples} == {"a?", "b"}


@pytest.mark.parametrize(
    ("domain", "split", "refused"),
    [
        ("msvd", "test", True),
        ("msrvtt", "test_1k_a", True),
        ("msrvtt", "JSFusion-TEST", True),
        ("activitynet", "val_1", True),
        ("activitynet", "train", False),
        ("msvd", "val_1", False),
        ("msvd", "contest", False),
        ("msvd", "val", False),
    ],
)
def test_which_splits_are_tests(make_shards: MakeSet, domain: str, split: str, refused: bool) -> None:
    manifest = make_shards("toy", captions=(1,)).manifest
    assert is_test_split(manifest.model_copy(update={"domain": domain, "split": split})) is refused
    renamed = manifest.model_copy(update={"domain": "mine", "reader": domain, "split": split})
    assert is_test_split(renamed) is refused


def test_names_tell_sets_apart(make_shards: MakeSet) -> None:
    made = make_shards("toy", captions=(1,))

    def names(*sets: tuple[str, str]) -> list[str]:
        split = [ShardSet(uri, made.manifest.model_copy(update={"split": split})) for uri, split in sets]
        return distinct_names(split)

    assert names(("/a/one", "test"), ("/a/two", "dev")) == ["toy/test", "toy/dev"]
    assert names(("/a/one", "test"), ("/a/two/", "test"), ("/a/three", "dev")) == [
        "toy/test (one)",
        "toy/test (two)",
        "toy/dev",
    ]
    assert names(("/a/one", "test"), ("/b/one", "test")) == ["toy/test (/a/one)", "toy/test (/b/one)"]
    assert names(("/a", "test"), ("/a", "test"), ("/b", "x")) == [
        "toy/test (/a), number 1",
        "toy/test (/a), number 2",
        "toy/x",
    ]
    assert names() == []
