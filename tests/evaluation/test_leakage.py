"""Lists of test videos to leave out, and what leaving them out does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glscl.errors import UserError
from glscl.evaluation.caches import Cache, Caches, PairCaches
from glscl.evaluation.embed import Embeddings
from glscl.evaluation.leakage import leakage_lists, leave_out, read_leakage_list
from glscl.evaluation.ranks import text_to_video_ranks
from glscl.system import storage

torch.set_num_threads(1)

OWNERS = [0, 0, 1, 2, 3, 3]


def _caches(text: Cache, video: Cache) -> PairCaches:
    """In pieces of three rows."""
    sides = []
    for cache in (text, video):
        cuts = [{key: tensor.split(3)[n] for key, tensor in cache.items()} for n in range(2)]
        sides.append(Caches.join([Caches.of(piece) for piece in cuts]))
    return PairCaches(*sides, (2, 1, 1, 2))


def _read(caches: Caches) -> Cache:
    return caches.read(range(len(caches)), torch.device("cpu"))


def embeddings() -> Embeddings:
    """Four videos with two, one, one and two captions; every row of every cache is recognisable."""
    return Embeddings(
        caches=_caches(
            {"sentence": torch.arange(6.0)[:, None], "tokens": torch.arange(6.0)[:, None, None].expand(6, 2, 3)},
            {"frames": 10 + torch.arange(4.0)[:, None]},
        ),
        positions=[0, 1, 3, 4],
        video_ids=["a", "b", "v_c", "d"],
        captions=[f"caption {n}" for n in range(6)],
        attributes=[{"n": n} for n in range(4)],
        truncated=2,
        quarantined=[{"domain": "x", "shard": "s", "key": "k", "video_id": "gone", "reason": "broken"}],
        thumbnails=[[bytes([n])] for n in range(4)],
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "# leaked\nb\n\nvideo7.mp4\nb\n"),
        ("list.lst", "b\t0\t4\ttrain9\t1\t5\nvideo7.mp4\t3\t5\ttrain1\t0\t2\nb\t9\t10\ttrain9\t1\t2\n"),
        ("list.csv", "start,video_id\n0,b\n1,video7.mp4\n"),
        ("list.csv", "b,0\nvideo7.mp4,1\n"),
        ("list.tsv", "id\tstart\nb\t0\nvideo7.mp4\t1\n"),
        ("list.json", '["b", "video7.mp4"]'),
        ("list.json", '{"videos": [{"video_id": "b"}, {"video_id": "video7.mp4", "start": 3}]}'),
        ("list.txt", "\ufeffb\r\nvideo7.mp4\r\n"),
    ],
)
def test_reads_every_form(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    assert read_leakage_list(str(path)) == ["b", "video7.mp4"]


def test_reads_from_object_storage(bucket: str) -> None:
    uri = storage.join(bucket, "leaked.json")
    storage.write_bytes(uri, json.dumps(["b"]).encode())
    assert read_leakage_list(uri) == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.txt", b"# nothing\n\n", "names no video"),
        ("list.json", b'{"ids": ["b"]}', "expected a list of names"),
        ("list.json", b"[1, 2]", "expected a list of names"),
        ("list.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("list.csv", b"", "names no video"),
    ],
)
def test_refuses_what_is_no_list(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_leakage_list(str(tmp_path / name))


def test_missing_list(tmp_path: Path) -> None:
    for name in ("none.txt", "none.json"):
        with pytest.raises(UserError, match="no such file"):
            read_leakage_list(str(tmp_path / name))


def test_lists_by_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b.txt").write_text("x\ny\n")
    monkeypatch.chdir(tmp_path)
    lists = leakage_lists(["toy=a=b.txt"], ["other", "toy", "toy"])
    assert {domain: (entry.uri, entry.names) for domain, entry in lists.items()} == {
        "toy": (str(tmp_path / "a=b.txt"), ("x", "y"))
    }
    assert leakage_lists([], []) == {}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["toy_clips"], "leave_out 'toy_clips': expected DOMAIN=FILE"),
        (["=list.txt"], "leave_out '=list.txt': expected DOMAIN=FILE"),
        (["toy_clips="], "leave_out 'toy_clips=': expected DOMAIN=FILE"),
        (
            ["toy_clip=list.txt"],
            r"no test set of domain 'toy_clip', did you mean 'toy_clips'\?; test domains: b, toy_cl",
        ),
        (["toy_clips=gone.txt"], r"leave_out 'toy_clips': /.*/gone\.txt: no such file"),
        (["toy_clips=empty.txt"], "leave_out 'toy_clips': /.*empty.txt: names no video"),
        (["toy_clips=."], "leave_out 'toy_clips': .* cannot be read"),
        (["b=gs://x/list.txt"], "leave_out 'b': gs://x/list.txt: 'gs://' is not supported"),
        (["b=list.txt", "b=list.txt"], "'b' has a list already .*; join the two"),
    ],
)
def test_refuses_what_names_no_list(
    entries: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.txt").write_text("x\n")
    (tmp_path / "empty.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        leakage_lists(entries, ["toy_clips", "b"])


def test_accents_composed_or_apart_are_the_same_name() -> None:
    apart = replace(embeddings(), video_ids=["a", "Cafe\u0301", "v_c", "d"])
    smaller, note = leave_out(apart, ["Caf\u00e9.mp4"])
    assert (smaller.video_ids, note) == (["a", "v_c", "d"], "1 of 1 listed videos left out, and their captions (1).")


def test_drops_videos_with_their_captions() -> None:
    smaller, note = leave_out(embeddings(), ["b", "gone", "nowhere", "b"])
    assert smaller.video_ids == ["a", "v_c", "d"]
    assert smaller.positions == [0, 3, 4]
    assert smaller.captions == ["caption 0", "caption 1", "caption 3", "caption 4", "caption 5"]
    assert smaller.caches.text_to_video.tolist() == [0, 0, 1, 2, 2]
    text, video = _read(smaller.caches.text), _read(smaller.caches.video)
    assert text["sentence"][:, 0].tolist() == [0, 1, 3, 4, 5]
    assert text["tokens"].shape == (5, 2, 3)
    assert video["frames"][:, 0].tolist() == [10, 12, 13]
    assert [row["n"] for row in smaller.attributes] == [0, 2, 3]
    assert smaller.thumbnails == [[b"\0"], [b"\2"], [b"\3"]]
    assert note == (
        "1 of 3 listed videos left out, and their captions (1). 1 could not be decoded and were out already. "
        "1 are no videos of this set (nowhere; its videos are named like a)."
    )


def test_names_as_duplicate_lists_spell_them() -> None:
    """ActivityNet's videos are ``v_...`` in its annotations and ``....mp4`` in the duplicate lists."""
    for name in ("c.mp4", "v_c.webm", "c", "v_c"):
        smaller, note = leave_out(embeddings(), [name])
        assert smaller.video_ids == ["a", "b", "d"]
        assert note == "1 of 1 listed videos left out, and their captions (1)."


def test_nothing_listed_changes_nothing() -> None:
    whole = embeddings()
    smaller, note = leave_out(whole, ["x"])
    assert smaller.video_ids == whole.video_ids
    assert torch.equal(smaller.caches.text_to_video, whole.caches.text_to_video)
    assert note.startswith("0 of 1 listed videos left out")


def test_nothing_remains() -> None:
    with pytest.raises(UserError, match="all 4 videos"):
        leave_out(embeddings(), ["a", "b", "v_c", "d"])


def test_ranks_are_those_of_the_smaller_gallery() -> None:
    """Scoring the smaller set is ranking the matrix without the video's column and its captions' rows."""
    text = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    video = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    similarity = text @ video.T
    smaller, _ = leave_out(replace(embeddings(), caches=_caches({"t": text}, {"v": video})), ["b"])
    matrix = _read(smaller.caches.text)["t"] @ _read(smaller.caches.video)["v"].T
    found = text_to_video_ranks(matrix, smaller.caches.text_to_video).mid
    for caption, rank in zip([0, 1, 3, 4, 5], found.tolist(), strict=True):
        own = similarity[caption, OWNERS[caption]]
        assert rank == 1 + sum(float(similarity[caption, other] > own) for other in (0, 2, 3))
