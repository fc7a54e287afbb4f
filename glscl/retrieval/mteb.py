"""A trained model as `mteb` takes models: its own scores for retrieval, its vectors for other tasks where it has such.

mteb's retrieval tasks ask a model through ``SearchProtocol``: index a corpus, then rank it for queries. The wrapper
answers with the head's exact scores, so every head can take every text-video task, in both directions. A head whose
score is the cosine of two vectors also has ``EncoderProtocol``, for tasks on vectors (classification, clustering).

Videos are read from mteb's tables as bytes and go through the same code as in `glscl eval`: number and rate of frames
are the model's own, not mteb's. mteb's evaluator then differs from `glscl eval` in one thing, ties: it ranks documents
of equal score by their id, from the end of the alphabet (trec_eval's rule), where `glscl.evaluation.ranks` takes the
mean over breaking them at random.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from glscl.errors import UserError
from glscl.evaluation.caches import Caches
from glscl.evaluation.matches import best_matches
from glscl.retrieval.model import TEXTS_AT_ONCE, VIDEOS_AT_ONCE, RetrievalModel, Texts, Videos, load
from glscl.retrieval.videos import VideoSource

try:
    from datasets import Dataset, Video
    from mteb.models.model_meta import ModelMeta, ScoringFunction
except ImportError:
    raise UserError("mteb is not installed: pip install 'glscl[mteb]'") from None

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import EncodeKwargs

VECTORS = {"mean_pool": ("sentence", "pooled"), "seq_transformer": ("sentence", "pooled")}
"""Heads whose score is a cosine: names of the unit vector of a text and of a video among what they cache."""
_ROWS_AT_ONCE = 64
"""Videos whose files are held at a time."""

Side: TypeAlias = "tuple[list[str], Texts | Videos]"
"""Ids of a corpus or of queries, and what is encoded of them."""


class MtebSearch:
    """A model under mteb's ``SearchProtocol``; `load_for_mteb` makes one.

    Attributes:
        model: the model.
        mteb_model_meta: what mteb writes into its results. ``revision`` has a checksum of the weights, so that results
            that mteb kept of one model are not taken for another's.
    """

    def __init__(self, model: RetrievalModel, name: str) -> None:
        self.model = model
        self.mteb_model_meta = describe_model(model, name)
        self._corpus: Side | None = None

    def index(
        self,
        corpus: Dataset,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: EncodeKwargs,
        num_proc: int | None = None,
        **kwargs: object,
    ) -> None:
        """Encode a corpus of texts or videos. Raises `UserError`: a row has neither, or a video cannot be used."""
        self._corpus = self._encode(corpus, task_metadata.name, encode_kwargs, num_proc)

    def search(
        self,
        queries: Dataset,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: EncodeKwargs,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,
        **kwargs: object,
    ) -> dict[str, dict[str, float]]:
        """The ``top_k`` best documents of each query with their scores; of ``top_ranked`` alone, where it is given.

        Raises `UserError`: queries and corpus are both texts or both videos, or as `index` does.
        """
        if self._corpus is None:
            raise UserError(f"{task_metadata.name}: search before index")
        documents, corpus = self._corpus
        ids, asked = self._encode(queries, task_metadata.name, encode_kwargs, num_proc)
        scores = self._score(asked, corpus, task_metadata.name)
        if top_ranked is not None:
            scores = scores.masked_fill(~_listed(ids, documents, top_ranked), -math.inf)
        found = best_matches(scores, top_k)
        rows = zip(ids, found.indices.tolist(), found.scores.tolist(), strict=True)
        return {
            query: {documents[place]: score for place, score in zip(places, values, strict=True) if score != -math.inf}
            for query, places, values in rows
        }

    def _score(self, queries: Texts | Videos, corpus: Texts | Videos, task: str) -> Tensor:
        if isinstance(queries, Texts) and isinstance(corpus, Videos):
            return self.model.score(queries, corpus)
        if isinstance(queries, Videos) and isinstance(corpus, Texts):
            return self.model.score(corpus, queries).T
        kind = "texts" if isinstance(queries, Texts) else "videos"
        raise UserError(f"{task}: queries and corpus are both {kind}; this model scores a text with a video")

    def _encode(self, rows: Dataset, task: str, options: EncodeKwargs, processes: int | None) -> Side:
        ids = [str(name) for name in rows["id"]]
        if "video" in rows.column_names:
            return ids, self._encode_videos(rows, task, options.get("batch_size", VIDEOS_AT_ONCE), processes)
        if "text" not in rows.column_names:
            raise UserError(f"{task}: has columns {', '.join(rows.column_names)}; a model needs 'text' or 'video'")
        return ids, self.model.encode_text(
            _texts_with_titles(rows), batch_size=options.get("batch_size", TEXTS_AT_ONCE)
        )

    def _encode_videos(self, rows: Dataset, task: str, batch_size: int, processes: int | None) -> Videos:
        parts = []
        for first, sources in _read_files(rows, task):
            try:
                parts.append(self.model.encode_video(sources, batch_size=batch_size, loader_workers=processes or 0))
            except UserError as error:
                raise UserError(f"{task}, rows from {first}: {error}") from None
        replaced = tuple(number for part in parts for number in part.replaced)
        names = tuple(map(str, range(len(rows))))
        return Videos(names, Caches.join([part.caches for part in parts]), replaced)


class MtebEncoder(MtebSearch):
    """The same, and mteb's ``EncoderProtocol``: unit vectors of texts and videos whose dot product is the score."""

    def encode(
        self,
        inputs: DataLoader[object],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: object = None,
        **kwargs: object,
    ) -> Tensor:
        """Unit vectors (rows, D), float32, of texts or of videos. Raises `UserError`: as `index`."""
        options: EncodeKwargs = {}
        if isinstance(size := kwargs.get("batch_size"), int):
            options["batch_size"] = size
        rows = inputs.dataset
        if not isinstance(rows, Dataset):
            raise UserError(f"{task_metadata.name}: inputs are no table of mteb's, but a {type(rows).__name__}")
        numbered = rows if "id" in rows.column_names else rows.add_column("id", list(map(str, range(len(rows)))))
        _, encoded = self._encode(numbered, task_metadata.name, options, inputs.num_workers)
        text, video = VECTORS[self.model.card.model.head]
        cache = encoded.caches.read(range(len(encoded)), torch.device("cpu"))
        return cache[text if isinstance(encoded, Texts) else video]

    def similarity(self, embeddings1: Tensor, embeddings2: Tensor) -> Tensor:
        """Dot products of all pairs."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Tensor, embeddings2: Tensor) -> Tensor:
        """Dot products row by row."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)


def load_for_mteb(run: str, device: str = "auto", name: str = "") -> MtebSearch:
    """Load a run or an export for ``mteb.evaluate``; heads of `VECTORS` become a `MtebEncoder`.

    ``name`` stands in mteb's results, as ``OWNER/NAME``; without, it is ``glscl/`` and the run's. Raises `UserError`:
    as `load`, or a name of another form.
    """
    model = load(run, device)
    name = name or f"glscl/{re.sub('[^A-Za-z0-9_.-]', '-', model.card.run) or 'model'}"
    if name.count("/") != 1:
        raise UserError(f"name '{name}': mteb wants OWNER/NAME")
    return (MtebEncoder if model.card.model.head in VECTORS else MtebSearch)(model, name)


def describe_model(model: RetrievalModel, name: str) -> ModelMeta:
    """What mteb keeps beside results: size, protocol of the frames, and a revision that names the weights."""
    card, parameters = model.card, list(model.retriever.parameters())
    cosine = card.model.head in VECTORS
    return ModelMeta(
        loader=None,
        name=name,
        revision=f"step-{card.step}-{_checksum(model)}",
        release_date=None,
        languages=None,
        n_parameters=sum(parameter.numel() for parameter in parameters),
        memory_usage_mb=round(sum(parameter.nbytes for parameter in parameters) / 2**20),
        max_tokens=card.model.max_words,
        embed_dim=model.retriever.towers.width if cosine else None,
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE if cosine else ScoringFunction.CUSTOM,
        use_instructions=False,
        training_datasets=None,
        modalities=["text", "video"],
        model_type=["dense" if cosine else "late-interaction"],
        experiment_kwargs={"head": card.model.head, "max_frames": card.model.max_frames, "fps": card.sample_fps},
    )


def _checksum(model: RetrievalModel) -> str:
    digest = hashlib.sha256(model.card.model.model_dump_json().encode())
    for key, tensor in sorted(model.retriever.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _texts_with_titles(rows: Dataset) -> list[str]:
    """The texts as mteb's own models read them: a document's title stands before its text."""
    texts = [str(text) for text in rows["text"]]
    if "title" not in rows.column_names:
        return texts
    return [f"{title or ''} {text}".strip() for title, text in zip(rows["title"], texts, strict=True)]


def _read_files(rows: Dataset, task: str) -> Iterator[tuple[int, list[VideoSource]]]:
    """The videos of a table, some at a time, with the number of the first: bytes or a path, not decoded by mteb."""
    if isinstance(rows.features["video"], Video):
        rows = rows.cast_column("video", Video(decode=False))
    rows = rows.select_columns(["video"])
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        cells = rows[first : first + _ROWS_AT_ONCE]["video"]
        yield first, [_source(cell, f"{task}, row {first + number}") for number, cell in enumerate(cells)]


def _source(cell: object, where: str) -> VideoSource:
    if not isinstance(cell, dict):
        return cell  # type: ignore[return-value]  # whatever is no video is refused where videos are read
    if isinstance(data := cell.get("bytes"), bytes):
        return data
    if isinstance(path := cell.get("path"), str) and os.path.exists(path):
        return path
    raise UserError(f"{where}: a video without bytes, whose file '{cell.get('path')}' is not on this machine")


def _listed(queries: Sequence[str], documents: Sequence[str], lists: Mapping[str, Sequence[str]]) -> Tensor:
    """(Q, N) bool: which documents a reranking task lists for each query."""
    place = {name: number for number, name in enumerate(documents)}
    listed = torch.zeros(len(queries), len(documents), dtype=torch.bool)
    for row, query in enumerate(queries):
        listed[row, [place[name] for name in lists.get(query, ())]] = True
    return listed
