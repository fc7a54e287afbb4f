"""The search of LanceDB and Qdrant over an export gives the videos and scores of ours, where the score is theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import pytest
from qdrant_client import QdrantClient

from glscl.errors import UserError
from glscl.index import open_index
from glscl.index.exports import export_index, head_score, make_query
from tests.index.test_first_stage import write_made
from tests.retrieval.test_model import write_run

TEXT = "a dog jumps over something"
LOCAL = {"queries": 2, "layers": 1, "attention_heads": 2, "use_global": False}


@pytest.mark.parametrize("target", ["lancedb", "qdrant"])
@pytest.mark.parametrize("head", ["mean_pool", "glscl", "agc", "video_colbert"])
def test_round_trip(head: str, target: Any, tmp_path: Path) -> None:
    heads: dict[str, Any] = {"glscl": LOCAL}
    if head in ("agc", "video_colbert"):
        heads[head] = {"layers": 1, "attention_heads": 2}
    output, _, _ = write_made(tmp_path, write_run(tmp_path, head=head, heads=heads), 60)
    index = open_index(output, "cpu")
    where = str(tmp_path / "theirs")
    assert export_index(index, target, where) == len(index)
    query = make_query(index.model, TEXT)
    ours = index.search(TEXT, 10)
    several = head in ("agc", "video_colbert")
    given = query if several else query[0]
    found: list[tuple[str, float]]
    if target == "lancedb":
        table = lancedb.connect(where).open_table("segments")
        rows = table.search(given, vector_column_name="vectors").distance_type("cosine").limit(10).to_list()
        found = [(row["id"], head_score(index.model, len(query) - row["_distance"], len(query))) for row in rows]
    else:
        client = QdrantClient(path=where)
        points = client.query_points("segments", query=given.tolist(), using="vectors", limit=10).points
        found = [(point.payload["id"], head_score(index.model, point.score, len(query))) for point in points]
        client.close()
    assert [name for name, _ in found] == [one.id for one in ours]
    assert [score for _, score in found] == pytest.approx([one.score for one in ours], abs=2e-4)


def test_other_heads_are_refused_and_say_why(tmp_path: Path) -> None:
    output, _, _ = write_made(tmp_path, write_run(tmp_path, head="wti"), 60)
    index = open_index(output, "cpu")
    with pytest.raises(UserError, match="half of its score goes from frames to words"):
        export_index(index, "qdrant", str(tmp_path / "q"))
    with pytest.raises(UserError, match="--payload-only"):
        make_query(index.model, TEXT)
    assert export_index(index, "lancedb", str(tmp_path / "l"), payload_only=True) == len(index)
    table = lancedb.connect(str(tmp_path / "l")).open_table("segments")
    assert "vectors" not in table.schema.names
    assert export_index(index, "qdrant", str(tmp_path / "q"), payload_only=True) == len(index)
    with pytest.raises(UserError, match="empty or not there"):
        export_index(index, "qdrant", str(tmp_path / "q"), payload_only=True)
