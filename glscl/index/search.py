"""An index that is open: text to video, video to video, video to text, down to the moment. Nothing of Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from glscl.errors import UserError
from glscl.evaluation.caches import Cache, Caches
from glscl.evaluation.embed import make_scorer
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.similarity import rows_of, similarity_rows
from glscl.index.attention import concept_similarities, frame_weights
from glscl.index.catalogue import Catalogue
from glscl.index.layout import IndexFacts, read_facts
from glscl.index.model_files import check_model
from glscl.index.moment import find_moment
from glscl.index.reading import read_media
from glscl.index.records import Entry, Found, IndexStats, TextFound
from glscl.index.segments import Segments
from glscl.index.vectors_of_videos import video_vectors
from glscl.index.where import Where, compile_where
from glscl.retrieval.model import RetrievalModel, Texts, load
from glscl.retrieval.videos import VideoSource
from glscl.system import storage

Rows = npt.NDArray[np.int64]
BLOCK = 4096
"""Segments that are read and scored at a time."""


class VideoIndex:
    """A library of videos that can be searched; `open_index` opens one.

    It is what the index was when it was opened: what is added or deleted since is seen by whoever opens it anew.

    Attributes:
        folder: where it lies.
        model: that encoded it.
        facts: ``index.json``.
    """

    def __init__(self, folder: str, facts: IndexFacts, model: RetrievalModel) -> None:
        self.folder, self.facts, self.model = folder, facts, model
        self._catalogue = Catalogue.open(folder, facts)
        self._segments = Segments(self._catalogue)

    def __len__(self) -> int:
        return len(self._segments)

    def __repr__(self) -> str:
        return f"<glscl index: {len(self)} segments, {self.folder}, {self.model}>"

    @cached_property
    def stats(self) -> IndexStats:
        """Figures of the index."""
        problems = self._catalogue.problems()
        sizes = (os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(self.folder) for name in names)
        return IndexStats(
            videos=len(self._catalogue.places) - len(problems),
            segments=len(self),
            unusable=problems,
            deleted=sum(part.facts.segments for part in self._catalogue.parts) - len(self),
            seconds=self._segments.seconds,
            bytes=sum(sizes),
            candidates=0,
        )

    def videos(self) -> Iterator[Entry]:
        """All videos that can be found."""
        return self._catalogue.entries()

    def entry(self, video_id: str) -> Entry:
        """A video by its id. Raises `UserError`: there is none in the index."""
        return self._catalogue.entry(video_id)

    def open_media(self, video_id: str) -> tuple[bytes | str, str]:
        """A video's bytes, or the path of its file on this machine; and its media type.

        Raises `UserError`: no such video in the index, its file is gone, or it is stored as pictures or features.
        """
        return read_media(self.entry(video_id).source)

    def search(self, text: str, k: int = 10, where: Where | None = None) -> list[Found]:
        """The ``k`` videos most similar to a text, best first, each with the moment that the text is about.

        Raises `UserError`: no text, ``k`` below 1, or a condition that compares with what is no number.
        """
        if not isinstance(text, str):
            raise UserError(f"search: the text is a string, not {type(text).__name__}")
        return self.search_texts([text], k, where)[0]

    def search_texts(self, texts: Sequence[str], k: int = 10, where: Where | None = None) -> list[list[Found]]:
        """`search` of several texts, which are encoded together."""
        if k < 1:
            raise UserError(f"k is {k}; it must be 1 or more")
        allowed = self._segments.allowed(compile_where(where)) if where else None
        caches = self.model.encode_text(list(texts)).caches.read(range(len(texts)), self.model.device)
        return [self._search(rows_of(caches, range(row, row + 1)), k, allowed) for row in range(len(texts))]

    def _search(self, text: Cache, k: int, allowed: Rows | None) -> list[Found]:
        rows = self._candidates(text, k, allowed)
        scores = self.score_rows(text, rows)
        return [self._describe(video, text) for video in self._segments.best_videos(rows, scores, k)]

    def _candidates(self, text: Cache, k: int, allowed: Rows | None) -> Rows:
        return np.arange(len(self)) if allowed is None else allowed

    @torch.no_grad()
    def score_rows(self, text: Cache, rows: Rows) -> npt.NDArray[np.float32]:
        """The head's scores (R,) of some segments for one text."""
        pieces = []
        for start in range(0, len(rows), BLOCK):
            video = self._segments.gather(rows[start : start + BLOCK], self.model.device)
            pieces.append(self.model.retriever.score(text, video)[0].float().cpu())
        scores = torch.cat(pieces) if pieces else torch.zeros(0)
        if scores.isnan().any():
            raise UserError(f"{self.folder}: a similarity is NaN; the model or the index is damaged")
        return scores.numpy()

    def _describe(self, video: int, text: Cache) -> Found:
        """What is said of a video that was found."""
        rows = self._segments.rows_of(video)
        cache = self._segments.gather(rows, self.model.device)
        with torch.no_grad():
            scores = self.model.retriever.score(text, cache)[0].float().cpu().tolist()
        best = max(range(len(scores)), key=lambda number: (scores[number], -number))
        own = {name: tensor[best : best + 1] for name, tensor in cache.items()}
        times = self._segments.times(int(rows[best]))
        weights = frame_weights(self.model.retriever.head, text, own)
        shown = [] if weights is None else weights[0, : len(times)].cpu().tolist()
        concepts = concept_similarities(text, own)
        edges = [self._segments.edges(int(row)) for row in rows]
        start, end = find_moment(edges, scores, times, shown)
        return Found(
            id=(entry := self._segments.entry(video)).id,
            score=scores[best],
            start=start,
            end=end,
            segment=edges[best],
            times=times,
            weights=tuple(shown),
            concepts=() if concepts is None else tuple(concepts[0].cpu().tolist()),
            entry=entry,
        )

    def search_video(self, source: VideoSource, k: int = 10, where: Where | None = None) -> list[Found]:
        """The ``k`` videos most similar to a video; the moment is the most similar segment.

        The score is the cosine that `glscl.index.vectors_of_videos.video_vectors` describes: of what the head keeps of
        both, from -1 to 1, and not to be compared with a text's. Raises `UserError`: the video cannot be read.
        """
        if k < 1:
            raise UserError(f"k is {k}; it must be 1 or more")
        allowed = self._segments.allowed(compile_where(where)) if where else np.arange(len(self))
        query = self._encode(source)
        vector = video_vectors(query)[0]
        scores = self._vectors(allowed) @ vector
        found = []
        for video in self._segments.best_videos(allowed, scores.numpy(), k):
            rows = self._segments.rows_of(video)
            own = self._vectors(rows) @ vector
            best = int(own.argmax())
            edges, times = self._segments.edges(int(rows[best])), self._segments.times(int(rows[best]))
            entry = self._segments.entry(video)
            found.append(Found(entry.id, float(own[best]), *edges, edges, times, (), (), entry))
        return found

    def find_texts(self, source: VideoSource, texts: Sequence[str] | None = None, k: int = 10) -> list[TextFound]:
        """The ``k`` texts that describe a video best; of the library's captions where none are given.

        Captions are encoded when they are first asked for. Raises `UserError`: the video cannot be read, or the library
        has no captions.
        """
        if k < 1:
            raise UserError(f"k is {k}; it must be 1 or more")
        encoded = self._captions[1] if texts is None else self.model.encode_text(list(texts))
        owners = self._captions[0] if texts is None else [None] * len(encoded)
        if not len(encoded):
            raise UserError(f"{self.folder}: the library has no captions; give texts to choose from")
        video = Caches.of({name: tensor.cpu() for name, tensor in self._encode(source).items()})
        scorer = make_scorer(self.model.retriever.score, encoded.caches, video, EvaluationConfig(), self.model.device)
        scores = similarity_rows(scorer, range(len(encoded)))[:, 0]
        best = torch.argsort(scores, descending=True, stable=True)[:k].tolist()
        return [TextFound(encoded.texts[row], float(scores[row]), owners[row]) for row in best]

    @cached_property
    def _captions(self) -> tuple[list[str | None], Texts]:
        """All captions of the library, and whose they are."""
        pairs = [(entry.id, caption) for entry in self.videos() for caption in entry.captions]
        return [name for name, _ in pairs], self.model.encode_text([caption for _, caption in pairs])

    def _encode(self, source: VideoSource) -> Cache:
        return self.model.encode_video([source]).caches.read(range(1), self.model.device)

    def _vectors(self, rows: Rows) -> Tensor:
        blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
        pieces = [video_vectors(self._segments.gather(block, torch.device("cpu"))).cpu() for block in blocks]
        return torch.cat(pieces) if pieces else torch.zeros(0, 1)


def open_index(folder: str | os.PathLike[str], device: str = "auto") -> VideoIndex:
    """Open an index that `glscl index build` wrote.

    Args:
        folder: of the index, on this machine.
        device: where texts are encoded and candidates are scored; "auto" is the first GPU if there is one.

    Raises:
        UserError: no index there, a file of it is missing or damaged, or its model is another one.
    """
    where = storage.resolve(os.fspath(folder))
    facts = read_facts(where)
    return VideoIndex(where, facts, load(check_model(where, facts.model), device))
