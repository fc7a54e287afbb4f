"""Captions that describe several videos of a set, found and written as a list of relevant videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from glscl.commands.shards_duplicates import run
from glscl.data.duplicates import Duplicates, format_qrels, normalise
from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.evaluation.relevance import read_qrels

TEXTS = {
    0: ("A man sings.", "a dog"),
    1: ("two cats", "a  man sings"),
    2: ("a man sings", "two dogs", "A MAN sings ."),
    3: ("cafe\u0301", "something else"),
    4: ("Caf\u00e9",),
}
WRITTEN = {
    "v000#0": {"v000": 1, "v001": 1, "v002": 1},
    "v001#1": {"v001": 1, "v000": 1, "v002": 1},
    "v002#0": {"v002": 1, "v000": 1, "v001": 1},
    "v002#2": {"v002": 1, "v000": 1, "v001": 1},
    "v003#0": {"v003": 1, "v004": 1},
    "v004#0": {"v004": 1, "v003": 1},
}


@pytest.mark.parametrize("name", ["list.qrels", "list.jsonl"])
def test_duplicates_are_written_as_a_list(tmp_path: Path, make_shards: Callable[..., ShardSet], name: str) -> None:
    shards = make_shards(captions=[1] * 6, per_shard=2, texts=TEXTS)
    output = tmp_path / name
    verdict = run([shards.uri, "--output", str(output)], "glscl shards duplicates")
    assert verdict == f"{shards.uri}: 6 of 11 captions describe several videos, 2 different texts; qrels={output}"
    assert read_qrels(str(output)).grades == WRITTEN


def test_a_set_without_duplicates_writes_nothing(tmp_path: Path, make_shards: Callable[..., ShardSet]) -> None:
    shards = make_shards(captions=[1] * 3)
    verdict = run([shards.uri, "--output", str(tmp_path / "list")], "glscl shards duplicates")
    assert verdict.endswith("0 of 3 captions describe several videos; nothing was written")
    assert not (tmp_path / "list").exists()


def test_same_but_for_case_space_and_full_stop() -> None:
    assert normalise(" A  Man\tsings. ") == normalise("a man sings") == "a man sings"
    assert normalise("a man sings!") != normalise("a man sings")


def test_names_with_spaces_need_json_lines() -> None:
    found = Duplicates({("my video", 0): ("my video", "b")}, 1, 2)
    with pytest.raises(UserError, match="video 'my video#0': a name with a space needs JSON lines"):
        format_qrels(found, json_lines=False)
    assert format_qrels(found, json_lines=True).count("\n") == 2


@pytest.mark.parametrize(("words", "message"), [([], "takes a shard set"), (["set"], "needs --output FILE")])
def test_the_command_asks_for_what_it_needs(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(words, "glscl shards duplicates")
