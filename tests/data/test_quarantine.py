"""The list of videos that cannot be used: each once per part, written at once, bounded set by set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from glscl.data.quarantine import (
    FILE,
    Entry,
    Quarantine,
    add_missing_sets,
    describe_incomplete,
    find_incomplete,
    merge_incomplete,
    quarantine_entry,
    read_quarantine,
)
from glscl.data.shards import Shard, ShardSet

MakeShards = Callable[..., ShardSet]


def entries(shard_set: ShardSet, *positions: int, reason: str = "torn") -> list[Entry]:
    found = []
    for position in positions:
        shard = Shard(shard_set, position // 5)
        found.append(quarantine_entry(shard_set, position // 5, shard.samples[position % 5], reason))
        shard.close()
    return found


def test_entries_are_listed_once_per_part_and_written_at_once(
    make_shards: MakeShards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = make_shards("one", captions=[1] * 10), make_shards("two", captions=[1] * 10)
    folder = str(tmp_path / "run")
    quarantine = Quarantine(folder, 1.0, "knob")
    quarantine.take("train", [one, two], [])
    assert read_quarantine(folder) == []
    quarantine.take("train", [one, two], [*entries(one, 0, 7), *entries(two, 3)])
    assert [(e["part"], e["domain"], e["set"]) for e in read_quarantine(folder)] == [
        ("train", "one", one.uri), ("train", "one", one.uri), ("train", "two", two.uri),
    ]  # fmt: skip
    names = [e["video_id"] for e in entries(one, 0, 7)]
    out = capsys.readouterr().out.splitlines()
    assert out == [
        f"quarantined: 2 of 10 videos of training set one/train cannot be used: one/{names[0]} (torn); "
        f"one/{names[1]} (torn); all in {folder}/{FILE}",
        f"quarantined: 1 of 10 videos of training set two/train cannot be used: "
        f"two/{entries(two, 3)[0]['video_id']} (torn); all in {folder}/{FILE}",
    ]
    quarantine.take("train", [one, two], entries(one, 0, 7))  # another rank, or another epoch
    assert len(quarantine.entries) == 3
    assert capsys.readouterr().out == ""
    quarantine.take("train", [one], entries(one, 0, 8))
    assert "3 of 10 videos of training set one/train cannot be used, new are 1: " in capsys.readouterr().out
    quarantine.take("bank", [one], entries(one, 0))  # the same video in another part is another line
    assert [e["part"] for e in read_quarantine(folder)] == ["train"] * 4 + ["bank"]
    assert read_quarantine(folder) == quarantine.entries
    Quarantine(folder, 1.0, "knob").write()
    assert not (tmp_path / "run" / FILE).exists()


def test_only_what_has_a_folder_speaks_and_writes(make_shards: MakeShards, capsys: pytest.CaptureFixture[str]) -> None:
    shards = make_shards(captions=[1] * 5)
    quarantine = Quarantine(None, 0.1, "knob")
    quarantine.take("test", [shards], entries(shards, 1))
    assert capsys.readouterr().out == ""
    assert "knob" in (quarantine.problem("test", [shards]) or "")


def test_each_set_is_bounded_by_itself(make_shards: MakeShards, tmp_path: Path) -> None:
    """A set of which all is broken is not hidden by a large one beside it."""
    large, small = make_shards("large", captions=[1] * 40), make_shards("small", captions=[1] * 10)
    quarantine = Quarantine(str(tmp_path), 0.1, "data.max_bad_fraction")
    quarantine.take("train", [large, small], [*entries(large, 0, 1, 2, 3), *entries(small, 0)])
    assert quarantine.problem("train", [large, small]) is None  # 0.1 of each is allowed
    quarantine.take("validation", [small], entries(small, 1, 2))
    assert quarantine.problem("train", [large, small]) is None
    listed = "; ".join(f"small/{e['video_id']} (torn)" for e in entries(small, 1, 2))
    assert quarantine.problem("validation", [small]) == (
        f"2 of 10 videos of held-out set small/train cannot be used, more than data.max_bad_fraction (0.1): {listed} "
        f"(all in {tmp_path}/{FILE}); mend or remove them, or raise data.max_bad_fraction"
    )
    quarantine.take("train", [large, small], entries(small, 5))
    assert "2 of 10 videos of training set small/train" in (quarantine.problem("train", [large, small]) or "")
    quarantine.take("train", [large], entries(large, *range(4, 40)))
    assert "large/train cannot be used" in (quarantine.problem("train", [large]) or "")
    assert " and 30 more (all in" in (quarantine.problem("train", [large]) or "")


def test_entries_of_old_checkpoints_are_completed(make_shards: MakeShards) -> None:
    one, two = make_shards("one", captions=[1] * 5), make_shards("two", captions=[1] * 5)
    new = {"part": "train", **entries(two, 3)[0]}
    old = {key: new[key] for key in ("domain", "shard", "key", "video_id", "reason")}
    assert add_missing_sets([old, new], [one, two]) == [new, new]
    assert Quarantine(None, 0.0, "knob", add_missing_sets([old, new], [one, two])).entries == [new]


def test_what_results_say_of_a_set(make_shards: MakeShards) -> None:
    shards = make_shards(captions=[1] * 10)
    assert find_incomplete("test", shards, []) is None
    bad = [*entries(shards, 0, 1), *entries(shards, 2, reason="empty file")]
    found = find_incomplete("test", shards, bad)
    assert found is not None
    assert found.model_dump() == {
        "part": "test", "domain": "toy", "split": "train", "shards": shards.uri, "videos": 7, "of": 10,
        "reasons": "2 x torn, 1 x empty file",
    }  # fmt: skip
    rejected = shards.manifest.model_copy(update={"rejected": {"x": "no file", "y": "torn"}})
    built = find_incomplete("validation", ShardSet(shards.uri, rejected), bad)
    assert built is not None
    assert (built.videos, built.of, built.reasons) == (7, 12, "3 x torn, 1 x empty file, 1 x no file")
    assert describe_incomplete([found, built]) == (
        "test set toy/train 7 of 10 videos, held-out set toy/train 7 of 12 videos"
    )
    better = found.model_copy(update={"videos": 9})
    assert merge_incomplete([[built], [better], [found], []]) == [found, built]


def test_names_that_json_lines_must_not_break(make_shards: MakeShards, tmp_path: Path) -> None:
    shards = make_shards(captions=[1] * 5)
    entry = entries(shards, 0)[0] | {"video_id": "a\u2028b\u00e9"}
    Quarantine(str(tmp_path), 1.0, "knob").take("train", [shards], [entry])
    assert read_quarantine(str(tmp_path))[0]["video_id"] == "a\u2028b\u00e9"
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8").split("\n")[0])["part"] == "train"
