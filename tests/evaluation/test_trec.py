"""Run files of an evaluation give other programs its figures back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import pytrec_eval
import torch

from glscl.cli import main
from glscl.data.shards import ShardSet
from glscl.evaluation.metrics import MRR, NDCG, Direction
from glscl.evaluation.results import Results
from glscl.evaluation.trec import TrecFiles, best_captions
from glscl.system import storage
from tests.retrieval.test_model import write_run

DIRECTIONS: tuple[Direction, ...] = ("text_to_video", "video_to_text")


def figures(folder: Path, stem: str) -> dict[str, float]:
    """nDCG@10 and MRR in per cent, as pytrec_eval has them of a run and its qrels."""
    run = pytrec_eval.parse_run((folder / f"{stem}.run").open())
    qrels = pytrec_eval.parse_qrel((folder / f"{stem}.qrels").open())
    of_queries = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recip_rank"}).evaluate(run).values()
    return {
        name: 100 * sum(of[key] for of in of_queries) / len(of_queries)
        for name, key in ((NDCG, "ndcg_cut_10"), (MRR, "recip_rank"))
    }


def test_other_programs_read_the_figures_of_an_evaluation(tmp_path: Path, make_shards: Callable[..., ShardSet]) -> None:
    """Several captions a video, ids with blanks, and rows of a control beside the ordinary ones."""
    shards = make_shards(captions=(1, 3, 2, 1, 2, 4) * 3, ids="a b%", per_shard=6)
    run, output = write_run(tmp_path), tmp_path / "out"
    words = ["--run", run, "--test", shards.uri, "--output", str(output), "--frames", "reversed", "--workers", "1"]
    assert main(["eval", *words, "--loader-workers", "0", "--cpus-per-worker", "1", "--trec", "1000"]) == 0
    results = Results.model_validate(storage.read_json(str(output / "results.json")))
    assert len(list((output / "trec").iterdir())) == 8
    for test, stem in zip(results.tests, ("toy-train", "toy-train-reversed-frames"), strict=True):
        for direction in DIRECTIONS:
            ours = test.metrics(direction)
            theirs = figures(output / "trec", f"{stem}.{direction}")
            assert theirs == pytest.approx({NDCG: ours[NDCG], MRR: ours[MRR]}, rel=0, abs=1e-9)
            assert 0 < theirs[NDCG] < 100
    first = (output / "trec" / "toy-train.text_to_video.run").read_text().splitlines()[0].split(" ")
    assert first[0].startswith("a%20b%25")
    assert first[1::2] == ["Q0", "1", "run"]


def test_a_run_is_no_deeper_than_asked(tmp_path: Path) -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1], [0.25, 1 / 3, 0.5], [0.0, 0.0, 0.5]])
    embeddings = _Named(["a", "b", "c"], (2, 0, 2))
    TrecFiles(str(tmp_path), 2, "r").write("d/s", embeddings, similarity)  # type: ignore[arg-type]
    lines = (tmp_path / "d-s.text_to_video.run").read_text().splitlines()
    assert lines[:2] == ["a#0 Q0 b 1 0.899999976 r", "a#0 Q0 c 2 0.5 r"]
    assert len(lines) == 8
    assert lines[5].startswith("c#0 Q0 b 2 0.333333343"), "nine digits are the float32"
    # Without captions b is neither a query nor found; a video stands for its best caption.
    assert (tmp_path / "d-s.video_to_text.run").read_text().splitlines() == [
        "a Q0 a 1 0.300000012 r", "a Q0 c 2 0.25 r", "c Q0 a 1 0.5 r", "c Q0 c 2 0.5 r",
    ]  # fmt: skip
    assert (tmp_path / "d-s.video_to_text.qrels").read_text() == "a 0 a 1\nc 0 c 1\n"


def test_best_captions_by_hand() -> None:
    owners = torch.tensor([0, 0, 2])
    similarity = torch.tensor([[1.0, 5.0, 2.0], [3.0, 4.0, 0.0], [7.0, 8.0, 9.0]])
    rows, best = best_captions(similarity, owners)
    assert rows == [0, 2]
    assert best.tolist() == [[3.0, 7.0], [2.0, 9.0]]


class _Named:
    """Embeddings of which only names are looked at."""

    class _Caches:
        def __init__(self, captions: tuple[int, ...]) -> None:
            self.captions = captions

    def __init__(self, video_ids: list[str], captions: tuple[int, ...]) -> None:
        self.video_ids, self.caches = video_ids, self._Caches(captions)
