"""An index holds what its library does: built, added to, replaced, deleted, killed and continued, damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import glscl
from glscl.data.shards import ShardSet
from glscl.errors import UserError
from glscl.index import build as building
from glscl.index import compaction, encoding, open_index
from glscl.index.attention import concept_similarities, frame_weights
from glscl.index.build import BuildReport, BuildSettings, build_index, delete_videos
from glscl.system import storage
from tests.retrieval.test_model import write_run

TEXTS = ["a red square moves up", "a dog runs on a beach"]


@pytest.fixture
def run(tmp_path: Path) -> str:
    return write_run(tmp_path)


@pytest.fixture
def library(tmp_path: Path, make_video: Callable[..., bytes]) -> Path:
    """Four videos at two depths, one of which is cut into segments, a file that is none, and one that is no video."""
    folder = tmp_path / "library"
    (folder / "deep" / "er").mkdir(parents=True)
    for seed, name in enumerate(["a.mp4", "b.MKV", "deep/c.mp4"]):
        (folder / name).write_bytes(make_video(seed=seed))
    (folder / "deep" / "er" / "long.mp4").write_bytes(make_video([n / 4 for n in range(24)], seed=9))
    (folder / "notes.txt").write_text("nothing")
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments each call of the model has encoded."""
    counts: list[int] = []
    real = encoding.encode_segments

    def count(model: Any, frames: torch.Tensor, mask: torch.Tensor, job: Any) -> Any:
        counts.append(len(frames))
        return real(model, frames, mask, job)

    monkeypatch.setattr(encoding, "encode_segments", count)
    return counts


def build(library: Path | str, output: Path, run: str | None = None, **settings: Any) -> BuildReport:
    settings = {"segment_s": None if run is None else 2.0, "stride_s": None if run is None else 1.0} | settings
    return build_index(str(library), str(output), run, BuildSettings(**settings))


def test_scores_are_those_of_the_model_and_nothing_is_lost(library: Path, tmp_path: Path, run: str) -> None:
    output = tmp_path / "i"
    report = build(library, output, run)
    assert (report.added, report.replaced, report.kept, report.videos) == (4, 0, 0, 4)
    assert list(report.unusable) == ["broken.mp4"]
    index = open_index(output, "cpu")
    assert [entry.id for entry in index.videos()] == ["a.mp4", "b.MKV", "deep/c.mp4", "deep/er/long.mp4"]
    assert index.stats.unusable == report.unusable
    assert "invalid data" in report.unusable["broken.mp4"].lower()
    model = glscl.load(run, "cpu")
    for text in TEXTS:
        found = index.search(text, 3)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        for one in index.search(text, 10):
            moment = glscl.Moment(one.entry.source, *one.segment)
            assert float(model.score(text, [moment])) == pytest.approx(one.score, abs=1e-5)
            assert one.segment[0] <= one.start < one.end or one.end > one.segment[1] - 1e-6
    long = index.entry("deep/er/long.mp4")
    assert long.duration == pytest.approx(6.0, abs=0.5)
    assert len(index) == 3 + 5
    data, kind = index.open_media("b.MKV")
    assert (data, kind) == (str(library / "b.MKV"), "video/x-matroska")
    for unknown in ("broken.mp4", "../notes.txt", "notes.txt", str(library / "a.mp4")):
        with pytest.raises(UserError, match="no video"):
            index.open_media(unknown)


def test_attention_and_concepts_are_those_of_the_segment_that_was_found(
    library: Path, tmp_path: Path, run: str
) -> None:
    build(library, tmp_path / "i", run)
    index, model = open_index(tmp_path / "i", "cpu"), glscl.load(run, "cpu")
    later = 0
    for text in [*TEXTS, "two people talk", "blue", "a man cooks in a kitchen and a child looks on"]:
        words = model.encode_text([text]).caches.read(range(1), model.device)
        for one in index.search(text, 10):
            segment = model.encode_video([glscl.Moment(one.entry.source, *one.segment)]).caches.read(
                range(1), model.device
            )
            weights = frame_weights(model.retriever.head, words, segment)
            concepts = concept_similarities(words, segment)
            assert weights is not None
            assert concepts is not None
            assert one.weights == pytest.approx(weights[0, : len(one.times)].tolist(), abs=1e-6)
            assert one.concepts == pytest.approx(concepts[0].tolist(), abs=1e-6)
            later += one.segment[0] > 0
    assert later, "the best segment of the long video was its first one each time: nothing was told apart"


def test_a_search_imports_no_package_it_does_not_need(library: Path, tmp_path: Path, run: str) -> None:
    build(library, tmp_path / "i", run)
    script = "import sys, glscl; print(len(glscl.open_index(sys.argv[1], 'cpu').search('a dog', k=1))); "
    script += "print([name for name in ('pandas', 'scipy.stats', 'ray') if name in sys.modules])"
    command = [sys.executable, "-c", script, str(tmp_path / "i")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["1", "[]"]


def test_only_what_changed_is_encoded_again(
    library: Path, tmp_path: Path, run: str, make_video: Callable[..., bytes], encoded: list[int]
) -> None:
    output = tmp_path / "i"
    build(library, output, run)
    assert sum(encoded) == 8
    encoded.clear()
    report = build(library, output, run)
    assert (report.added, report.replaced, report.kept, report.segments) == (0, 0, 5, 8)
    assert not encoded
    (library / "a.mp4").write_bytes(make_video(seed=77))
    (library / "new.mp4").write_bytes(make_video(seed=78))
    (library / "broken.mp4").write_bytes(make_video(seed=79))
    (library / "b.MKV").unlink()
    report = build(library, output)
    assert (report.added, report.replaced, report.kept, report.deleted) == (1, 2, 2, 0)
    assert sum(encoded) == 3
    index = open_index(output, "cpu")
    assert len(index) == 10
    expected = float(glscl.load(run, "cpu").score(TEXTS[0], [str(library / "a.mp4")]))
    assert index.search(TEXTS[0], 9, where={"id": "a.mp4"})[0].score == pytest.approx(expected, abs=1e-5)
    report = build(library, output, prune=True)
    assert report.deleted == 1
    assert not any(one.id == "b.MKV" for one in open_index(output, "cpu").search(TEXTS[0], 10))


def test_metadata_change_without_encoding(library: Path, tmp_path: Path, run: str, encoded: list[int]) -> None:
    output, file = tmp_path / "i", tmp_path / "about.jsonl"
    rows = [{"id": "a", "caption": "one", "lang": "en", "year": 2020}, {"video": "b.MKV", "captions": ["x", "y"]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = build(library, output, run, metadata=str(file))
    assert any("no row for 3 of 5" in note for note in report.notes)
    encoded.clear()
    before = [one.score for one in open_index(output, "cpu").search(TEXTS[0], 9)]
    table = tmp_path / "about.csv"
    table.write_text("file,caption,lang,year,good\na.mp4,two,de,2021,true\nb.MKV,x,en,2019.5,false\n")
    report = build(library, output, metadata=str(table))
    assert not encoded
    assert report.replaced == 2
    index = open_index(output, "cpu")
    assert [one.score for one in index.search(TEXTS[0], 9)] == before
    assert index.entry("a.mp4").captions == ("two",)
    assert index.entry("a.mp4").metadata == {"lang": "de", "year": 2021, "good": True}

    def found(**where: Any) -> set[str]:
        return {one.id for one in index.search(TEXTS[0], 1, where=where)}

    assert found(lang="de") == {"a.mp4"}
    assert found(year="<2020") == {"b.MKV"}
    assert found(lang=["de", "fr"]) == {"a.mp4"}
    assert found(good=False) == {"b.MKV"}
    assert found(lang="fr") == set()
    assert {one.id for one in index.search(TEXTS[0], 9, where={"duration": ">4"})} == {"deep/er/long.mp4"}
    with pytest.raises(UserError, match="no number"):
        found(year="<soon")
    texts = index.find_texts(str(library / "a.mp4"), k=5)
    assert {(one.text, one.id) for one in texts} == {("two", "a.mp4"), ("x", "b.MKV")}
    given = index.find_texts(str(library / "a.mp4"), TEXTS)
    scores = glscl.load(run, "cpu").score(TEXTS, [str(library / "a.mp4")])[:, 0]
    assert [one.score for one in given] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-5)


def test_deleted_videos_are_gone_and_their_room_comes_back(library: Path, tmp_path: Path, run: str) -> None:
    output = tmp_path / "i"
    build(library, output, run)
    before = {one.id: one.score for one in open_index(output, "cpu").search(TEXTS[0], 9)}
    assert delete_videos(str(output), ["a.mp4"]) == 1
    index = open_index(output, "cpu")
    assert index.stats.deleted == 1
    del before["a.mp4"]
    assert {one.id: one.score for one in index.search(TEXTS[0], 9)} == pytest.approx(before)
    delete_videos(str(output), ["deep/er/long.mp4"])
    index = open_index(output, "cpu")
    assert index.stats.deleted == 0
    del before["deep/er/long.mp4"]
    assert {one.id: one.score for one in index.search(TEXTS[0], 9)} == pytest.approx(before)
    assert len(os.listdir(output / "parts")) == 1
    with pytest.raises(UserError, match=r"no video 'a\.mp4'"):
        delete_videos(str(output), ["a.mp4"])


def test_a_killed_build_goes_on(
    library: Path, tmp_path: Path, run: str, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was written before nothing is encoded again, and what was half written is not there."""
    output = tmp_path / "i"
    monkeypatch.setattr(building, "PART_SEGMENTS", 1)
    real, seen = building.encode_here, []

    def killed(*arguments: Any) -> Iterator[Any]:
        for segment in real(*arguments):
            if len(seen) == 2:
                (output / "parts" / "unfinished-000009").mkdir()
                (output / "parts" / "000009").mkdir()
                raise KeyboardInterrupt
            seen.append(segment)
            yield segment

    monkeypatch.setattr(building, "encode_here", killed)
    with pytest.raises(KeyboardInterrupt):
        build(library, output, run, batch_size=1)
    half = open_index(output, "cpu")
    assert [entry.id for entry in half.videos()] == ["a.mp4"]
    monkeypatch.setattr(building, "encode_here", real)
    encoded.clear()
    assert build(library, output, batch_size=1).added == 3
    assert sum(encoded) == 7
    assert "000009" not in os.listdir(output / "parts")
    monkeypatch.setattr(compaction, "MOST_SMALL", 1)
    scores = {one.id: one.score for one in open_index(output, "cpu").search(TEXTS[0], 9)}
    build(library, output)
    assert len(os.listdir(output / "parts")) == 1
    assert {one.id: one.score for one in open_index(output, "cpu").search(TEXTS[0], 9)} == pytest.approx(scores)


def test_an_index_of_shards(tmp_path: Path, run: str, make_shards: Callable[..., ShardSet]) -> None:
    shard_set = make_shards(captions=(1, 2, 1), per_shard=2, bad={1: b"torn"})
    report = build(shard_set.uri, tmp_path / "i", run)
    assert (report.videos, list(report.unusable)) == (3, []) or list(report.unusable) == ["v001"]
    index = open_index(tmp_path / "i", "cpu")
    entry = next(iter(index.videos()))
    assert entry.captions == ("v000 text 0",)
    data, kind = index.open_media(entry.id)
    assert isinstance(data, bytes)
    assert kind == "video/mp4"
    expected = float(glscl.load(run, "cpu").score(TEXTS[0], [data]))
    assert index.search(TEXTS[0], 5, where={"id": entry.id})[0].score == pytest.approx(expected, abs=1e-5)


def test_an_index_of_a_bucket(tmp_path: Path, run: str, bucket: str, make_video: Callable[..., bytes]) -> None:
    for seed in range(2):
        storage.write_bytes(f"{bucket}/clips/x/{seed}.mp4", make_video(seed=seed))
    assert build(f"{bucket}/clips", tmp_path / "i", run).added == 2
    index = open_index(tmp_path / "i", "cpu")
    data, kind = index.open_media("x/1.mp4")
    assert data == make_video(seed=1)
    assert build(f"{bucket}/clips", tmp_path / "i").kept == 2
    with pytest.raises(UserError, match="local disk"):
        build(f"{bucket}/clips", f"{bucket}/i", run)  # type: ignore[arg-type]
    assert kind == "video/mp4"


@pytest.mark.parametrize(("precision", "most"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_fewer_bits_cost_little(precision: str, most: float, library: Path, tmp_path: Path, run: str) -> None:
    build(library, tmp_path / "full", run)
    build(library, tmp_path / "small", run, precision=precision)
    full, small = (open_index(tmp_path / name, "cpu") for name in ("full", "small"))
    exact = {one.id: one.score for one in full.search(TEXTS[0], 9)}
    found = {one.id: one.score for one in small.search(TEXTS[0], 9)}
    difference = max(abs(exact[name] - found[name]) for name in exact)
    assert 0 < difference < most
    sizes = [sum(file.stat().st_size for file in (tmp_path / n / "parts").rglob("*.npy")) for n in ("full", "small")]
    assert sizes[1] < 0.7 * sizes[0]
    with pytest.raises(UserError, match="--precision"):
        build(library, tmp_path / "small", precision="fp32")


def test_damage_is_one_line(library: Path, tmp_path: Path, run: str) -> None:
    output = tmp_path / "i"
    with pytest.raises(UserError, match="no such file; `glscl index build"):
        open_index(output)
    build(library, output, run)
    broken = tmp_path / "broken"

    def damaged(change: Callable[[Path], object]) -> Path:
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(output, broken)
        change(broken)
        return broken

    part = next(Path("parts") / name for name in os.listdir(output / "parts"))
    cut = damaged(lambda folder: os.truncate(folder / part / "concepts.npy", 100))
    with pytest.raises(UserError, match=r"concepts\.npy: 100 bytes where index\.json says"):
        open_index(cut)
    with pytest.raises(UserError, match=r"segments\.parquet: missing"):
        open_index(damaged(lambda folder: (folder / part / "segments.parquet").unlink()))

    def another_model(folder: Path) -> None:
        (tmp_path / "other").mkdir()
        other = write_run(tmp_path / "other", head="mean_pool")
        shutil.rmtree(folder / "model")
        shutil.copytree(Path(other) / "model", folder / "model")

    with pytest.raises(UserError, match="another model than the one that encoded"):
        open_index(damaged(another_model))
    with pytest.raises(UserError, match="format 99, this version reads 1"):
        open_index(damaged(lambda folder: (folder / "index.json").write_text('{"format": 99}')))
    with pytest.raises(UserError, match="of another model than"):
        build(library, output, str(tmp_path / "other" / "run"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video in it"):
        build(tmp_path / "empty", tmp_path / "j", run)


def test_nothing_is_pickled(library: Path, tmp_path: Path, run: str) -> None:
    build(library, tmp_path / "i", run)
    kinds = {file.suffix for file in (tmp_path / "i").rglob("*") if file.is_file() and "owner" not in file.parts}
    assert kinds <= {".json", ".parquet", ".npy", ".safetensors", ".md"}
    for file in (tmp_path / "i").rglob("*.npy"):
        np.load(file, allow_pickle=False)
