"""Export of an index to LanceDB and Qdrant, whose own search ranks as the head does where its score is theirs.

Both search by one vector, or by several with the sum of best cosines (MaxSim): ``Σ_i max_j cos(q_i, d_j)``. That is the
score of `mean_pool` and `seq_transformer` (one vector), of `glscl` without its global part (its concepts, one behind
the other), and of `agc`. The two levels of `video_colbert` are one such sum where each has dimensions of its own, and
one more with a 1 that keeps its products above those of 0 with the other level. No other head's score is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.errors import UserError
from glscl.evaluation.caches import Cache
from glscl.index.search import VideoIndex
from glscl.models.heads.base import Head
from glscl.retrieval.model import RetrievalModel
from glscl.system import storage

Target = Literal["lancedb", "qdrant"]
TABLE, VECTORS, FACTS = "segments", "vectors", "glscl.json"
_BLOCK = 1024
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A head's score as a sum of best cosines.

    Attributes:
        several: whether a text or a segment is more than one vector.
        query: unit vectors (m, P) of one text's cache.
        segments: unit vectors (n, P) of each segment.
        score: the head's score, from the sum and m.
    """

    several: bool
    query: Callable[[Head, Cache], Tensor]
    segments: Callable[[Head, Cache], list[Tensor]]
    score: Callable[[Head, float, int], float]


def _concepts(cache: Cache) -> Tensor:
    return F.normalize(cache["concepts"].float().flatten(1), dim=-1)


def _level(vectors: Tensor, level: int) -> Tensor:
    """Unit vectors (..., 2 D + 2) of unit vectors (..., D): those of one level, and a 1."""
    one, nothing = torch.ones_like(vectors[..., :1]), torch.zeros_like(vectors)
    sides = [vectors, nothing] if level == 0 else [nothing, vectors]
    marks = [one, 0 * one] if level == 0 else [0 * one, one]
    return torch.cat([*sides, *marks], -1) / 2**0.5


def _colbert_query(head: Head, text: Cache) -> Tensor:
    words = text["tokens"][0][text["mask"][0]].float()
    return torch.cat([_level(words, 0), _level(words, 1)])


def _colbert_segments(head: Head, video: Cache) -> list[Tensor]:
    frames, tokens = _level(video["frames"].float(), 0), _level(video["tokens"].float(), 1)
    rows = range(len(frames))
    return [torch.cat([frames[r][video["frame_mask"][r]], tokens[r][video["token_mask"][r]]]) for r in rows]


_VECTOR = Foreign(
    False,
    lambda head, text: F.normalize(text["sentence"].float(), dim=-1),
    lambda head, video: list(F.normalize(video["pooled"].float(), dim=-1).unsqueeze(1)),
    lambda head, total, count: total,
)
_LOCAL = Foreign(
    False,
    lambda head, text: _concepts(text),
    lambda head, video: list(_concepts(video).unsqueeze(1)),
    lambda head, total, count: total * float(head.options.local_weight),  # type: ignore[union-attr, arg-type]
)
_AGC = Foreign(
    True,
    lambda head, text: text["tokens"][0][text["mask"][0]].float(),
    lambda head, video: [v[m].float() for v, m in zip(video["vectors"], video["mask"], strict=True)],
    lambda head, total, count: total,
)
_COLBERT = Foreign(True, _colbert_query, _colbert_segments, lambda head, total, count: 4 * total / count - 2)


def find_foreign(head: Head) -> Foreign | None:
    """How other programs compute a head's score; None where they do not."""
    if head.name == "glscl":
        return None if head.options.use_global else _LOCAL  # type: ignore[union-attr]
    kinds = {"mean_pool": _VECTOR, "seq_transformer": _VECTOR, "agc": _AGC, "video_colbert": _COLBERT}
    return kinds.get(head.name)


def explain_refusal(head: Head) -> str:
    """Why the search of other programs is not the head's."""
    reasons = {
        "glscl": "its global part pools the frames anew for every text",
        "wti": "half of its score goes from frames to words, and MaxSim goes from words to frames alone",
        "uatvr": "half of its score goes from frames to words, and MaxSim goes from words to frames alone",
    }
    reason = reasons.get(head.name, "its score is more than inner products and their maxima")
    return (
        f"head '{head.name}': {reason}, so their search would rank otherwise than this model; --payload-only "
        "stores what is known of every segment, without vectors"
    )


def make_query(model: RetrievalModel, text: str) -> Floats:
    """Vectors (m, P) of a text for the search of an export. Raises `UserError`: the head's score is not theirs."""
    foreign = find_foreign(model.retriever.head)
    if foreign is None:
        raise UserError(explain_refusal(model.retriever.head))
    cache = model.encode_text(text).caches.read(range(1), model.device)
    vectors: Floats = foreign.query(model.retriever.head, cache).cpu().numpy()
    return vectors


def head_score(model: RetrievalModel, total: float, count: int) -> float:
    """The head's score of a sum of best cosines over a query of ``count`` vectors.

    Of LanceDB that sum is ``count - _distance``, of Qdrant its score.
    """
    foreign = find_foreign(model.retriever.head)
    assert foreign is not None
    return foreign.score(model.retriever.head, total, count)


def export_index(index: VideoIndex, target: Target, output: str, *, payload_only: bool = False) -> int:
    """Write an index as a database of another program; returns its rows, one per segment.

    Raises `UserError`: the head's score is not theirs, their library is not installed, or the output is no new folder.
    """
    head, output = index.model.retriever.head, storage.resolve(output)
    foreign = None if payload_only else find_foreign(head)
    if foreign is None and not payload_only:
        raise UserError(explain_refusal(head))
    if storage.is_remote(output) or (os.path.isdir(output) and os.listdir(output)):
        raise UserError(f"--output: {output}: name a folder of this machine that is empty or not there")
    rows = _rows(index, foreign)
    several = foreign is not None and foreign.several
    count = (_to_lancedb if target == "lancedb" else _to_qdrant)(output, rows, several)
    facts = {
        "model": index.facts.model,
        "head": head.name,
        "table": TABLE,
        "vectors": None if foreign is None else VECTORS,
    }
    storage.write_json(os.path.join(output, FACTS), facts | {"several": several, "target": target})
    return count


@dataclass(frozen=True, slots=True)
class _Row:
    payload: dict[str, object]
    vectors: Floats | None


def _rows(index: VideoIndex, foreign: Foreign | None) -> Iterator[_Row]:
    for payload, cache in index.every_segment(_BLOCK):
        with torch.no_grad():
            vectors = [None] * len(payload) if foreign is None else foreign.segments(index.model.retriever.head, cache)
        for known, own in zip(payload, vectors, strict=True):
            yield _Row(known, None if own is None else own.cpu().numpy())


def _to_lancedb(output: str, rows: Iterator[_Row], several: bool) -> int:
    try:
        import lancedb
    except ImportError:
        raise UserError("--to lancedb: pip install 'glscl[lancedb]'") from None
    import pyarrow as pa

    table, count = None, 0
    database = lancedb.connect(output)
    for block in _blocks(rows):
        columns: list[tuple[str, pa.DataType]] = [
            ("id", pa.string()), ("source", pa.string()), ("start", pa.float64()), ("end", pa.float64()),
            ("captions", pa.list_(pa.string())), ("metadata", pa.string()),
        ]  # fmt: skip
        known = [row.payload | {"metadata": json.dumps(row.payload["metadata"])} for row in block]
        if block[0].vectors is not None:
            one = pa.list_(pa.float32(), block[0].vectors.shape[1])
            columns.append((VECTORS, pa.list_(one) if several else one))
            for values, row in zip(known, block, strict=True):
                assert row.vectors is not None
                values[VECTORS] = row.vectors.tolist() if several else row.vectors[0].tolist()
        data = pa.Table.from_pylist(known, pa.schema(columns))
        if table is None:
            table = database.create_table(TABLE, data=data)
        else:
            table.add(data)
        count += len(block)
    return count


def _to_qdrant(output: str, rows: Iterator[_Row], several: bool) -> int:
    try:
        from qdrant_client import QdrantClient, models
    except ImportError:
        raise UserError("--to qdrant: pip install 'glscl[qdrant]'") from None
    client, count = QdrantClient(path=output), 0
    comparator = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM) if several else None
    for block in _blocks(rows):
        first = block[0].vectors
        if not count:
            config = {} if first is None else {
                VECTORS: models.VectorParams(
                    size=first.shape[1], distance=models.Distance.DOT, multivector_config=comparator
                )
            }  # fmt: skip
            client.create_collection(TABLE, vectors_config=config)
        points = []
        for number, row in enumerate(block, count):
            own = None if row.vectors is None else (row.vectors if several else row.vectors[0]).tolist()
            vector = {} if own is None else {VECTORS: own}
            points.append(models.PointStruct(id=number, vector=vector, payload=row.payload))
        client.upsert(TABLE, points)
        count += len(block)
    client.close()
    return count


def _blocks(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    block: list[_Row] = []
    for row in rows:
        block.append(row)
        if len(block) == _BLOCK:
            yield block
            block = []
    if block:
        yield block
