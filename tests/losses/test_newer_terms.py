"""Loss terms of GARE, T-MASS, UATVR, TC-MGC and Video-ColBERT against their equations in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.losses import LossConfig, LossInputs, compute_losses, term_names
from glscl.losses import increment_direction as direction_module
from glscl.models.scores import tiles

PAIRS = 6
IDS = torch.tensor([0, 1, 2, 0, 4, 5])  # two captions of one video


def _inputs(name: str, detail: Tensor, own: slice = slice(0, PAIRS)) -> LossInputs:
    positives = IDS[:, None] == IDS
    rows = torch.zeros(PAIRS, PAIRS)
    return LossInputs(
        rows[own],
        rows[:, own],
        positives[own],
        positives[:, own],
        {},
        {},
        first=own.start,
        detail=name,
        row_detail=detail[own],
        column_detail=detail[:, own],
        scale=torch.tensor([3.0]),
    )


def _loss(inputs: LossInputs, name: str, **options: float) -> Tensor:
    off: dict[str, dict[str, float]] = {term: {"weight": 0.0} for term in term_names()}
    return compute_losses(LossConfig.model_validate(off | {name: {"weight": 1.0} | options}), inputs)[name]


def _increments(scale: float = 1.0) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(PAIRS, PAIRS, 5) * torch.rand(5) * scale + 0.1


def test_bottleneck() -> None:
    increments, expected = _increments(), 0.0
    for b in range(PAIRS):
        for d in range(5):
            numbers = [float(increments[a, b, d]) for a in range(PAIRS)]
            mean = sum(numbers) / PAIRS
            deviation = math.sqrt(sum((x - mean) ** 2 for x in numbers) / (PAIRS - 1)) + 1e-6
            expected += (-math.log(deviation) + (deviation**2 + mean**2) / 2 - 0.5) / PAIRS
    assert _loss(_inputs("increments", increments), "increment_bottleneck").item() == pytest.approx(expected, rel=1e-5)


def test_bottleneck_of_increments_that_the_text_does_not_change_pulls_at_their_mean_alone() -> None:
    increments = _increments()[:1].expand(PAIRS, -1, -1).clone().requires_grad_()
    loss = _loss(_inputs("increments", increments), "increment_bottleneck")
    loss.backward()
    assert increments.grad is not None
    assert torch.allclose(increments.grad, increments.detach() / PAIRS**2, atol=1e-6)


@pytest.mark.parametrize("tile", [2**20, 50])
def test_direction(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole, and one text at a time."""
    monkeypatch.setattr(tiles, "CPU_TILE", tile)
    increments, expected = _increments().requires_grad_(), 0.0
    for a in range(PAIRS):
        text = increments.detach()[a]
        cosines = [F.cosine_similarity(text[b], text[c], dim=0) for b in range(6) for c in range(6)]
        expected += math.log(sum(math.exp(-1.5 * (1 - float(cosine))) for cosine in cosines) / 36 + 1e-8) / PAIRS
    loss = _loss(_inputs("increments", increments), "increment_direction", alpha=1.5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    whole = direction_module._logarithms(increments, 1.5).mean()
    assert torch.allclose(torch.autograd.grad(whole, increments)[0], increments.grad, atol=1e-7)


@pytest.mark.parametrize("limit", [0.5, 0.01])
def test_radius(limit: float) -> None:
    increments, expected = _increments().requires_grad_(), 0.0
    for a in range(PAIRS):
        norms = increments.detach()[a].norm(dim=-1).tolist()
        mean = sum(norms) / PAIRS
        expected += sum((norm - mean) ** 2 for norm in norms) / (PAIRS - 1) / PAIRS
    assert 0.01 < expected < 0.5
    loss = _loss(_inputs("increments", increments), "increment_radius", limit=limit)
    assert loss.item() == pytest.approx(-expected if limit == 0.5 else 0.0, rel=1e-5)
    loss.backward()
    assert increments.grad is not None
    assert bool(increments.grad.any()) == (limit == 0.5)


@pytest.mark.parametrize("name", ["increment_bottleneck", "increment_radius"])
def test_a_single_pair_has_no_deviation(name: str) -> None:
    detail = torch.ones(1, 1, 5, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.bool)
    given = LossInputs(one, one, one, one, {}, {}, detail="increments", row_detail=detail, column_detail=detail)
    loss = _loss(given, name)
    loss.backward()
    assert loss == 0
    assert detail.grad is not None
    assert not detail.grad.any()


def test_support_text_is_contrastive_with_the_logit_scale() -> None:
    torch.manual_seed(0)
    cosines, expected = torch.rand(PAIRS, PAIRS), 0.0
    for logits in (3 * cosines, 3 * cosines.T):
        for query in range(PAIRS):
            same = [other for other in range(PAIRS) if IDS[other] == IDS[query]]
            expected -= float(logits[query].log_softmax(0)[same].mean()) / PAIRS / 2
    found = _loss(_inputs("support", cosines.unsqueeze(-1)), "support_text")
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_similarity_decorrelation() -> None:
    torch.manual_seed(0)
    scores, expected = torch.rand(PAIRS, PAIRS, 4), 0.0
    for a in range(PAIRS):
        scaled = [3 * float(score) for score in scores[a, a]]
        expected += sum((score - sum(scaled) / 4) ** 2 for score in scaled) / 3 / PAIRS
    assert _loss(_inputs("scores", scores), "similarity_decorrelation").item() == pytest.approx(expected, rel=1e-5)


def test_level_sigmoid() -> None:
    torch.manual_seed(0)
    logits, expected = torch.randn(PAIRS, PAIRS, 2) * 4, 0.0
    for level, weight in ((0, 0.7), (1, 0.2)):
        for a in range(PAIRS):
            for b in range(PAIRS):
                sign = 1 if IDS[a] == IDS[b] else -1
                expected += weight * math.log1p(math.exp(-sign * float(logits[a, b, level]))) / PAIRS
    found = _loss(_inputs("level_logits", logits), "level_sigmoid", frames=0.7, video=0.2)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def _samples() -> LossInputs:
    torch.manual_seed(0)
    text = {"samples": torch.randn(PAIRS, 2, 4), "log_sigma": torch.randn(PAIRS, 4)}
    video = {"samples": torch.randn(PAIRS, 3, 4), "log_sigma": torch.randn(PAIRS, 4)}
    positives = IDS[:, None] == IDS
    return LossInputs(torch.zeros(PAIRS, PAIRS), torch.zeros(PAIRS, PAIRS), positives, positives, text, video)


def test_samples_are_contrasted_with_all_of_the_other_side() -> None:
    inputs = _samples()
    text, video = inputs.text["samples"], inputs.video["samples"]
    expected = 0.0
    for queries, candidates in ((text, video), (video, text)):
        for a in range(PAIRS):
            for query in queries[a]:
                logits = [float(query @ candidate) for b in range(PAIRS) for candidate in candidates[b]]
                total = math.log(sum(map(math.exp, logits)))
                matching = [float(query @ c) for b in range(PAIRS) if IDS[a] == IDS[b] for c in candidates[b]]
                expected += (total - sum(matching) / len(matching)) / (PAIRS * len(queries[a])) / 2
    assert _loss(inputs, "mil_nce").item() == pytest.approx(expected, rel=1e-5)


def test_divergence_of_samples() -> None:
    inputs, expected = _samples(), 0.0
    for side in (inputs.text, inputs.video):
        for samples, logarithms in zip(side["samples"], side["log_sigma"], strict=True):
            for mean, logarithm in zip(samples.mean(0).tolist(), logarithms.tolist(), strict=True):
                expected -= (1 + logarithm - mean**2 - math.exp(logarithm)) / 2
    assert _loss(inputs, "sample_divergence").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "detail", "numbers"),
    [
        ("increment_bottleneck", "increments", 5),
        ("increment_direction", "increments", 5),
        ("increment_radius", "increments", 5),
        ("support_text", "support", 1),
        ("similarity_decorrelation", "scores", 4),
        ("level_sigmoid", "level_logits", 2),
    ],
)
def test_parts_of_three_ranks_average_to_the_whole(name: str, detail: str, numbers: int) -> None:
    torch.manual_seed(0)
    given = torch.randn(PAIRS, PAIRS, numbers) / 3
    whole = _loss(_inputs(detail, given), name).item()
    parts = [_loss(_inputs(detail, given, slice(first, first + 2)), name).item() for first in (0, 2, 4)]
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-5)
