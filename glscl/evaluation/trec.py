"""TREC run files of an evaluation and the qrels beside them, for trec_eval, pytrec_eval, ranx and ir_measures.

For each test set and direction there is a run, lines ``QUERY Q0 DOCUMENT RANK SCORE TAG``, and qrels, lines ``QUERY 0
DOCUMENT 1``. Texts are named ``VIDEO#N``, the N-th caption of a video from 0, as in `glscl.evaluation.relevance`. Video
to text ranks videos, each with the score of its best caption, as the metrics do (`glscl.evaluation.ranks`). A blank, a
control character and ``%`` in an id are written as ``%20`` and so on, because blanks end a field.

Scores have nine digits, which is every bit of a float32. trec_eval goes by scores, not by ranks, and of equal scores
takes the document first whose name comes last in the alphabet; the metrics here take the mean over all orders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glscl.evaluation.embed import Embeddings
from glscl.evaluation.matches import best_matches
from glscl.evaluation.metrics import Direction
from glscl.evaluation.relevance import name_captions
from glscl.system import storage
from glscl.system.ownership import Fence

_BLANK = re.compile(r"[\s\x00-\x20\x7f%]")
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class TrecFiles:
    """Where runs go, and how much of them.

    Attributes:
        folder: for the files.
        depth: most documents written for a query.
        tag: last field of every line, which names the run.
        fence: checked before a file is written.
    """

    folder: str
    depth: int
    tag: str
    fence: Fence | None = None

    def write(self, name: str, embeddings: Embeddings, similarity: Tensor) -> None:
        """Write run and qrels of both directions of the test set ``name``, from all its (A, N) similarities."""
        stem = re.sub("[^A-Za-z0-9_.-]+", "-", name)
        videos = [_field(video_id) for video_id in embeddings.video_ids]
        texts, owners = zip(*((_field(text), owner) for text, owner in name_captions(embeddings)), strict=True)
        captioned, best = best_captions(similarity, torch.tensor(owners))
        described = [videos[row] for row in captioned]
        directions: dict[Direction, tuple[Sequence[str], Sequence[str], Tensor, Sequence[str]]] = {
            "text_to_video": (texts, videos, similarity, [videos[owner] for owner in owners]),
            "video_to_text": (described, described, best, described),
        }
        for direction, (queries, documents, scores, answers) in directions.items():
            lines = "".join(self._lines(queries, documents, scores))
            self._put(f"{stem}.{direction}.run", lines)
            qrels = "".join(f"{query} 0 {answer} 1\n" for query, answer in zip(queries, answers, strict=True))
            self._put(f"{stem}.{direction}.qrels", qrels)

    def _put(self, name: str, text: str) -> None:
        if self.fence is not None:
            self.fence.check()
        storage.write_bytes(storage.join(self.folder, name), text.encode())

    def _lines(self, queries: Sequence[str], documents: Sequence[str], scores: Tensor) -> Iterator[str]:
        for first in range(0, len(queries), _ROWS_AT_ONCE):
            found = best_matches(scores[first : first + _ROWS_AT_ONCE], self.depth)
            for row, (places, values) in enumerate(zip(found.indices.tolist(), found.scores.tolist(), strict=True)):
                for rank, (place, value) in enumerate(zip(places, values, strict=True), start=1):
                    yield f"{queries[first + row]} Q0 {documents[place]} {rank} {value:.9g} {self.tag}\n"


def run_tag(directory: str) -> str:
    """The name of a run directory as a field."""
    return _field(directory.rstrip("/").rpartition("/")[2]) or "glscl"


def best_captions(similarity: Tensor, owners: Tensor) -> tuple[list[int], Tensor]:
    """Rows of the captioned videos, and (Q, Q) of each one's similarity to the best caption of each of them."""
    captioned, captions = owners.unique_consecutive(return_inverse=True)
    best = similarity.new_full((len(captioned), similarity.shape[1]), -torch.inf)
    best.scatter_reduce_(0, captions[:, None].expand_as(similarity), similarity, "amax")
    return captioned.tolist(), best[:, captioned].T.contiguous()


def _field(name: str) -> str:
    return _BLANK.sub(lambda found: f"%{ord(found[0]):02X}", name)
