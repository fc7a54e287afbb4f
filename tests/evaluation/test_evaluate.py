"""Scoring a saved model over Ray actors: the numbers of one process, whatever the number of actors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from pydantic import BaseModel

from glscl.cli import main
from glscl.data.gallery import Gallery
from glscl.data.quarantine import Quarantine, read_quarantine
from glscl.data.shards import ShardSet
from glscl.data.shifts import Shift
from glscl.errors import UserError
from glscl.evaluation.caches import Cache, Caches
from glscl.evaluation.embed import Embeddings, embed, measure
from glscl.evaluation.encode import encode_shards
from glscl.evaluation.encoder import Encoding
from glscl.evaluation.evaluate import evaluate_model
from glscl.evaluation.metrics import DIRECTIONS, Direction, measure_ranks
from glscl.evaluation.normalise import NORMALISATIONS, Bank, measure_normalised
from glscl.evaluation.options import EvaluationConfig
from glscl.evaluation.ranks import Ranks, rank_targets
from glscl.evaluation.relevance import match_qrels, read_qrels
from glscl.evaluation.results import Metrics, QueryRanks
from glscl.evaluation.saved import ModelCard, load_model, save_model
from glscl.evaluation.scoring import evaluate_scores
from glscl.evaluation.wise_ft import Mix
from glscl.models import ModelConfig, Retriever
from glscl.models.tokenizer import tokenize
from glscl.shifts.run import shift_model
from glscl.system.nodes import Share
from tests.towers import write_towers

pytestmark = pytest.mark.e2e

CPU = torch.device("cpu")
CONFIG = EvaluationConfig(batch_size=3, text_block=7, video_block=5, examples=4)
ONE, TWO = Share(1, False, 1.0, 0), Share(2, False, 0.5, 0)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker is this process, as on a cluster of the command's own: for tests of what is no actor's doing."""
    monkeypatch.setattr("glscl.evaluation.alone.is_own", lambda: True)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run directory with a model of random weights, trained on domain ``toy`` as its card says."""
    path = tmp_path / "evaluate-test.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    head = {"glscl": {"queries": 2, "layers": 1, "attention_heads": 2}}
    config = ModelConfig.model_validate({"clip": str(path), "max_words": 8, "max_frames": 2, "heads": head})
    card = ModelCard(
        model=config, sample_fps=1.0, decoder="pyav", train_domains=("toy",), step=5, seed=0, run="r", validation={}
    )
    torch.manual_seed(0)
    save_model(str(tmp_path / "run" / "model"), card, Retriever(config).state_dict())
    return str(tmp_path / "run")


@pytest.fixture
def sets(make_shards: Callable[..., ShardSet]) -> list[ShardSet]:
    return [
        make_shards("toy", captions=[1, 2, 3] * 4, per_shard=5, bad={2: b"torn"}),
        make_shards("other", captions=[1] * 9, per_shard=4),
    ]


def _close(found: Any, expected: Any, path: str = "") -> None:
    """Equal, to the last bits of numbers: other batches mean other matrix products."""
    if isinstance(expected, BaseModel):
        _close(found.model_dump(), expected.model_dump(), path)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            _close(found[key], value, f"{path}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            _close(one, other, f"{path}/{index}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5), path
    else:
        assert found == expected, path


def _embed(model: Retriever, card: ModelCard, shard_set: ShardSet) -> Embeddings:
    """The whole set in this process and in one batch."""
    gallery = Gallery(shard_set, 0, shard_set.manifest.videos, card.sampling(32), partial(tokenize, max_words=8), 50)
    return embed(model, gallery, 0, CPU)


def _read(caches: Caches) -> Cache:
    return caches.read(range(len(caches)), CPU)


@torch.no_grad()
def _measure(model: Retriever, embeddings: Embeddings) -> dict[Direction, Metrics]:
    caches = embeddings.caches
    return measure(evaluate_scores(model.score, _read(caches.text), _read(caches.video), caches.text_to_video))


def test_any_number_of_actors_gives_the_numbers_of_one_process(run: str, sets: list[ShardSet]) -> None:
    uris = [shard_set.uri for shard_set in sets]
    one = evaluate_model(run, uris, CONFIG, ONE, keep_ranks=True)
    two = evaluate_model(run, uris, CONFIG, Share(2, False, 0.5, 1), keep_ranks=True)
    _close(two, one)
    model, card = load_model(run)
    for shard_set, entry in zip(sets, one, strict=True):
        embeddings = _embed(model, card, shard_set)
        direct = _measure(model, embeddings)
        assert {direction: entry.metrics(direction) for direction in direct} == direct
        assert (entry.videos, entry.texts) == (len(embeddings.video_ids), len(embeddings.captions))
        assert entry.fingerprint == shard_set.manifest.fingerprint()
    assert [entry.relation for entry in one] == ["in-domain", "cross-domain"]
    assert [entry.quarantined for entry in one] == [1, 0]
    assert one[0].quarantine[0]["video_id"] == "v002"
    assert one[0].text_to_video["R@1"] < 100, "random weights"
    for entry in one:
        assert (entry.normalised, entry.without_leaked) == ([], None)


def test_actors_encode_the_bytes_of_one_process(
    sets: list[ShardSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two actors, each with a loader process."""
    clip, weights = write_towers(tmp_path / "towers")
    how = Encoding(clip=clip, pretrained=weights, words=8, frames=2, max_bad_fraction=0.1)
    uri, one, two = sets[0].uri, tmp_path / "one", tmp_path / "two"
    encode_shards(uri, str(two), how, Share(2, False, 0.5, 1))
    monkeypatch.setattr("glscl.evaluation.encode.is_own", lambda: True)
    monkeypatch.setattr("ray.remote", lambda **_: pytest.fail("an actor"))
    encode_shards(uri, str(one), how, ONE)
    assert {file.name: file.read_bytes() for file in one.iterdir()} == {
        file.name: file.read_bytes() for file in two.iterdir()
    }


@torch.no_grad()
@pytest.mark.usefixtures("here")
def test_normalised_columns_are_those_of_the_whole_matrix(
    run: str, sets: list[ShardSet], make_shards: Callable[..., ShardSet]
) -> None:
    """With a bank of two sets, one of them in the first test domain and with videos that cannot be decoded."""
    share = 4
    bank_sets = [
        make_shards("toy", captions=[2] * 10, bad=dict.fromkeys(range(5), b"torn"), root=f"{run}/bank"),
        make_shards("extra", captions=[1, 3] * 4, root=f"{run}/bank"),
    ]
    model, card = load_model(run)
    bank = [_embed(model, card, shard_set) for shard_set in bank_sets]
    assert max(bank[0].positions[:share]) >= share, "the bank reads on for those that cannot be decoded"
    owned = [embeddings.caches.text_to_video < share for embeddings in bank]
    bank_texts, bank_videos = ([_read(getattr(e.caches, side)) for e in bank] for side in ("text", "video"))
    texts = {key: torch.cat([t[key][own] for t, own in zip(bank_texts, owned, strict=True)]) for key in bank_texts[0]}
    videos = {key: torch.cat([video[key][:share] for video in bank_videos]) for key in bank_videos[0]}
    expected = []
    for shard_set in sets:
        test = _embed(model, card, shard_set).caches
        text, video = _read(test.text), _read(test.video)
        own = shard_set.manifest.domain == "toy"
        captions = f"{sum(int(owner.sum()) for owner in owned)} training captions of toy and extra"
        columns = measure_normalised(
            model.score(text, video),
            test.text_to_video,
            {
                "text_to_video": Bank(model.score(texts, video), captions, own),
                "video_to_text": Bank(model.score(text, videos).T, "8 training videos of toy and extra", own),
            },
        )
        assert len(columns) == 2 * len(NORMALISATIONS)
        expected.append(columns)
    uris, bank_uris = [shard_set.uri for shard_set in sets], [shard_set.uri for shard_set in bank_sets]
    config = CONFIG.model_copy(update={"normalisations": True, "bank_videos": 2 * share + 1})
    for actors in (ONE, TWO):
        entries = evaluate_model(run, uris, config, actors, bank=bank_uris)
        _close([entry.normalised for entry in entries], expected)
    (entry,) = evaluate_model(run, uris[:1], config, ONE)
    assert {column.name for column in entry.normalised} == {"dual_softmax", "inverted_softmax"}, "no bank"


@pytest.mark.usefixtures("here")
def test_left_out_videos_are_as_if_they_had_never_been_there(
    run: str, sets: list[ShardSet], make_shards: Callable[..., ShardSet], tmp_path: Path
) -> None:
    leaked = tmp_path / "leaked.txt"
    leaked.write_text("v010\nv011.mp4\nv002\n")
    smaller = make_shards("smaller", captions=[1, 2, 3] * 3 + [1], per_shard=3, bad={2: b"torn"})
    config = CONFIG.model_copy(update={"leave_out": (f"toy={leaked}",)})
    uris = [shard_set.uri for shard_set in sets]
    plain = evaluate_model(run, [*uris, smaller.uri], CONFIG, ONE)
    toy, other = evaluate_model(run, uris, config, ONE)
    without = toy.without_leaked
    assert without is not None
    _close(toy.model_copy(update={"without_leaked": None}), plain[0])
    _close(other, plain[1])
    assert without.list == str(leaked)
    assert without.note.startswith("2 of 3 listed videos left out, and their captions (5). 1 could not be dec")
    assert without.text_to_video["MnR"] < toy.text_to_video["MnR"]
    for name in ("videos", "texts", "text_to_video", "video_to_text"):
        _close(getattr(without, name), getattr(plain[2], name))


@pytest.mark.usefixtures("here")
def test_all_relevant_videos_count_in_a_column_of_their_own(run: str, sets: list[ShardSet], tmp_path: Path) -> None:
    """The figures are those of the ranks in the whole matrix, whoever scores, and with normalisations."""
    qrels = tmp_path / "toy.qrels"
    qrels.write_text("v001#0 0 v004 1\nv001#0 0 v006 2\nv007#1 0 v000 1\nv099#0 0 v000 1\n")
    config = CONFIG.model_copy(update={"qrels": (f"toy={qrels}",)})
    plain, _ = evaluate_model(run, [shard_set.uri for shard_set in sets], CONFIG, ONE)
    model, card = load_model(run)
    caches = _embed(model, card, sets[0])
    similarity = model.score(_read(caches.caches.text), _read(caches.caches.video))
    judged = match_qrels(read_qrels(str(qrels)), caches)
    assert judged is not None
    expected = judged.measure(rank_targets(similarity[judged.pairs.texts], judged.pairs.videos))
    assert expected.captions == 2
    for actors, normalisations in ((ONE, False), (TWO, False), (ONE, True)):
        changed = config.model_copy(update={"normalisations": normalisations})
        toy, other = evaluate_model(run, [shard_set.uri for shard_set in sets], changed, actors)
        assert toy.several_relevant is not None
        _close(toy.several_relevant, expected)
        assert other.several_relevant is None
        _close(toy.model_copy(update={"several_relevant": None, "normalised": []}), plain)
    assert "per_query" not in toy.to_json()["several_relevant"]
    kept, _ = evaluate_model(run, [shard_set.uri for shard_set in sets], config, ONE, keep_ranks=True)
    assert kept.several_relevant is not None
    queries = kept.several_relevant.per_query
    assert queries is not None
    assert queries.captions == list(range(len(caches.captions)))
    means = {name: values.mean() for name, values in queries.values.items()}
    assert {name: kept.several_relevant.text_to_video[name] for name in means} == pytest.approx(means)
    assert kept.without_queries().several_relevant == toy.several_relevant
    assert "several_relevant" not in plain.to_json()


@pytest.mark.usefixtures("here")
def test_ranks_of_every_query_give_back_the_metrics(run: str, sets: list[ShardSet]) -> None:
    (entry,) = evaluate_model(run, [sets[0].uri], CONFIG, ONE, keep_ranks=True)
    kept = json.loads(json.dumps(entry.to_json()))["per_query"]
    assert QueryRanks.model_validate(kept).model_dump() == entry.per_query.model_dump(), "plain values"
    for direction in DIRECTIONS:
        ranks = Ranks(*(torch.tensor(kept[direction][bound]) for bound in ("optimistic", "pessimistic")))
        assert measure_ranks(ranks) == entry.metrics(direction)
    assert kept["query_videos"] == list(range(entry.videos)), "all have captions"
    assert kept["positions"] == sorted(set(kept["positions"]))
    assert (len(kept["video_ids"]), len(kept["positions"])) == (entry.videos, entry.videos)
    for query, caption in enumerate(kept["captions"]):
        owner, top = kept["owners"][query], kept["top"][query]
        assert kept["video_ids"][owner] == caption.split()[0]
        assert len(set(top)) == 5
        rank = kept["text_to_video"]["optimistic"][query]
        assert rank == kept["text_to_video"]["pessimistic"][query], "no ties here"
        assert rank == top.index(owner) + 1 if owner in top else rank > 5


@pytest.mark.usefixtures("here")
def test_examples_show_the_matches(run: str, sets: list[ShardSet]) -> None:
    (entry,) = evaluate_model(run, [sets[0].uri], CONFIG, ONE)
    assert "per_query" not in entry.to_json()
    assert len(entry.examples) == CONFIG.examples
    for example in entry.examples:
        owner = example.query.split()[0]
        scores = [match.score for match in example.results]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 5
        for match in example.results:
            assert match.correct == (match.video_id == owner)
            assert isinstance(match.thumbnail, list)
            assert [picture[:2] for picture in match.thumbnail] == [b"\xff\xd8"] * 2, "JPEG, of two frames"
        shown = [match.video_id for match in example.results]
        assert (owner in shown) == (example.rank <= 5)
    written = json.loads(json.dumps(entry.to_json()))
    assert not any("thumbnail" in match for example in written["examples"] for match in example["results"])


def test_a_damaged_tar_is_one_line(run: str, sets: list[ShardSet], capsys: pytest.CaptureFixture[str]) -> None:
    """Of the promised size, so only the actor that reads it can see it; through the command line."""
    tar = Path(sets[1].uri) / "shard-000001.tar"
    tar.write_bytes(b"\1" * tar.stat().st_size)
    assert main(["eval", "--run", run, "--test", sets[1].uri]) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"glscl: FAILED {tar}: unusable (")
    assert "glscl shards verify" in last
    assert last.endswith("and build or copy it again")


@pytest.mark.usefixtures("here")
def test_eval_command(run: str, sets: list[ShardSet], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "--run", run, "--test", *(shard_set.uri for shard_set in sets)]
    assert main(words) == 2  # one of twelve videos is torn: such a gallery is not scored without a word
    out = capsys.readouterr().out
    assert "quarantined: 1 of 12 videos of test set toy/train cannot be used: toy/v002 (" in out
    last = out.splitlines()[-1]
    assert last.startswith(
        "glscl: FAILED 1 of 12 videos of test set toy/train cannot be used, more than --max-bad-fraction (0.01): toy"
    )
    (listed,) = read_quarantine(f"{run}/eval")
    assert (listed["part"], listed["set"], listed["video_id"]) == ("test", sets[0].uri, "v002")
    assert not Path(run, "eval", "results.json").exists()

    status = main([*words, "--max-bad-fraction", "0.1", "--workers", "2"])
    out = capsys.readouterr().out
    assert status == 0, out
    assert re.search(r"^toy/train +in-domain .* 11 of 12$", out, re.M)
    assert re.search(r"^other/train +cross-domain .* 9$", out, re.M)
    results = json.loads(Path(run, "eval", "results.json").read_text())
    assert results["quarantine"] == read_quarantine(f"{run}/eval") == [listed]
    (missing,) = results["incomplete"]
    assert (missing["part"], missing["shards"], missing["videos"], missing["of"]) == ("test", sets[0].uri, 11, 12)
    page = Path(run, "eval", "report.html").read_text()
    assert "<dt>Videos</dt><dd>11 of 12</dd>" in page
    assert "<code>v002</code>" in page
    assert [test["domain"] for test in results["tests"]] == ["toy", "other"]
    assert results["checkpoint_step"] == 5
    assert Path(run, "eval", "report.html").stat().st_size > 1000
    r1 = results["tests"][0]["text_to_video"]["R@1"]
    last = out.splitlines()[-1]
    assert last.startswith(
        f"glscl: OK run=r step=5 toy/train (in-domain) R@1={r1:.1f}, other/train (cross-domain) R@1="
    )
    assert last.endswith(f"; incomplete: test set toy/train 11 of 12 videos report={run}/eval/report.html")
    assert main(["eval", "--run", run, "--test", sets[1].uri]) == 0
    assert read_quarantine(f"{run}/eval") == []  # of this evaluation, not of the one before


@pytest.mark.usefixtures("here")
def test_every_set_is_listed_before_too_many_bad_videos_end_it(
    run: str, make_shards: Callable[..., ShardSet], tmp_path: Path
) -> None:
    """Two test sets and a bank: none hides another, and the sound one between them is no help."""
    sets = [
        make_shards("a", captions=[1] * 6, bad={1: b"torn"}),
        make_shards("b", captions=[1] * 6),
        make_shards("c", captions=[1] * 6, bad={4: b"x", 5: b"torn"}),
    ]
    quarantine = Quarantine(str(tmp_path / "out"), 0.1, "knob")
    uris = [shard_set.uri for shard_set in sets]
    with pytest.raises(UserError) as caught:
        evaluate_model(run, uris, CONFIG, TWO, quarantine=quarantine)
    assert "1 of 6 videos of test set a/train cannot be used, more than knob (0.1)" in str(caught.value)
    assert "2 of 6 videos of test set c/train cannot be used, more than knob (0.1)" in str(caught.value)
    assert {entry["video_id"] for entry in read_quarantine(str(tmp_path / "out"))} == {"v001", "v004", "v005"}
    bank = CONFIG.model_copy(update={"normalisations": True, "bank_videos": 5})
    with pytest.raises(UserError, match=r"\d of 6 videos of query bank from c/train cannot be used, more than knob"):
        evaluate_model(run, uris[1:2], bank, ONE, bank=uris[2:], quarantine=quarantine)
    in_bank = {entry["video_id"] for entry in read_quarantine(str(tmp_path / "out")) if entry["part"] == "bank"}
    assert in_bank
    assert in_bank <= {"v004", "v005"}


@pytest.mark.usefixtures("here")
def test_eval_command_with_everything(
    run: str, sets: list[ShardSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "leaked.csv").write_text("video_id\nv001\n")
    words = ["eval", "--run", run, "--test", sets[0].uri, "--output", str(tmp_path / "out")]
    words += ["--max-bad-fraction", "0.1", "--normalisations", "--bank", sets[0].uri, sets[1].uri, "--bank-videos", "6"]
    words += ["--leave-out", f"toy={tmp_path}/leaked.csv"]
    status = main(words)
    out = capsys.readouterr().out
    assert status == 0, out
    (test,) = json.loads((tmp_path / "out" / "results.json").read_text())["tests"]
    assert {column["name"] for column in test["normalised"]} == set(NORMALISATIONS)
    assert "A query bank: 6 training videos of toy and other" in " ".join(c["saw"] for c in test["normalised"])
    assert test["without_leaked"]["videos"] == test["videos"] - 1
    assert len(re.findall(r"^toy/train +video to text +QB-Norm \(β = 20, k = 1\) +A query bank +\d", out, re.M)) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Normalised scores" in page
    assert "toy/train without leaked videos: 1 of 1 listed videos left out" in page


@pytest.mark.usefixtures("here")
def test_weights_between_initial_and_trained_ones(
    run: str, sets: list[ShardSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """WiSE-FT: at 0 the model that training began with, at 1 the trained one, in any number of actors."""
    model, card = load_model(run)

    def direct() -> list[dict[Direction, Metrics]]:
        embedded = [_embed(model, card, shard_set) for shard_set in sets]
        return [_measure(model, embeddings) for embeddings in embedded]

    ends = direct()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    tuned = str(tmp_path / "tuned")
    save_model(f"{tuned}/model", card, model.state_dict())
    ends += direct()
    uris = [shard_set.uri for shard_set in sets]
    found = evaluate_model(tuned, uris, CONFIG, TWO, mixes=[Mix(0, 0, True), Mix(1, 1, True)])
    for test, end in zip(found, ends, strict=True):
        _close({direction: test.metrics(direction) for direction in end}, end)
    assert [test.name for test in found[:2]] == [
        f"{name}, towers α=0, head α=0" for name in ("toy/train", "other/train")
    ]
    named = evaluate_model(tuned, uris, CONFIG.model_copy(update={"towers_alpha": 0.0, "head_alpha": 0.0}), ONE)
    _close([test.text_to_video for test in named], [end["text_to_video"] for end in ends[:2]])
    assert [(test.name, test.towers_alpha) for test in named] == [("toy/train", 0.0), ("other/train", 0.0)]
    words = ["eval", "--run", tuned, "--test", uris[1], "--alphas", "0", "0.5", "1", "--head-alphas", "1", "0.5"]
    assert main(words) == 0
    out = capsys.readouterr().out
    tests = json.loads(Path(tuned, "eval", "results.json").read_text())["tests"]
    alphas = [(test["towers_alpha"], test["head_alpha"]) for test in tests]
    assert alphas == [(0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5), (1.0, 1.0), (1.0, 0.5)]
    assert len(set(re.findall(r"^other/train, towers α=0\.5, head α=0\.5 +cross-domain", out, re.M))) == 1
    _close(tests[4]["text_to_video"], ends[3]["text_to_video"])
    assert main([*words[:6], "2"]) == 2
    assert "--alphas = 2: give numbers from 0" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.usefixtures("here")
def test_other_orders_of_frames_are_rows_beside_the_ordinary_one(
    run: str, sets: list[ShardSet], capsys: pytest.CaptureFixture[str]
) -> None:
    """In any number of actors, and of one in this process."""
    _, card = load_model(run)
    changes = {"frame_context": "transformer", "context_layers": 1, "position_std": 3.0}
    card = card.model_copy(update={"model": ModelConfig.model_validate(card.model.model_dump() | changes)})
    model = Retriever(card.model).eval()
    seeing = f"{run}-seeing"
    save_model(f"{seeing}/model", card, model.state_dict())
    uris = [shard_set.uri for shard_set in sets]
    config = CONFIG.model_copy(update={"frames": ("reversed", "single", "shuffled")})
    blind = evaluate_model(run, uris, config, ONE)
    for test in (blind[1], blind[3]):
        _close(test.text_to_video, blind[0].text_to_video)
    one, two = (evaluate_model(seeing, uris, config, share) for share in (ONE, Share(2, False, 0.5, 1)))
    _close(two, one)
    _close(one[::4], evaluate_model(seeing, uris, CONFIG, ONE))
    labels = ("", ", reversed frames", ", single frames", ", shuffled frames")
    assert [test.name for test in one] == [
        f"{name}{label}" for name in ("toy/train", "other/train") for label in labels
    ]
    assert [test.frames for test in one[:4]] == [None, "reversed", "single", "shuffled"]
    assert len({json.dumps([test.text_to_video, test.video_to_text]) for test in one[:4]}) == 4
    for shard_set, tests in zip(sets, (one[:4], one[4:]), strict=True):
        for test, places in ((tests[1], [1, 0]), (tests[2], [1])):

            def reordered(kind: str, *inputs: Any, places: list[int] = places) -> Any:
                return model(kind, *(inputs if kind == "text" else (tensor[:, places] for tensor in inputs)))

            gallery = Gallery(shard_set, 0, 12, card.sampling(32), partial(tokenize, max_words=8), 50)
            gallery.last = shard_set.manifest.videos
            direct = _measure(model, embed(reordered, gallery, 0, CPU))
            assert {direction: test.metrics(direction) for direction in direct} == direct

    words = ["eval", "--run", seeing, "--test", uris[1], "--workers", "1", "--frames", "single", "reversed"]
    assert main(words) == 0
    out = capsys.readouterr().out
    results = json.loads(Path(seeing, "eval", "results.json").read_text())
    assert [test.get("frames", "none") for test in results["tests"]] == ["none", "single", "reversed"]
    assert re.search(r"^other/train, single frames +cross-domain +text to video ", out, re.M)
    assert "other/train, single frames" in Path(seeing, "eval", "report.html").read_text()
    for wrong, says in (("backwards", "'single'"), ("reversed", "--frames: an order is named twice")):
        assert main([*words, wrong]) == 2
        assert says in capsys.readouterr().out.splitlines()[-1]


def test_shifts_are_the_same_in_any_number_of_actors(
    run: str, sets: list[ShardSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [shard_set.uri for shard_set in sets]
    shifts = [Shift("noise", 5), Shift("crop", 3), Shift("speed", 2)]
    two = shift_model(run, uris, shifts, CONFIG, Share(2, False, 0.5, 1))
    monkeypatch.setattr("glscl.evaluation.alone.is_own", lambda: True)
    one = shift_model(run, uris, shifts, CONFIG, ONE)
    _close(two.tests, one.tests)
    assert len({json.dumps(own.metrics) for own in one.tests[0].passes}) > 2


def test_more_actors_than_the_cluster_has(run: str, sets: list[ShardSet], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--run", run, "--test", sets[1].uri, "--workers", "64"]) == 2
    assert "glscl: FAILED 64 workers need 64 CPU (there: 2): lower " in capsys.readouterr().out


def test_nothing_to_score_starts_nothing(tmp_path: Path) -> None:
    assert evaluate_model(str(tmp_path), [], CONFIG, ONE) == []


def test_sets_are_opened_early(
    run: str, sets: list[ShardSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, nowhere = sets[0].uri, str(tmp_path / "nowhere")
    for words in (["--test", here, nowhere], ["--test", here, "--normalisations", "--bank", nowhere]):
        assert main(["eval", "--run", run, *words]) == 2
        assert "nowhere/manifest.json: no such file" in capsys.readouterr().out.splitlines()[-1]
