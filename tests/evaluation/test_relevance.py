"""Several relevant videos per caption: lists of them, and metrics as an established evaluator computes them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import pytrec_eval
import torch

from glscl.errors import UserError
from glscl.evaluation.metrics import MRR, NDCG, RECALL_LEVELS, hit_name, measure_ranks, recall_name
from glscl.evaluation.ranks import Ranks, rank_targets
from glscl.evaluation.relevance import match_qrels, measure_relevant, read_qrels, read_qrels_lists
from glscl.evaluation.scoring import RelevantPairs, rank_matrix
from tests.evaluation.test_leakage import embeddings

torch.set_num_threads(1)

TREC = {MRR: "recip_rank", NDCG: "ndcg_cut_10"}
TREC |= {recall_name(k): f"recall_{k}" for k in RECALL_LEVELS} | {hit_name(k): f"success_{k}" for k in RECALL_LEVELS}
MEASURES = {"recip_rank", "ndcg_cut.10", "recall.1,5,10", "success.1,5,10"}
Query = tuple[list[float], dict[int, int]]  # score of every candidate; grade of every relevant one


def draw_query(draw: random.Random) -> Query:
    """Up to 30 candidates; in most, small groups tie, so that every order of them can be tried."""
    count = draw.randint(1, 30)
    scores = [float(score) for score in draw.sample(range(1000), count)]
    for _ in range(draw.randint(0, 2)):
        tied = draw.sample(range(count), min(count, draw.randint(2, 4)))
        for candidate in tied:
            scores[candidate] = scores[tied[0]]
    relevant = draw.sample(range(count), min(count, draw.randint(1, 12)))
    return scores, {candidate: draw.choice((1, 1, 1, 2, 3)) for candidate in relevant}


def orders(scores: Sequence[float]) -> list[list[int]]:
    """All orders of the candidates that the scores allow, best first."""
    groups: dict[float, list[int]] = {}
    for candidate, score in enumerate(scores):
        groups.setdefault(score, []).append(candidate)
    ranked = [list(itertools.permutations(groups[score])) for score in sorted(groups, reverse=True)]
    return [list(itertools.chain(*choice)) for choice in itertools.product(*ranked)]


def by_trec(scores: Sequence[float], grades: dict[int, int]) -> dict[str, float]:
    """Mean of trec_eval's figures over all orders, in per cent."""
    tried = orders(scores)
    run = {
        str(number): {f"d{candidate}": float(len(scores) - place) for place, candidate in enumerate(order)}
        for number, order in enumerate(tried)
    }
    qrels = {str(number): {f"d{candidate}": grade for candidate, grade in grades.items()} for number in range(len(run))}
    found = pytrec_eval.RelevanceEvaluator(qrels, MEASURES).evaluate(run)
    return {name: 100 * math.fsum(one[key] for one in found.values()) / len(found) for name, key in TREC.items()}


def by_us(queries: Sequence[Query]) -> dict[str, float]:
    """The same by ranks of single pairs."""
    names, ranks, grades = [], [], []
    for number, (scores, relevant) in enumerate(queries):
        similarity = torch.tensor(scores, dtype=torch.float64).expand(len(relevant), -1)
        ranks.append(rank_targets(similarity, torch.tensor(list(relevant))))
        names += [number] * len(relevant)
        grades += list(relevant.values())
    return measure_relevant(torch.tensor(names), Ranks.concatenate(ranks), torch.tensor(grades, dtype=torch.float64))


def test_metrics_are_trec_evals_on_a_thousand_problems() -> None:
    """Where candidates tie, its mean over every order that they can be in."""
    draw = random.Random(0)
    queries = [draw_query(draw) for _ in range(1000)]
    assert sum(len(grades) > 1 for _, grades in queries) > 800
    assert sum(len(set(scores)) < len(scores) for scores, _ in queries) > 500
    expected = [by_trec(*query) for query in queries]
    for query, of_query in zip(queries, expected, strict=True):
        found = by_us([query])
        assert {name: found[name] for name in TREC} == pytest.approx(of_query, abs=1e-9, rel=0)
    whole = by_us(queries)
    assert whole["queries"] == 1000
    for name in TREC:
        assert whole[name] == pytest.approx(math.fsum(one[name] for one in expected) / 1000, abs=1e-9, rel=0)


def test_one_relevant_candidate_gives_the_ordinary_metrics() -> None:
    draw = random.Random(1)
    queries = [(scores, {next(iter(grades)): 1}) for scores, grades in (draw_query(draw) for _ in range(1000))]
    trec = [by_trec(*query) for query in queries]
    ranks = [rank_targets(torch.tensor([scores]), torch.tensor([*grades])) for scores, grades in queries]
    plain, several = measure_ranks(Ranks.concatenate(ranks)), by_us(queries)
    for name in (MRR, NDCG, *map(recall_name, RECALL_LEVELS)):
        assert plain[name] == pytest.approx(several[name], abs=1e-9, rel=0)
        assert plain[name] == pytest.approx(math.fsum(one[name] for one in trec) / 1000, abs=1e-9, rel=0)


def test_what_all_ties_is_found_by_chance() -> None:
    """Two of 1,000 candidates are relevant: the first of them is in place j with chance 2 (n - j) / (n (n - 1))."""
    n = 1000
    found = by_us([([0.0] * n, {3: 1, 700: 2})])
    assert found["R@10"] == pytest.approx(1.0)
    assert found["hit@1"] == pytest.approx(100 * 2 / n)
    assert found["hit@10"] == pytest.approx(100 * (1 - math.comb(n - 10, 2) / math.comb(n, 2)))
    chances = [2 * (n - j) / (n * (n - 1)) for j in range(1, n)]
    assert found[MRR] == pytest.approx(100 * math.fsum(chance / j for j, chance in enumerate(chances, 1)))


def test_no_queries_is_an_error() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="no queries"):
        measure_relevant(none, Ranks(none, none), none.double())


def test_pairs_are_ranked_like_targets() -> None:
    similarity = torch.randn(9, 7, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    owners = torch.tensor([0, 0, 1, 2, 2, 3, 4, 5, 6])
    pairs = RelevantPairs(torch.tensor([0, 0, 0, 4, 8, 8]), torch.tensor([0, 3, 6, 2, 1, 6]))
    found = rank_matrix(similarity, owners, relevant=pairs).relevant
    expected = rank_targets(similarity[pairs.texts], pairs.videos)
    assert torch.equal(found.optimistic, expected.optimistic)
    assert torch.equal(found.pessimistic, expected.pessimistic)
    assert len(rank_matrix(similarity, owners).relevant) == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.qrels", "a#1 0 d 2\n\nb#0 0 b 0\nb#0 0 a 1\nv_c#0 0 gone 1\nz#0 0 a 1\n"),
        (
            "list.jsonl",
            '{"query": "a#1", "doc": "d", "rel": 2}\n{"query": "b#0", "doc": "b", "rel": 0}\n'
            '{"query": "b#0", "doc": "a"}\n{"query": "v_c#0", "doc": "gone"}\n{"query": "z#0", "doc": "a"}\n',
        ),
    ],
)
def test_lists_are_matched_with_a_test_set(tmp_path: Path, name: str, text: str) -> None:
    """Four videos with two, one, one and two captions."""
    (tmp_path / name).write_text(text)
    judged = match_qrels(read_qrels(str(tmp_path / name)), embeddings())
    assert judged is not None
    assert match_qrels(None, embeddings()) is None
    pairs = list(zip(judged.pairs.texts.tolist(), judged.pairs.videos.tolist(), judged.grades.tolist(), strict=True))
    assert pairs == [(0, 0, 1), (1, 0, 1), (1, 3, 2), (2, 0, 1), (3, 2, 1), (4, 3, 1), (5, 3, 1)]
    assert judged.note.startswith("3 of 4 listed captions are in this set. 1 videos")
    ones = torch.ones(7, dtype=torch.int64)
    column = judged.measure(Ranks(ones, ones))
    assert (column.captions, column.relevant) == (1, pytest.approx(7 / 6))
    assert column.text_to_video["hit@1"] == 100.0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q", "", "names no relevant video"),
        ("q", "a 0 b\n", "line 1: expected 'QUERY 0 VIDEO GRADE'"),
        ("q", "a 0 b 1.5\n", "line 1: expected 'QUERY 0 VIDEO GRADE'"),
        ("q", "a 0 my video 1\n", "names with spaces need JSON lines"),
        ("q", "a 0 b 1\na 0 b 2\n", "line 2: a with b has another grade"),
        ("q.jsonl", '{"query": "a"}\n', 'line 1: expected {"query"'),
        ("q.jsonl", '{"query": "a", "doc": "b", "rel": true}\n', 'line 1: expected {"query"'),
        ("q.jsonl", "{\n", "line 1: "),
        ("q.jsonl", "[" * 100_000, "line 1: "),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_qrels_lists([f"toy={tmp_path / name}"], ["toy"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_lists_must_be_of_the_test_sets(tmp_path: Path) -> None:
    (tmp_path / "q").write_text("x#0 0 a 1\n")
    with pytest.raises(UserError, match="expected DOMAIN=FILE"):
        read_qrels_lists([str(tmp_path / "q")], ["toy"])
    with pytest.raises(UserError, match="no test set of domain 'toi'"):
        read_qrels_lists([f"toi={tmp_path / 'q'}"], ["toy"])
    nothing = "".join(f"{name} 0 {name.split('#')[0]} 0\n" for name in ("a#0", "a#1", "b#0", "v_c#0", "d#0", "d#1"))
    (tmp_path / "nothing").write_text(nothing)
    with pytest.raises(UserError, match="no video is relevant to any caption"):
        match_qrels(read_qrels(str(tmp_path / "nothing")), embeddings())
    with pytest.raises(UserError, match=r"none of its 1 queries is a caption of this test set.*like a#0"):
        match_qrels(read_qrels(str(tmp_path / "q")), embeddings())
