"""The first stage hands over what the head ranks highest, whatever the head; filters and what is new are part of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glscl.evaluation.similarity import rows_of
from glscl.index import VideoIndex, build, first_stage, open_index, search
from glscl.index.build import BuildSettings, build_index
from glscl.index.check import check_index
from glscl.index.codes import CodeSearch, encode, fit_levels
from glscl.index.everyday import everyday_texts
from glscl.index.exact import best_rows
from glscl.index.first_stage import fit_first_stage, recall_of
from glscl.index.layout import IndexFacts, next_part, write_facts
from glscl.index.library import Item
from glscl.index.parts import PartWriter
from glscl.index.vectors import to_arrays
from glscl.models import head_names
from glscl.retrieval.model import RetrievalModel, load
from tests.retrieval.test_model import write_run

SEGMENTS, FROM = 400, 100


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first stage from a hundred segments on, which hands over few."""
    monkeypatch.setattr(first_stage, "FROM", FROM)
    monkeypatch.setattr(search, "FROM", FROM)
    monkeypatch.setattr(first_stage, "LEAST_CANDIDATES", 16)


def made_features(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, 3, 32) of the frames of videos of forty topics, and their mask."""
    draw = torch.Generator().manual_seed(seed)
    topics = torch.randn(40, 32, generator=torch.Generator().manual_seed(5))
    topic = topics[torch.randint(40, (count,), generator=draw)]
    frames = topic.unsqueeze(1) + 0.7 * torch.randn(count, 3, 32, generator=draw)
    mask = torch.arange(3) < torch.randint(1, 4, (count, 1), generator=draw)
    return frames, mask


def write_made(folder: Path, run: str, segments: int = SEGMENTS) -> tuple[str, RetrievalModel, IndexFacts]:
    """An index without a first stage, of made features of frames."""
    (folder / "library").mkdir()
    (folder / "library" / "a.mp4").write_bytes(b"none")
    output = str(folder / "index")
    build_index(str(folder / "library"), output, run, BuildSettings())
    facts = open_index(output, "cpu").facts
    model = load(run, "cpu")
    for number in range(2):
        facts = add_part(output, facts, model, number, segments // 2)
    return output, model, facts


def add_part(output: str, facts: IndexFacts, model: RetrievalModel, number: int, count: int) -> IndexFacts:
    """Write one more part of made videos, one segment each."""
    with torch.no_grad():
        cache = model.retriever("video", *made_features(count, number))
    arrays = to_arrays(cache, "fp32")
    writer = PartWriter()
    for row in range(count):
        item = Item(f"{number}-{row:03d}", f"{row}.mp4", "1", metadata={"even": row % 2 == 0})
        writer.add(item, [(0.0, 1.0, (0.1, 0.5, 0.9))], [{name: array[row] for name, array in arrays.items()}])
    facts = facts.model_copy(update={"parts": (*facts.parts, writer.write(output, next_part(facts)))})
    write_facts(output, facts)
    return facts


@pytest.mark.parametrize("head", head_names())
def test_recall_of_every_head(head: str, tmp_path: Path) -> None:
    """With a projection fitted to its scores, a quarter of the segments holds nearly all of the ten best."""
    values: dict[str, Any] = {"head": head}
    if head not in ("glscl", "mean_pool", "wti", "dicosa", "gare", "glccl", "tcmgc", "xpool", "tmass", "xclip"):
        options = {"layers": 1, "attention_heads": 2}
        values["heads"] = {head: options, "glscl": {"queries": 2, "layers": 1, "attention_heads": 2}}
    output, model, facts = write_made(tmp_path, write_run(tmp_path, **values))
    texts = everyday_texts(320)
    cache = model.encode_text(texts).caches.read(range(320), model.device)
    facts, note = fit_first_stage(output, facts, model, rows_of(cache, range(280)))
    assert "recall@10" in note
    write_facts(output, facts)
    index = open_index(output, "cpu")
    assert index.candidates >= 16
    held = rows_of(cache, range(280, 320))
    exact = best_rows(model.retriever.score, held, index._segments, model.device, 10)
    assert index._first is not None
    found = [index._first.search(rows_of(held, range(row, row + 1)), SEGMENTS) for row in range(40)]
    assert recall_of(found, exact, SEGMENTS) == 1
    assert recall_of(found, exact, SEGMENTS // 4) >= 0.9
    best = index.search(texts[300], 3)
    assert [one.id for one in best] == index.best_of_all(rows_of(cache, range(300, 301)), 3)[0]


def test_filters_additions_and_deletions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a filter leaves is searched as by exact scores; what is added is found before and after it has codes."""
    output, model, facts = write_made(tmp_path, write_run(tmp_path))
    cache = model.encode_text(everyday_texts(300)).caches.read(range(300), model.device)
    facts, _ = fit_first_stage(output, facts, model, cache)
    write_facts(output, facts)
    text = "a dog jumps over something"

    def ids(index: VideoIndex, **more: Any) -> list[str]:
        return [one.id for one in index.search(text, 5, **more)]

    index = open_index(output, "cpu")
    index.candidates = 150
    even = ids(index, where={"even": True})
    index.candidates = SEGMENTS
    assert ids(index, where={"even": True}) == even
    assert all(int(name[2:]) % 2 == 0 for name in even)
    before = {path: path.stat().st_mtime_ns for path in Path(output).rglob("*.npy")}
    facts = add_part(output, facts, model, 7, 50)
    bare = open_index(output, "cpu")
    bare.candidates = 150
    facts, note = build.update_first_stage(output, facts, model, ())
    assert not note
    write_facts(output, facts)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    whole = open_index(output, "cpu")
    whole.candidates = 150
    expected = whole.best_of_all(model.encode_text(text).caches.read(range(1), model.device), 5)[0]
    assert ids(bare) == ids(whole) == expected
    build.delete_videos(output, [expected[0]])
    gone = open_index(output, "cpu")
    gone.candidates = 150
    assert ids(gone)[:4] == expected[1:]
    like = gone.search_video(np.asarray(made_features(1, 7)[0][0]), 3)
    assert all(-1 <= one.score <= 1 for one in like)
    report = check_index(gone, everyday_texts(20), k=5)
    assert report.low <= report.recall <= report.high
    assert report.recall >= 0.9


def test_codes_are_searched_as_they_decode() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((500, 16)).astype(np.float32)
    levels = fit_levels(vectors)
    codes = encode(vectors, levels)
    halves = np.stack([codes & 15, codes >> 4], 2).reshape(500, 16)
    decoded = np.stack([levels[column][halves[:, column]] for column in range(16)], 1)
    nearest = np.abs(vectors[:, :, None] - levels[None]).argmin(2)
    assert (nearest == halves).mean() > 0.999
    query = draw.standard_normal(16).astype(np.float32)
    found = CodeSearch(codes, levels).search(query, 20)
    expected = np.argsort(-(decoded @ query))[:20]
    assert len({*found.tolist()} & {*expected.tolist()}) >= 19


def test_without_faiss_every_segment_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, model, facts = write_made(tmp_path, write_run(tmp_path, head="mean_pool"))
    monkeypatch.setattr(first_stage, "has_faiss", lambda: False)
    facts, note = build.update_first_stage(output, facts, model, ())
    assert facts.first is None
    assert "pip install 'glscl[index]'" in note
