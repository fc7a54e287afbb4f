"""Normalisations against the published forms, written out in double precision, and against recorded output."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from glscl.errors import UserError
from glscl.evaluation.metrics import measure_ranks
from glscl.evaluation.normalise import (
    NORMALISATIONS,
    Bank,
    dual_softmax,
    inverted_softmax,
    measure_normalised,
    normalise,
    qb_norm,
)
from glscl.evaluation.ranks import text_to_video_ranks, video_to_text_ranks

torch.set_num_threads(1)


def random(queries: int, candidates: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Cosine-like similarities with hubs."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(queries, candidates, generator=generator) * 0.2
    return (values + 0.2 * torch.randn(candidates, generator=generator)).clamp(-1, 1) * scale


def order(scores: torch.Tensor) -> list[list[int]]:
    return scores.argsort(dim=1, descending=True, stable=True).tolist()


def published_qb_norm(
    similarity: torch.Tensor, bank: torch.Tensor, beta: float, k: int, threshold: int
) -> torch.Tensor:
    """Query by query, with exponentials, as the publication has it."""
    occurrences = [0] * bank.shape[1]
    for row in bank.tolist():
        for candidate in sorted(range(len(row)), key=lambda c: -row[c])[:k]:
            occurrences[candidate] += 1
    total = (beta * bank.double()).exp().sum(0)
    rows = []
    for row in similarity.double():
        hub = occurrences[int(row.argmax())] >= threshold
        rows.append((beta * row).exp() / total if hub else row)
    return torch.stack(rows)


@pytest.mark.parametrize("beta", [0.8, 20.0, 70.0])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("threshold", [1, 4, 1000])
def test_qb_norm_orders_as_published(beta: float, k: int, threshold: int) -> None:
    similarity, bank = random(30, 25, 1), random(80, 25, 2)
    found = qb_norm(similarity, bank, beta=beta, top_k=k, threshold=threshold)
    assert order(found) == order(published_qb_norm(similarity, bank, beta, k, threshold))
    if threshold == 1000:
        assert torch.equal(found, similarity)


def test_qb_norm_ranks_as_recorded(shared: Path) -> None:
    tensors = load_file(shared / "parity" / "qb_norm.safetensors")
    similarity, bank = tensors["input.similarity"], tensors["input.bank_similarity"]
    expected = tensors["expected.order"].tolist()
    assert order(qb_norm(similarity, bank, beta=20.0, threshold=3)) == expected
    assert order(qb_norm(similarity, bank, beta=20.0, threshold=1)) != expected
    assert order(similarity) != expected


def test_only_rows_whose_best_candidate_is_a_hub_change() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.0], [0.1, 0.8, 0.0]])
    bank = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.1, 0.2]])  # only candidate 0 is a hub
    found = qb_norm(similarity, bank)
    assert torch.equal(found[1], similarity[1])
    assert found[0, 1] > found[0, 0]


@pytest.mark.parametrize("beta", [1.0, 20.0, 100.0])
def test_softmaxes_order_as_published(beta: float) -> None:
    similarity = random(40, 30, 3)
    weights = torch.softmax(beta * similarity.double(), 0)
    assert order(inverted_softmax(similarity, beta=beta)) == order(weights)
    assert order(dual_softmax(similarity, beta=beta)) == order(similarity.double() * weights * len(similarity))


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_no_overflow_and_no_ties_by_rounding(scale: float) -> None:
    similarity, bank = random(40, 30, 4, scale), random(50, 30, 5, scale)
    for scores in (qb_norm(similarity, bank, beta=70.0), dual_softmax(similarity)):
        assert scores.isfinite().all()
        assert scores.dtype == torch.float32
        assert all(len(row.unique()) == 30 for row in scores)
    saturated = inverted_softmax(similarity)  # candidates that are wholly the query's own tie at 1 in any precision
    assert saturated.isfinite().all()
    assert saturated.max() <= 0


def test_scores_of_any_temperature_keep_duplicates_tied() -> None:
    similarity = random(20, 12, 6)
    similarity[:, 7] = similarity[:, 2]
    bank = random(30, 12, 7)
    bank[:, 7] = bank[:, 2]
    for scores in (qb_norm(similarity, bank), inverted_softmax(similarity), dual_softmax(similarity)):
        assert torch.equal(scores[:, 7], scores[:, 2])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_dual_softmax_with_zeros_negatives_and_ties(rows: list[list[int]]) -> None:
    similarity = torch.tensor(rows) / 3
    published = similarity.double() * torch.softmax(5 * similarity.double(), 0)
    found = dual_softmax(similarity, beta=5.0)
    for ours, theirs in zip(found, published, strict=True):
        difference = theirs[:, None] - theirs
        expected = torch.where(difference.abs() < 1e-12, 0, difference.sign())
        assert torch.equal((ours[:, None] - ours).sign().double(), expected.double())


def test_ranks_follow_the_direction() -> None:
    similarity = random(12, 8, 8)
    owners = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 7])
    forward = normalise("inverted_softmax", similarity, owners, "text_to_video")
    backward = normalise("inverted_softmax", similarity, owners, "video_to_text")
    assert forward.metrics == measure_ranks(text_to_video_ranks(inverted_softmax(similarity), owners))
    expected = measure_ranks(video_to_text_ranks(inverted_softmax(similarity.T).T, owners))
    assert backward.metrics == expected
    assert expected != measure_ranks(video_to_text_ranks(inverted_softmax(similarity), owners))


def test_hubs_are_mended() -> None:
    """One video near to every text takes the first place of all; every normalisation gives it back."""
    generator = torch.Generator().manual_seed(9)
    similarity = 0.02 * torch.randn(40, 40, generator=generator) + 0.1 * torch.eye(40)
    bank = 0.02 * torch.randn(200, 40, generator=generator)
    for matrix in (similarity, bank):
        matrix[:, 0] += 0.5
    owners = torch.arange(40)
    assert text_to_video_ranks(similarity, owners).mid.le(1).sum() == 1
    columns = measure_normalised(similarity, owners, {"text_to_video": Bank(bank, "training captions of a", True)})
    forward = {column.name: column.metrics["R@1"] for column in columns if column.direction == "text_to_video"}
    assert forward.keys() == NORMALISATIONS.keys()
    assert min(forward.values()) > 80


def test_columns_say_what_they_saw() -> None:
    similarity, owners = random(10, 10, 10), torch.arange(10)
    banks = {"text_to_video": Bank(random(5, 10, 11), "training captions of msrvtt", False)}
    columns = {(c.name, c.direction): c for c in measure_normalised(similarity, owners, banks)}
    assert ("qb_norm", "video_to_text") not in columns  # no bank of videos was given
    assert columns["qb_norm", "text_to_video"].saw == "A query bank: training captions of msrvtt × test videos."
    assert "test videos × test captions" in columns["inverted_softmax", "video_to_text"].saw
    assert "one to one" in columns["dual_softmax", "text_to_video"].saw
    transductive = normalise(
        "qb_norm", similarity, owners, "text_to_video", Bank(similarity, "training captions of b", True)
    )
    assert "of the test domain" in transductive.saw
    assert all(column.label and column.source for column in columns.values())


def test_errors_say_what_is_missing() -> None:
    similarity = random(4, 4, 12)
    with pytest.raises(UserError, match="did you mean 'dual_softmax'"):
        normalise("dual_sofmax", similarity, torch.arange(4), "text_to_video")
    with pytest.raises(UserError, match="needs a query bank for text_to_video"):
        normalise("qb_norm", similarity, torch.arange(4), "text_to_video")
    with pytest.raises(ValueError, match="same candidates"):
        qb_norm(similarity, random(3, 5, 13))
    bad = similarity.clone()
    bad[0, 0] = torch.nan
    for function in (
        inverted_softmax,
        dual_softmax,
        lambda s: qb_norm(s, similarity),
        lambda s: qb_norm(similarity, s),
    ):
        with pytest.raises(UserError, match="NaN"):
            function(bad)
