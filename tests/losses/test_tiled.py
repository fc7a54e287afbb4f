"""The contrastive and the sigmoid loss in tiles against the losses of the whole matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from glscl.evaluation.cost import PeakMemory
from glscl.losses import LossConfig, LossInputs, tiled_cross_entropies, tiled_sigmoid, tiles_apply
from glscl.losses.base import Term, TermOptions, registry
from glscl.losses.contrastive import ContrastiveOptions, contrastive
from glscl.losses.sigmoid import SigmoidOptions, sigmoid
from glscl.models.heads.base import Features
from glscl.models.scores import tiles


def _score(text: Features, video: Features) -> Tensor:
    return text["x"] @ video["x"].T


def _inputs(pairs: int, videos: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    text, video = (torch.randn(pairs, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    return text, video, torch.tensor([3.0], dtype=dtype, requires_grad=True), torch.randint(0, videos, (pairs,))


def _whole(text: Tensor, video: Tensor, scale: Tensor, ids: Tensor) -> Tensor:
    logits, positives = scale * text @ video.T, ids[:, None] == ids[None, :]
    return contrastive(ContrastiveOptions(), LossInputs(logits, logits, positives, positives, {}, {}))


@pytest.mark.parametrize("tile", [2**18, 37 * 36, 25, 1])
@pytest.mark.parametrize("videos", [1, 5, 1000])
def test_tiles_give_the_value_and_the_gradients_of_the_whole(
    tile: int, videos: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "CPU_TILE", tile)
    text, video, scale, ids = _inputs(37, videos)
    found = sum(tiled_cross_entropies(_score, scale, {"x": text}, {"x": video}, ids, ids)) / 2
    expected = _whole(text, video, scale, ids)
    assert abs(found - expected).item() < 1e-12
    pairs = zip(*(torch.autograd.grad(loss, (text, video, scale)) for loss in (found, expected)), strict=True)
    for these, those in pairs:
        assert (these - those).abs().max().item() < 1e-10 * max(1.0, those.abs().max().item())


@pytest.mark.parametrize("tile", [2**18, 25])
def test_the_sigmoid_loss_in_tiles(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain loops, and its gradients as a whole."""
    monkeypatch.setattr(tiles, "CPU_TILE", tile)
    text, video, scale, ids = _inputs(11, 4)
    bias = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    own = slice(3, 9)
    found = tiled_sigmoid(_score, scale, bias, {"x": text[own]}, {"x": video}, ids[own], ids)
    expected = 0.0
    for query in range(3, 9):
        for other in range(11):
            logit = float((scale * text[query] @ video[other] + bias).detach())
            expected += math.log1p(math.exp(-logit if ids[query] == ids[other] else logit))
    assert found.item() == pytest.approx(expected / 6, rel=1e-12)
    positives = ids[own][:, None] == ids[None, :]
    rows = scale * text[own] @ video.T
    whole = sigmoid(SigmoidOptions(), LossInputs(rows, rows.T, positives, positives.T, {}, {}, bias=bias))
    leaves = (text, video, scale, bias)
    for these, those in zip(*(torch.autograd.grad(loss, leaves) for loss in (found, whole)), strict=True):
        assert torch.allclose(these, those, rtol=1e-10, atol=1e-12)


def test_each_direction_is_a_mean_over_its_own_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer texts than videos, as one of several ranks has them, in plain loops."""
    monkeypatch.setattr(tiles, "CPU_TILE", 16)
    text, video, scale, ids = _inputs(11, 4)
    own = slice(3, 9)
    found, _ = tiled_cross_entropies(_score, scale, {"x": text[own]}, {"x": video}, ids[own], ids)
    expected = 0.0
    for query in range(3, 9):
        logits = [float((scale * text[query] @ video[other]).detach()) for other in range(11)]
        positives = [logits[other] for other in range(11) if ids[other] == ids[query]]
        expected += float(torch.tensor(logits, dtype=torch.float64).logsumexp(0)) - sum(positives) / len(positives)
    assert found.item() == pytest.approx(expected / 6, rel=1e-12)


def _peak(pairs: int, tiled: bool) -> int:
    text, video, scale, _ = _inputs(pairs, 1, torch.float32)
    ids = torch.arange(pairs)
    with PeakMemory() as memory:
        if tiled:
            loss = sum(tiled_cross_entropies(_score, scale, {"x": text}, {"x": video}, ids, ids))
            assert isinstance(loss, Tensor)
            loss.backward()
        else:
            _whole(text, video, scale, ids).backward()
    return memory.peak


def test_memory_does_not_grow_with_the_square_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the pairs: sixteen times the memory as a whole, five times at most in tiles."""
    monkeypatch.setattr(tiles, "CPU_TILE", 64**2)
    assert _peak(1024, tiled=False) > 12 * _peak(256, tiled=False)
    assert _peak(1024, tiled=True) < 5 * _peak(256, tiled=True)
    assert _peak(1024, tiled=True) < _peak(1024, tiled=False) / 10


def test_tiles_are_for_large_batches_whose_terms_do_not_read_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LossConfig()
    assert not tiles_apply(config, 4096, ())
    assert tiles_apply(config, 4097, ())
    assert tiles_apply(config, 4097, ("concepts",))
    assert not tiles_apply(config, 4097, ("score_parts",)), "score consistency reads the parts of all scores"
    assert not tiles_apply(LossConfig.model_validate({"contrastive": {"weight": 0}}), 4097, ("concepts",))
    assert tiles_apply(LossConfig.model_validate({"contrastive": {"tiled_above": 0}}), 1, ())
    both = LossConfig.model_validate({"contrastive": {"tiled_above": 0}, "sigmoid": {"weight": 1, "tiled_above": 9}})
    assert [tiles_apply(both, pairs, ("logit_bias",)) for pairs in (9, 10)] == [False, True]
    alone = LossConfig.model_validate({"contrastive": {"weight": 0}, "sigmoid": {"weight": 1}})
    assert tiles_apply(alone, 4097, ("logit_bias",))
    of_others = Term(TermOptions, ("concepts",), lambda options, inputs: inputs.rows.mean())
    monkeypatch.setitem(registry._entries, "intra_diversity", of_others)
    assert not tiles_apply(config, 4097, ("concepts",))
    assert tiles_apply(config, 4097, ()), "a term that does not apply reads nothing"
