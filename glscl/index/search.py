"""An index that is open: text to video, video to video, video to text, down to the moment. Nothing of Ray."""

from __future__ import annotations

import itertools
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
from glscl.index.codes import Floats
from glscl.index.exact import BLOCK, score_blocks
from glscl.index.first_stage import FROM, FirstStage
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


class VideoIndex:
    """A library of videos that can be searched; `open_index` opens one.

    It is what the index was when it was opened: what is added or deleted since is seen by whoever opens it anew.

    Attributes:
        folder: where it lies.
        model: that encoded it.
        facts: ``index.json``.
        candidates: segments that the first stage hands to the head; may be set. Without a first stage it is 0.
    """

    def __init__(self, folder: str, facts: IndexFacts, model: RetrievalModel) -> None:
        self.folder, self.facts, self.model = folder, facts, model
        self._catalogue = Catalogue.open(folder, facts)
        self._segments = Segments(self._catalogue)
        first = facts.first
        self._first = None if first is None else FirstStage.open(folder, first, self._catalogue, model)
        self.candidates = 0 if first is None else first.candidates

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
            candidates=self.candidates,
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

    def search_encoded(self, text: Cache, k: int = 10) -> list[Found]:
        """`search` for what the head keeps of one text (leading dimension 1), on the model's device."""
        return self._search(text, k, None)

    def _search(self, text: Cache, k: int, allowed: Rows | None) -> list[Found]:
        rows = self._candidates(text, k, allowed)
        videos = self._segments.best_videos(rows, self.score_rows(text, rows), k)
        if not videos:
            return []
        groups = [self._segments.rows_of(video) for video in videos]
        cache = self._segments.gather(np.concatenate(groups), self.model.device)
        with torch.no_grad():
            scores = self.model.retriever.score(text, cache)[0].float().cpu()
        sizes = [len(own) for own in groups]
        pieces = scores.split(sizes)
        heaviest = [int(piece.argmax()) for piece in pieces]  # of equals, the first
        starts = itertools.accumulate(sizes[:-1], initial=0)
        best = [start + own for start, own in zip(starts, heaviest, strict=True)]
        of_best = {name: tensor[best] for name, tensor in cache.items()}
        weights = frame_weights(self.model.retriever.head, text, of_best)
        concepts = concept_similarities(text, of_best)
        shown = [[]] * len(best) if weights is None else weights.tolist()
        cosines = [[]] * len(best) if concepts is None else concepts.tolist()
        return [
            self._describe(video, own, piece.tolist(), *rest)
            for video, own, piece, *rest in zip(videos, groups, pieces, heaviest, shown, cosines, strict=True)
        ]

    def _candidates(self, text: Cache, k: int, allowed: Rows | None) -> Rows:
        """The segments that the head scores: all that may be found, or those that the first stage hands over."""
        left = len(self) if allowed is None else len(allowed)
        if self._first is None or left <= max(FROM, self.candidates):
            return np.arange(left) if allowed is None else allowed
        return self._hand_over(self._first.projection.of_text(text)[0].numpy(), k, allowed, left)

    def _hand_over(self, vector: Floats, k: int, allowed: Rows | None, left: int) -> Rows:
        """At least as many segments as there are candidates, of at least ``k`` videos."""
        assert self._first is not None
        count = max(self.candidates, 2 * k)
        while True:
            rows = self._first.search_vector(vector, count, allowed)
            if count >= left or len(np.unique(self._segments.video[rows])) >= k:
                return np.sort(rows)
            count *= 4

    def score_rows(self, text: Cache, rows: Rows) -> npt.NDArray[np.float32]:
        """The head's scores (R,) of some segments for one text. Raises `UserError`: one is NaN."""
        blocks = score_blocks(self.model.retriever.score, text, self._segments, self.model.device, rows)
        scores = [block for _, block in blocks]
        return torch.cat(scores, 1)[0].numpy() if scores else np.zeros(0, np.float32)

    def best_of_all(self, texts: Cache, k: int) -> list[list[str]]:
        """Ids of the ``k`` best videos by the head's scores of every segment, for what the head keeps of A texts."""
        every = np.arange(len(self))
        blocks = score_blocks(self.model.retriever.score, texts, self._segments, self.model.device)
        scores = torch.cat([block for _, block in blocks], 1).numpy()
        best = [self._segments.best_videos(every, row, k) for row in scores]
        return [[self._segments.entry(video).id for video in videos] for videos in best]

    def _describe(
        self, video: int, rows: Rows, scores: list[float], best: int, shown: list[float], concepts: list[float]
    ) -> Found:
        """What is said of a video that was found, of its segments' scores, and of what the best one attended to."""
        times, edges = self._segments.times(int(rows[best])), self._segments.edges_of(rows)
        weights = shown[: len(times)]
        start, end = find_moment(edges, scores, times, weights)
        return Found(
            id=(entry := self._segments.entry(video)).id,
            score=scores[best],
            start=start,
            end=end,
            segment=edges[best],
            times=times,
            weights=tuple(weights),
            concepts=tuple(concepts),
            entry=entry,
        )

    def every_segment(self, size: int) -> Iterator[tuple[list[dict[str, object]], Cache]]:
        """What is known of all segments, ``size`` at a time, and what the head keeps of them, on the CPU."""
        for start in range(0, len(self), size):
            rows = np.arange(start, min(start + size, len(self)))
            known: list[dict[str, object]] = []
            for row in rows.tolist():
                entry, (first, last) = self._segments.entry(int(self._segments.video[row])), self._segments.edges(row)
                known.append(
                    {
                        "id": entry.id,
                        "source": entry.source,
                        "start": first,
                        "end": last,
                        "captions": list(entry.captions),
                        "metadata": entry.metadata,
                    }
                )
            yield known, self._segments.gather(rows, torch.device("cpu"))

    def search_video(self, source: VideoSource, k: int = 10, where: Where | None = None) -> list[Found]:
        """The ``k`` videos most similar to a video; the moment is the most similar segment.

        The score is the cosine that `glscl.index.vectors_of_videos.video_vectors` describes: of what the head keeps of
        both, from -1 to 1, and not to be compared with a text's. Raises `UserError`: the video cannot be read.
        """
        if k < 1:
            raise UserError(f"k is {k}; it must be 1 or more")
        allowed = self._segments.allowed(compile_where(where)) if where else None
        query = self._encode(source)
        vector = video_vectors(query)[0]
        rows = np.arange(len(self)) if allowed is None else allowed
        if self._first is not None and len(rows) > max(FROM, self.candidates):
            projected = self._first.projection.of_videos(query)[0].numpy()
            rows = self._hand_over(projected, k, allowed, len(rows))
        found = []
        for video in self._segments.best_videos(rows, (self._vectors(rows) @ vector).numpy(), k):
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
