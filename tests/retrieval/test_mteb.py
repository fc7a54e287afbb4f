"""mteb's own evaluator, on tasks in its layout, gives the numbers of `glscl eval`; ties are where they differ."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value, Video, disable_progress_bars, load_dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, SearchProtocol
from mteb.models.search_wrappers import SearchEncoderWrapper
from torch.utils.data import DataLoader

from glscl.cli import main
from glscl.data.build import BuildOptions
from glscl.data.mteb_layout import read_task, write_files
from glscl.data.prepare import Source, prepare
from glscl.errors import UserError
from glscl.evaluation.evaluate import evaluate_model
from glscl.evaluation.metrics import NDCG
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.report import protocol
from glscl.evaluation.results import Test
from glscl.retrieval import mteb as wrapper
from glscl.retrieval.mteb import MtebEncoder, load_for_mteb
from glscl.system.nodes import Share
from tests.retrieval.test_model import write_run

NINE = ("mean_pool", "xpool", "wti", "xclip", "gare", "agc", "video_colbert", "glccl", "glscl")
"""The heads of the toy study."""
EXACT = ("recall_1", "ndcg_cut_10")
VIDEOS = 14
TEXTS = [f"a {colour} shape moves {way}" for colour in ("red", "green", "blue", "white", "black") for way in "abc"]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    disable_progress_bars()
    logging.getLogger("mteb").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def clips(make_video: Callable[..., bytes]) -> list[bytes]:
    return [make_video([n / 4 for n in range(2 + seed % 5)], seed) for seed in range(VIDEOS)]


def write_pairs(folder: Path, clips: list[bytes], texts: list[str]) -> str:
    """A data set as mteb/MSVD and mteb/MSR-VTT are: one table of videos and captions."""
    (folder / "data").mkdir(parents=True)
    cells = [{"bytes": clip, "path": f"clip{number}.mp4"} for number, clip in enumerate(clips)]
    table = Dataset.from_dict(
        {"video": cells, "caption": texts[: len(clips)]}, Features({"video": Video(), "caption": Value("string")})
    )
    table.to_parquet(str(folder / "data" / "test-00000-of-00001.parquet"), batch_size=4)
    return str(folder)


def write_standard(folder: Path, clips: list[bytes], texts: list[str], *, video_queries: bool = False) -> str:
    """A data set in mteb's standard layout: corpus, queries, qrels; ids that are not the rows' numbers."""
    cells = [{"bytes": clip, "path": f"clip{number}.mp4"} for number, clip in enumerate(clips)]
    ids = [f"v{number:02d}" for number in range(len(clips))]
    videos = Dataset.from_dict({"id": ids, "video": cells}, Features({"id": Value("string"), "video": Video()}))
    named = [f"t{number:02d}" for number in range(len(clips))]
    captions = Dataset.from_dict({"id": named, "text": texts[: len(clips)]})
    asked, found = (ids, named) if video_queries else (named, ids)
    judged = [*zip(asked, found, [1] * len(ids), strict=True), (asked[0], found[1], 0)]  # the last is not relevant
    qrels = Dataset.from_dict(
        dict(zip(("query-id", "corpus-id", "score"), map(list, zip(*judged, strict=True)), strict=True))
    )
    sides = {"queries": videos if video_queries else captions, "corpus": captions if video_queries else videos}
    lines = ["---", "configs:"]
    for name, table in (sides | {"qrels": qrels}).items():
        (folder / name).mkdir(parents=True)
        table.to_parquet(str(folder / name / "test-00000-of-00001.parquet"))
        lines += [f"- config_name: {name}", "  data_files:", "  - split: test", f"    path: {name}/test-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(folder)


def _metadata(name: str, folder: str, category: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="A generated task.",
        dataset={"path": folder, "revision": "main"},
        type="Any2AnyRetrieval",
        category=category,  # type: ignore[arg-type]
        modalities=["text", "video"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        reference=None,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )


def pairs_task(folder: str, category: str) -> AbsTaskRetrieval:
    """A task over one table of pairs, loaded as MVEB's tasks load theirs."""

    class PairsTask(AbsTaskRetrieval):
        metadata = _metadata(f"Generated{category.upper()}", folder, category)

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            if self.data_loaded:
                return
            table = load_dataset(folder, split="test")
            table = table.add_column("id", [str(row) for row in range(len(table))])
            video = table.select_columns(["id", "video"])
            text = table.select_columns(["id", "caption"]).rename_column("caption", "text")
            asked, found = (text, video) if category == "t2v" else (video, text)
            relevant = {str(row): {str(row): 1} for row in range(len(table))}
            self.dataset = {
                "default": {
                    "test": RetrievalSplitData(queries=asked, corpus=found, relevant_docs=relevant, top_ranked=None)
                }
            }
            self.data_loaded = True

        def task_specific_scores(self, scores: dict[str, dict[str, float]], *_: Any, **__: Any) -> dict[str, float]:
            """mteb rounds its means to five digits; these are of the same figures, query by query."""
            return {f"exact_{name}": float(np.mean([of[name] for of in scores.values()])) for name in EXACT}

    return PairsTask()


def by_mteb(model: Any, task: AbsTaskRetrieval) -> dict[str, float]:
    """mteb's scores of one task."""
    result = mteb.evaluate(model, task, cache=None, overwrite_strategy="always", show_progress_bar=False)
    return dict(result.task_results[0].scores["test"][0])


def by_glscl(run: str, shards: str) -> Test:
    config = EvaluationConfig(examples=0)
    return evaluate_model(run, [shards], config, Share(1, False, 1.0, 0), here=True)[0]


def build(folder: str, output: Path) -> str:
    """The shard set of a data set, by the way that the docs go."""
    files = output / "files"
    split = write_files(read_task(folder, "test"), str(files), "test")
    source = Source(benchmark="jsonl", annotations=str(files), split=split, videos=str(files), domain="toy")
    prepare(source, str(output / "shards"), BuildOptions(samples_per_shard=5, workers=0))
    return str(output / "shards")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, clips: list[bytes]) -> tuple[str, str]:
    """A data set of pairs, and its shard set."""
    root = tmp_path_factory.mktemp("pairs")
    folder = write_pairs(root / "set", clips, TEXTS)
    return folder, build(folder, root)


@pytest.mark.parametrize("head", NINE)
def test_mteb_gives_the_numbers_of_an_evaluation(tmp_path: Path, pairs: tuple[str, str], head: str) -> None:
    folder, shards = pairs
    run = write_run(tmp_path, head=head)
    ours, model = by_glscl(run, shards), load_for_mteb(run, "cpu")
    for category, figures in (("t2v", ours.text_to_video), ("v2t", ours.video_to_text)):
        assert figures["R@1_optimistic"] == figures["R@1_pessimistic"], "scores must differ for this test"
        theirs = by_mteb(model, pairs_task(folder, category))
        assert 100 * theirs["exact_recall_1"] == pytest.approx(figures["R@1"], rel=0, abs=1e-9)
        assert 100 * theirs["exact_ndcg_cut_10"] == pytest.approx(figures[NDCG], rel=0, abs=1e-9)
        assert theirs["main_score"] == theirs["ndcg_at_10"] == round(figures[NDCG] / 100, 5)
        assert 0 < figures[NDCG] < 100
    assert (ours.domain, ours.split) == ("toy", "mteb_test")
    assert protocol(ours) == "mteb's task (MVEB); frames and ties as here"
    assert protocol(ours.model_copy(update={"split": "test"})) == ""


def test_ties_are_where_the_two_differ(tmp_path: Path, pairs: tuple[str, str], clips: list[bytes]) -> None:
    """mteb puts documents of equal score in the order of their ids, the last first; here each order counts alike."""
    folder = write_pairs(tmp_path / "set", [clip for clip in clips[:4] for _ in range(3)], TEXTS)  # each three times
    run = write_run(tmp_path, head="mean_pool")
    ours = by_glscl(run, build(folder, tmp_path)).text_to_video
    assert ours["R@1_optimistic"] > ours["R@1"] > ours["R@1_pessimistic"]
    model, task = load_for_mteb(run, "cpu"), pairs_task(folder, "t2v")
    theirs = by_mteb(model, task)
    # By hand, from the same scores: of three that tie, mteb sees the one whose id comes last in the alphabet first.
    scores = model.model.score(TEXTS[:12], [clips[number // 3] for number in range(12)])
    first = [max(range(12), key=lambda video: (float(row[video]), str(video))) for row in scores]
    assert theirs["exact_recall_1"] == np.mean([first[text] == text for text in range(12)])
    shares = [(row[text] == row.max()) / (row == row.max()).sum() for text, row in enumerate(scores)]
    assert ours["R@1"] == pytest.approx(100 * float(np.mean(shares)))


def test_vectors_give_mteb_the_same_scores(tmp_path: Path, pairs: tuple[str, str]) -> None:
    """A head whose score is a cosine is an encoder, too: mteb's own search over its vectors agrees."""
    for head in ("mean_pool", "seq_transformer"):
        model = load_for_mteb(write_run(tmp_path, head=head), "cpu")
        assert isinstance(model, MtebEncoder)
        assert isinstance(model, EncoderProtocol)
        searched = by_mteb(model, pairs_task(pairs[0], "t2v"))
        table = load_dataset(pairs[0], split="test").cast_column("video", Video(decode=False))
        metadata = _metadata("Vectors", pairs[0], "t2v")
        given = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}
        texts, videos = (
            model.encode(DataLoader(part, batch_size=4), **given)
            for part in (
                table.select_columns(["caption"]).rename_column("caption", "text"),
                table.select_columns(["video"]),
            )
        )
        cosines = model.similarity(texts, videos)
        assert texts.norm(dim=1).numpy() == pytest.approx(1, abs=1e-5)
        expected = model.model.score(list(table["caption"]), [cell["bytes"] for cell in table["video"]])
        torch.testing.assert_close(cosines, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.similarity_pairwise(texts, videos), cosines.diagonal())
        first = float((cosines.argmax(1) == torch.arange(len(cosines))).float().mean())
        assert searched["exact_recall_1"] == pytest.approx(first, abs=1e-6)
        assert isinstance(SearchEncoderWrapper(model), SearchProtocol)
    assert not isinstance(load_for_mteb(write_run(tmp_path, head="wti"), "cpu"), EncoderProtocol)


def test_the_standard_layout_in_both_directions(tmp_path: Path, clips: list[bytes]) -> None:
    """Tables corpus, queries and qrels give the records of the same videos as pairs; ids are mteb's."""
    for video_queries in (False, True):
        folder = write_standard(tmp_path / f"set{video_queries}", clips[:5], TEXTS, video_queries=video_queries)
        task = read_task(folder, "test")
        assert task.ids == tuple(f"v{number:02d}" for number in range(5))
        assert task.captions == tuple((text,) for text in TEXTS[:5])
        name = write_files(task, str(tmp_path / f"files{video_queries}"), "test")
        assert name == "mteb_test"
        written = sorted((tmp_path / f"files{video_queries}").glob("*.mp4"))
        assert [path.stem for path in written] == list(task.ids)
        assert [path.read_bytes() for path in written] == clips[:5]


def test_a_reranking_task_ranks_what_it_lists(tmp_path: Path, clips: list[bytes]) -> None:
    model = load_for_mteb(write_run(tmp_path, head="wti"), "cpu")
    metadata = _metadata("Listed", "nowhere", "t2v")
    given = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default", "encode_kwargs": {}}
    cells = [{"bytes": clip, "path": None} for clip in clips[:4]]
    videos = Dataset.from_dict(
        {"id": list("abcd"), "video": cells}, Features({"id": Value("string"), "video": Video()})
    )
    texts = Dataset.from_dict({"id": ["q"], "text": TEXTS[:1]})
    model.index(videos, num_proc=None, **given)
    everything = model.search(texts, top_k=3, num_proc=None, **given)["q"]
    assert len(everything) == 3
    listed = model.search(texts, top_k=3, num_proc=None, top_ranked={"q": ["d", "a"]}, **given)["q"]
    assert set(listed) == {"a", "d"}
    scores = dict(zip("abcd", model.model.score(TEXTS[:1], clips[:4])[0].tolist(), strict=True))
    assert (everything | listed).items() <= scores.items()
    with pytest.raises(UserError, match="queries and corpus are both videos"):
        model.search(videos, top_k=3, num_proc=None, **given)
    titled = Dataset.from_dict({"id": ["1", "2"], "text": ["moves", TEXTS[1]], "title": ["a red shape", ""]})
    model.index(titled, num_proc=None, **given)
    found = model.search(videos, top_k=2, num_proc=None, **given)["b"]
    scores = model.model.score(["a red shape moves", TEXTS[1]], clips[1:2])[:, 0].tolist()
    assert found == pytest.approx(dict(zip("12", scores, strict=True)), abs=1e-6)


def test_results_of_one_model_are_not_taken_for_anothers(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, again = (load_for_mteb(write_run(tmp_path / "a", head="wti"), "cpu").mteb_model_meta for _ in range(2))
    other = load_for_mteb(write_run(tmp_path / "b", head="wti", max_frames=2), "cpu").mteb_model_meta
    assert first.revision == again.revision != other.revision
    assert first.name == "glscl/r"
    assert first.modalities == ["text", "video"]
    with pytest.raises(UserError, match="OWNER/NAME"):
        load_for_mteb(str(tmp_path / "a" / "run"), "cpu", name="mine")


def test_a_task_becomes_files_by_the_command(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pairs(tmp_path / "set", clips[:3], TEXTS)
    assert main(["shards", "mteb", "--task", folder, "--output", str(tmp_path / "files")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "3 videos, 3 captions, split mteb_test" in out[-1]
    assert "--split mteb_test" in out[-2]


def test_what_is_no_task_is_refused_in_one_line(
    tmp_path: Path, clips: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path) -> str:
        assert main(["shards", "mteb", "--task", str(folder), "--output", str(tmp_path / "out")]) == 2
        return capsys.readouterr().out.splitlines()[-1]

    assert "no such folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no .parquet file" in refused(tmp_path / "empty")
    (tmp_path / "empty" / "test.parquet").write_bytes(b"PAR1 and no more")
    assert "no sound parquet file" in refused(tmp_path / "empty")
    bare = Path(write_standard(tmp_path / "bare", clips[:3], TEXTS))
    qrels = Dataset.from_dict({"query-id": ["t00"], "corpus-id": ["v00"], "score": [1]})
    qrels.to_parquet(str(bare / "qrels" / "test-00000-of-00001.parquet"))
    assert "2 of 3 videos have no relevant text (v01, v02)" in refused(bare)
    (bare / "qrels" / "test-00000-of-00001.parquet").unlink()
    assert "no table qrels or default" in refused(bare)


def test_without_mteb_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mteb"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"mteb is not installed: pip install 'glscl\[mteb\]'"):
        importlib.reload(wrapper)


def test_the_python_of_the_documentation(
    tmp_path: Path, pairs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a generated task in place of MVEB's, and on run files of a query."""
    page = (Path(__file__).parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "runs").mkdir()
    Path(write_run(tmp_path)).rename(tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks: [pairs_task(pairs[0], name[4:7].lower()) for name in tasks])
    names: dict[str, Any] = {}
    exec(compile(first, "tools.md", "exec"), names)
    assert [result.task_name for result in names["results"].task_results] == ["GeneratedT2V", "GeneratedV2T"]
    (tmp_path / "msrvtt-test_1k_a.text_to_video.run").write_text("a#0 Q0 b 1 0.9 x\na#0 Q0 a 2 0.8 x\n")
    (tmp_path / "msrvtt-test_1k_a.text_to_video.qrels").write_text("a#0 0 a 1\n")
    exec(compile(second, "tools.md", "exec"), names)
    assert names["by_query"]["a#0"]["recip_rank"] == 0.5
