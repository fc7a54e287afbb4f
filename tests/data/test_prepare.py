"""One call from annotations to shard sets, with a held-out part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from glscl.data.build import BuildOptions
from glscl.data.prepare import Source, prepare
from glscl.data.shards import Manifest, Shard, open_shard_set
from glscl.errors import UserError


@pytest.fixture
def build(tmp_path: Path, make_video: Callable[..., bytes]) -> Callable[..., list[Manifest]]:
    folder = tmp_path / "videos"
    folder.mkdir()
    rows = []
    for number in range(12):
        (folder / f"clip{number}.mp4").write_bytes(make_video(seed=number))
        rows.append({"video_id": f"clip{number}", "captions": [f"caption {number}"]})

    def call(output: str, hold_out: int, order: int = 1, seed: int = 0) -> list[Manifest]:
        annotations = tmp_path / "annotations.jsonl"
        annotations.write_text("\n".join(json.dumps(row) for row in rows[::order]))
        source = Source(
            benchmark="jsonl",
            annotations=str(annotations),
            split="train",
            videos=str(folder),
            domain="mine",
            hold_out=hold_out,
        )
        return prepare(source, str(tmp_path / output), BuildOptions(samples_per_shard=4, seed=seed, workers=0))[0]

    return call


def ids(folder: Path) -> set[str]:
    shard_set = open_shard_set(str(folder))
    return {
        sample.video_id for index in range(len(shard_set.manifest.shards)) for sample in Shard(shard_set, index).samples
    }


def test_held_out_videos_are_apart_and_depend_on_ids_and_seed_alone(
    build: Callable[..., list[Manifest]], tmp_path: Path
) -> None:
    rest, held_out = build("a", 3)
    assert (rest.videos, held_out.videos, held_out.split) == (9, 3, "train-held-out")
    apart = ids(tmp_path / "a-held-out")
    assert apart | ids(tmp_path / "a") == {f"clip{n}" for n in range(12)}
    build("b", 3, order=-1)
    assert ids(tmp_path / "b-held-out") == apart
    build("c", 3, seed=1)
    assert ids(tmp_path / "c-held-out") != apart


def test_without_hold_out_there_is_one_set(build: Callable[..., list[Manifest]], tmp_path: Path) -> None:
    (only,) = build("a", 0)
    assert only.videos == 12
    assert not (tmp_path / "a-held-out").exists()


def test_holding_everything_out_is_refused(build: Callable[..., list[Manifest]]) -> None:
    with pytest.raises(UserError, match="--hold-out is 12"):
        build("a", 12)
