"""The first stage: a search over compact projections that hands candidates to the head.

It is fitted once an index outgrows what the head scores by itself, to captions of the library, texts that are given, or
sentences of everyday videos where both are few. What is added later is projected by the same maps; nothing is rebuilt.
How many candidates the head gets is measured on texts that the fit has not seen.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from glscl.evaluation.caches import Cache
from glscl.evaluation.similarity import rows_of
from glscl.index.catalogue import Catalogue
from glscl.index.codes import Codes, CodeSearch, Floats, encode, fit_levels, has_faiss
from glscl.index.everyday import everyday_texts
from glscl.index.exact import best_rows
from glscl.index.layout import FIRST, FirstFacts, IndexFacts, check_files, sizes_of
from glscl.index.projections import PAIRED, Projection, fit_paired, fit_references
from glscl.index.segments import Segments
from glscl.index.vectors import StoredVectors, write_arrays
from glscl.retrieval.model import RetrievalModel

FROM = 5000
"""Segments from which on there is a first stage."""
WIDTH = 128
"""Numbers of a projection, of four bits each."""
TEXTS = 2048
"""Texts that it is fitted to at most."""
SEGMENTS = 8192
"""Segments that it is fitted to at most."""
HELD_OUT = 64
"""Texts that recall is measured on at most."""
RECALL = 0.99
LEAST_CANDIDATES, MOST_CANDIDATES = 128, 1 << 15
_PAIRS = 2e8
"""Texts times segments that are scored at most to measure recall, over the multiply-adds of a pair in thousands."""
_BLOCK = 4096
_KEPT_FILTERS = 4
"""Searches over what filters leave, the newest of which are kept."""
_KINDS = {"paired": fit_paired, "references": fit_references}
Rows = npt.NDArray[np.int64]


class FirstStage:
    """An open first stage.

    Attributes:
        facts: what index.json says of it.
        projection: of texts and segments.
        levels: of the codes.
    """

    def __init__(
        self, facts: FirstFacts, projection: Projection, levels: Floats, codes: Codes, coded: Rows, segments: int
    ) -> None:
        self.facts, self.projection, self.levels, self._codes = facts, projection, levels, codes
        self._place = np.full(segments, -1)
        self._place[coded] = np.arange(len(coded))
        self._all = np.arange(segments)
        self._searches: dict[bytes, tuple[CodeSearch | None, Rows, Rows]] = {}

    @classmethod
    def open(cls, folder: str, facts: FirstFacts, catalogue: Catalogue, model: RetrievalModel) -> FirstStage:
        """Open it. Raises `UserError`: a file is missing or of another size."""
        where = os.path.join(folder, facts.folder)
        check_files(where, facts.files)
        levels = np.load(os.path.join(where, "levels.npy"), allow_pickle=False)
        codes, coded, first = [np.zeros((0, facts.width // 2), np.uint8)], [np.zeros(0, np.int64)], 0
        for part, live in zip(catalogue.parts, catalogue.live, strict=True):
            if (name := f"{part.facts.name}.npy") in facts.files:
                codes.append(np.load(os.path.join(where, name), mmap_mode="r", allow_pickle=False)[live])
                coded.append(first + np.arange(len(live)))
            first += len(live)
        projection = _read_projection(where, model)
        return cls(facts, projection, levels, np.concatenate(codes), np.concatenate(coded), first)

    def search(self, text: Cache, count: int, allowed: Rows | None = None) -> Rows:
        """The best ``count`` segments for a text (leading dimension 1) by their codes, best first.

        Behind them come those that have no code yet, because a build was killed or is going on.
        """
        return self.search_vector(self.projection.of_text(text)[0].numpy(), count, allowed)

    def search_vector(self, vector: Floats, count: int, allowed: Rows | None = None) -> Rows:
        """`search` for a projected query (M,)."""
        key = b"" if allowed is None else allowed.tobytes()
        if key not in self._searches:
            if len(self._searches) >= _KEPT_FILTERS:
                del self._searches[next(iter(self._searches))]
            rows = self._all if allowed is None else allowed
            place = self._place[rows]
            coded, rest = rows[place >= 0], rows[place < 0]
            search = CodeSearch(self._codes[place[place >= 0]], self.levels) if len(coded) else None
            self._searches[key] = search, coded, rest
        search, coded, rest = self._searches[key]
        found = coded[search.search(vector, count)] if search is not None else coded
        return np.concatenate([found, rest])


def update_first_stage(
    folder: str, facts: IndexFacts, model: RetrievalModel, texts: Sequence[str], *, refit: bool = False
) -> tuple[IndexFacts, str]:
    """Fit the first stage where an index has outgrown the head, or project what is new; and a note for the user."""
    catalogue = Catalogue.open(folder, facts)
    segments = Segments(catalogue)
    if len(segments) < FROM:
        return facts.model_copy(update={"first": None}), ""
    if not has_faiss():
        return facts.model_copy(update={"first": None}), (
            f"{len(segments):,} segments without a first stage: every search scores all of them; "
            "pip install 'glscl[index]' and build again"
        )
    if facts.first is not None and not refit:
        return _extend(folder, facts, catalogue, model), ""
    given = [*texts, *(caption for entry in catalogue.entries() for caption in entry.captions)]
    chosen = _sample(given, TEXTS + HELD_OUT)
    if len(chosen) < TEXTS // 2:
        chosen = _sample([*chosen, *everyday_texts(TEXTS)], TEXTS + HELD_OUT)
    encoded = model.encode_text(chosen).caches.read(range(len(chosen)), model.device)
    return fit_first_stage(folder, facts, model, encoded)


def fit_first_stage(folder: str, facts: IndexFacts, model: RetrievalModel, texts: Cache) -> tuple[IndexFacts, str]:
    """Fit a first stage to encoded texts, of which some are held out to measure its recall.

    Of the kinds that can be, the one that needs the fewest candidates stays.
    """
    catalogue = Catalogue.open(folder, facts)
    segments = Segments(catalogue)
    held_out = min(HELD_OUT, len(next(iter(texts.values()))) // 4)
    held, fitted = rows_of(texts, range(held_out)), rows_of(texts, range(held_out, len(next(iter(texts.values())))))
    rows = np.sort(np.random.default_rng(0).permutation(len(segments))[:SEGMENTS])
    sampled = segments.gather(np.random.default_rng(1).permutation(rows), model.device)
    head, score = model.retriever.head, model.retriever.score
    held = rows_of(held, range(max(4, min(held_out, int(_PAIRS / _cost(model) / len(segments))))))
    exact = best_rows(score, held, segments, model.device, 10)
    best: FirstFacts | None = None
    number = 1 + (int(facts.first.folder.removeprefix(FIRST)) if facts.first is not None else 0)
    for kind in ("paired", "references") if head.name in PAIRED else ("references",):
        if best is not None and best.recall >= RECALL and best.candidates <= 8 * LEAST_CANDIDATES:
            break
        name = f"{FIRST}{number}"
        number += 1
        projection = _KINDS[kind](head, score, fitted, sampled, WIDTH)
        _write(os.path.join(folder, name), projection, catalogue, model, sampled)
        unmeasured = FirstFacts(
            folder=name, width=projection.width, candidates=0, recall=0.0, files=sizes_of(os.path.join(folder, name))
        )
        stage = FirstStage.open(folder, unmeasured, catalogue, model)
        found = _calibrate(stage, held, exact, len(segments))
        if best is None or (found.recall >= RECALL, -found.candidates) > (best.recall >= RECALL, -best.candidates):
            best = found
    assert best is not None
    note = f"first stage: {best.candidates:,} candidates, recall@10 {best.recall:.4f} on {len(exact)} texts"
    if best.recall < RECALL:
        note += f"; that is below {RECALL:g}: see `glscl index check`"
    return facts.model_copy(update={"first": best}), note


def _cost(model: RetrievalModel) -> float:
    """Thousands of multiply-adds of a pair."""
    config = model.card.model
    return max(4.0, model.retriever.head.multiply_adds(config.max_words, config.max_frames) / 1000)


def _sample(texts: Sequence[str], most: int) -> list[str]:
    """Some of the texts, each once, in an order drawn at random."""
    different = list(dict.fromkeys(texts))
    return [different[row] for row in np.random.default_rng(0).permutation(len(different))[:most]]


def _calibrate(stage: FirstStage, texts: Cache, exact: list[Rows], segments: int) -> FirstFacts:
    """The fewest candidates, doubled from the least, among which are nearly all of the ten best of held-out texts."""
    most = min(MOST_CANDIDATES, segments)
    found = [stage.search(rows_of(texts, range(row, row + 1)), most) for row in range(len(exact))]
    count = LEAST_CANDIDATES
    while (recall := recall_of(found, exact, count)) < RECALL and count < most:
        count = min(2 * count, most)
    return stage.facts.model_copy(update={"candidates": count, "recall": recall})


def recall_of(found: Sequence[Rows], exact: Sequence[Rows], count: int) -> float:
    """Share of the exact rows that are among the first ``count`` found."""
    return float(np.mean([np.isin(best, some[:count]).mean() for some, best in zip(found, exact, strict=True)]))


def _write(where: str, projection: Projection, catalogue: Catalogue, model: RetrievalModel, sampled: Cache) -> None:
    """Write a first stage and the codes of all segments."""
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    write_arrays(where, projection.arrays)
    for name, cache in (("references", projection.references), ("anchors", projection.anchors)):
        if cache is not None:
            write_arrays(where, {f"{name}.{key}": value.cpu().numpy() for key, value in cache.items()})
    levels = fit_levels(_project(projection, sampled))
    write_arrays(where, {"levels": levels})
    for number in range(len(catalogue.parts)):
        _write_codes(where, number, catalogue, model, projection, levels)


@torch.no_grad()
def _project(projection: Projection, cache: Cache) -> Floats:
    total = len(next(iter(cache.values())))
    blocks = [projection.of_videos(rows_of(cache, range(at, at + _BLOCK))) for at in range(0, total, _BLOCK)]
    vectors: Floats = torch.cat(blocks).numpy()
    return vectors


@torch.no_grad()
def _write_codes(
    where: str, number: int, catalogue: Catalogue, model: RetrievalModel, projection: Projection, levels: Floats
) -> None:
    """Write the codes of all segments of a part, those that no longer count included."""
    part = catalogue.parts[number]
    codes = np.zeros((part.facts.segments, len(levels) // 2), np.uint8)
    for start in range(0, len(codes), _BLOCK):
        assert isinstance(part.vectors, StoredVectors)
        block = part.vectors.read(range(start, min(start + _BLOCK, len(codes))))
        block = {name: tensor.to(model.device) for name, tensor in block.items()}
        codes[start : start + _BLOCK] = encode(projection.of_videos(block).numpy(), levels)
    write_arrays(where, {part.facts.name: codes})


def _extend(folder: str, facts: IndexFacts, catalogue: Catalogue, model: RetrievalModel) -> IndexFacts:
    """Project the parts that are new; forget those that are gone."""
    assert facts.first is not None
    where = os.path.join(folder, facts.first.folder)
    projection = _read_projection(where, model)
    levels = np.load(os.path.join(where, "levels.npy"), allow_pickle=False)
    for number, part in enumerate(catalogue.parts):
        if f"{part.facts.name}.npy" not in facts.first.files:
            _write_codes(where, number, catalogue, model, projection, levels)
    names = {f"{part.facts.name}.npy" for part in catalogue.parts}
    files = {name: size for name, size in sizes_of(where).items() if not name[0].isdigit() or name in names}
    first = facts.first.model_copy(update={"files": files})
    return facts.model_copy(update={"first": first})


def _read_projection(where: str, model: RetrievalModel) -> Projection:
    names = ("video_map", "query_map", "means")
    arrays = {name: np.load(os.path.join(where, f"{name}.npy"), allow_pickle=False) for name in names}
    caches: list[Cache | None] = []
    for name in ("references", "anchors"):
        files = [file for file in sorted(os.listdir(where)) if file.startswith(f"{name}.")]
        cache = {
            file.removeprefix(f"{name}.").removesuffix(".npy"): torch.from_numpy(
                np.load(os.path.join(where, file), allow_pickle=False)
            ).to(model.device)
            for file in files
        }
        caches.append(cache or None)
    return Projection(model.retriever.head, model.retriever.score, arrays, *caches)
