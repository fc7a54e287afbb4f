"""Loss terms against their equations written out, and the way they add up."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from glscl.errors import UserError
from glscl.losses import (
    LossConfig,
    LossInputs,
    applicable_terms,
    compute_losses,
    needed_features,
    needs_logit_bias,
    term_names,
)
from glscl.losses.base import registry
from glscl.losses.inter_consistency import InterConsistencyOptions, note_on_batch
from glscl.models.heads import build_head, head_class


def _inputs(pairs: int = 6, queries: int = 3, groups: list[int] | None = None) -> LossInputs:
    torch.manual_seed(0)
    logits = torch.randn(pairs, pairs) * 3
    ids = torch.tensor(groups if groups is not None else list(range(pairs)))
    positives = ids[:, None] == ids[None, :]
    text, video = (F.normalize(torch.rand(pairs, queries, 8) + 0.3, dim=-1) for _ in range(2))
    return LossInputs(logits, logits, positives, positives, {"concepts": text}, {"concepts": video})


def _loss(inputs: LossInputs, **sections: dict[str, object]) -> dict[str, float]:
    off: dict[str, dict[str, object]] = {name: {"weight": 0.0} for name in term_names()}
    config = LossConfig.model_validate(off | {name: {"weight": 1.0} | section for name, section in sections.items()})
    return {name: loss.item() for name, loss in compute_losses(config, inputs).items()}


def test_contrastive_is_cross_entropy_with_one_caption_per_video() -> None:
    inputs = _inputs()
    diagonal = torch.arange(6)
    expected = (F.cross_entropy(inputs.rows, diagonal) + F.cross_entropy(inputs.rows.T, diagonal)) / 2
    assert _loss(inputs, contrastive={})["contrastive"] == pytest.approx(expected.item(), rel=1e-6)


def test_captions_of_one_video_are_all_positives() -> None:
    groups = [0, 1, 0, 2, 1, 0]
    inputs = _inputs(groups=groups)
    expected = 0.0
    for logits in (inputs.rows, inputs.rows.T):
        for query in range(6):
            positives = [other for other in range(6) if groups[other] == groups[query]]
            expected -= logits[query].log_softmax(0)[positives].mean().item() / 12
    assert _loss(inputs, contrastive={})["contrastive"] == pytest.approx(expected, rel=1e-5)


def test_a_duplicate_is_never_pushed_away() -> None:
    inputs = _inputs(groups=[0, 0])
    perfect = torch.zeros(2, 2, requires_grad=True)  # two pairs of one video: equal logits are the optimum
    losses = compute_losses(
        LossConfig(),
        LossInputs(perfect, perfect, inputs.row_positives, inputs.row_positives, {}, {}),
    )
    losses["total"].backward()
    assert perfect.grad is not None
    assert perfect.grad.abs().max() < 1e-7


@pytest.mark.parametrize(("form", "divisor"), [("official", 3), ("corrected", 6)])
def test_inter_consistency(form: str, divisor: int) -> None:
    inputs = _inputs(pairs=6, queries=3)
    text, video = inputs.text["concepts"], inputs.video["concepts"]
    expected = (video.mean(0) - text.mean(0)).square().mean().item()
    for query in range(3):
        agreement = sum(float(video[b, query] @ text[b, query]) for b in range(6)) / divisor
        expected += 0.02 * (agreement - 0.6) ** 2
    section = {"form": form, "margin_weight": 0.02, "target": 0.6}
    assert _loss(inputs, inter_consistency=section)["inter_consistency"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["official", "corrected"])
def test_intra_diversity(form: str) -> None:
    inputs = _inputs(queries=3)
    values = []
    for concepts in (inputs.video["concepts"], inputs.text["concepts"]):
        gram = torch.stack([c @ c.T for c in concepts]).mean(0)
        value = 0.0
        for i in range(3):
            for j in range(3):
                if i != j:
                    value += max(0.0, 0.5 + float(gram[i, j] - gram[i, i])) + max(
                        0.0, 0.5 + float(gram[i, j] - gram[j, j])
                    )
        values.append(value / 6)
    assert values[0] > 0
    expected = values[0] if form == "official" else sum(values) / 2
    found = _loss(inputs, intra_diversity={"form": form, "margin": 0.5})["intra_diversity"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_defaults_are_those_of_the_authors_code() -> None:
    """zchoi/GLSCL main_retrieval.py's argparse (margin_weight; weight is the scripts'), GLCCL's README, DRL's off.

    GARE's script, T-MASS's command for MSR-VTT, TC-MGC's argparse, UATVR's forward; Video-ColBERT has no code.
    """
    assert LossConfig().model_dump() == {
        "contrastive": {"weight": 1.0, "tiled_above": 4096},
        "inter_consistency": {"weight": 1.0, "margin_weight": 0.005, "target": 0.75, "form": "official"},
        "intra_diversity": {"weight": 1e-4, "margin": 0.1, "form": "official"},
        "contrastive_score_consistency": {"weight": 0.5, "form": "official"},
        "channel_decorrelation": {"weight": 0.0, "on_diagonal": 0.11, "off_diagonal": 0.0},
        "increment_bottleneck": {"weight": 1e-4},
        "increment_direction": {"weight": 0.01, "alpha": 2.0},
        "increment_radius": {"weight": 0.01, "limit": 0.5},
        "support_text": {"weight": 0.8},
        "similarity_decorrelation": {"weight": 0.5},
        "mil_nce": {"weight": 1e-2},
        "sample_divergence": {"weight": 1e-4},
        "level_sigmoid": {"weight": 1.0, "frames": 1.0, "video": 1.0},
        "sigmoid": {"weight": 0.0, "tiled_above": 4096},
    }
    for key in ("inter_consistency.margin_weight", *(f"{name}.weight" for name in term_names())):
        section, option = key.split(".")
        assert LossConfig.model_validate({section: {option: 0.0}})
        with pytest.raises(ValidationError, match="greater than or equal to 0"):
            LossConfig.model_validate({section: {option: -1e-9}})


@pytest.mark.parametrize(
    ("pairs", "queries", "beta", "weight"), [(1024, 8, 0.02, 1.0), (256, 12, 0.005, 0.5), (16, 8, 0.1, 1.0)]
)
def test_the_note_on_the_batch_says_what_the_official_form_starts_at(
    pairs: int, queries: int, beta: float, weight: float
) -> None:
    options = InterConsistencyOptions(weight=weight, margin_weight=beta)
    said = note_on_batch(options, queries, pairs, ["msrvtt"])
    assert said is not None
    for batch, pattern in ((pairs, r"about (\S+) at the first step"), (128, r"published at 128 \(about (\S+)\)")):
        number = re.search(pattern, said)
        assert number
        concepts = F.normalize(torch.ones(batch, queries, 4), dim=-1)  # before training, a query's concepts agree
        term = weight * registry.get("inter_consistency").function(
            options, LossInputs(*[torch.zeros(1, 1)] * 4, {"concepts": concepts}, {"concepts": concepts})
        )
        assert float(number[1].replace(",", "")) == pytest.approx(term.item(), rel=6e-3)
    assert f"contrastive loss of about {math.log(pairs):.1f}" in said
    assert said.endswith("Set loss.inter_consistency.form to corrected, or training.global_batch to 128")
    assert "\n" not in said


def test_the_corrected_form_starts_the_same_at_any_batch() -> None:
    """The official one is 70 times as large at 1,024 pairs as at 128."""
    sizes = {}
    for form in ("official", "corrected"):
        for pairs in (128, 1024):
            concepts = F.normalize(torch.ones(pairs, 8, 4), dim=-1)
            inputs = LossInputs(*[torch.zeros(1, 1)] * 4, {"concepts": concepts}, {"concepts": concepts})
            options = InterConsistencyOptions(margin_weight=0.02, form=form)  # type: ignore[arg-type]
            sizes[form, pairs] = registry.get("inter_consistency").function(options, inputs).item()
    assert sizes["official", 128] == pytest.approx(37.21, abs=0.01)
    assert sizes["official", 1024] == pytest.approx(2590.8, abs=0.5)
    assert sizes["corrected", 128] == pytest.approx(sizes["corrected", 1024]) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("changes", "pairs", "domains", "told"),
    [
        ({}, 128, ["msrvtt"], False),
        ({}, 127, ["msrvtt"], True),
        ({}, 128, ["didemo"], True),
        ({}, 32, ["didemo"], False),
        ({}, 64, ["activitynet"], False),
        ({}, 128, ["activitynet"], True),
        ({}, 128, ["msvd"], False),
        ({}, 128, ["lsmdc"], False),
        ({}, 128, ["a domain of one's own"], False),
        ({}, 1024, ["a domain of one's own"], True),
        ({}, 128, [], False),
        ({}, 128, ["didemo", "msrvtt"], False),
        ({}, 64, ["didemo", "msrvtt"], True),
        ({"form": "corrected"}, 1024, ["msrvtt"], False),
        ({"weight": 0.0}, 1024, ["msrvtt"], False),
        ({"margin_weight": 0.0}, 1024, ["msrvtt"], False),
    ],
)
def test_who_is_told_of_the_batch(changes: dict[str, Any], pairs: int, domains: list[str], told: bool) -> None:
    note = note_on_batch(InterConsistencyOptions(**changes), 8, pairs, domains)
    assert (note is not None) == told


def test_a_single_concept_has_nothing_to_keep_away_from() -> None:
    assert _loss(_inputs(queries=1), intra_diversity={})["intra_diversity"] == 0.0


def test_terms_are_weighted_and_summed_and_zero_switches_off() -> None:
    inputs = _inputs()
    one = _loss(inputs, contrastive={}, inter_consistency={})
    two = _loss(inputs, contrastive={"weight": 2.0}, inter_consistency={"weight": 0.5})
    assert set(one) == {"contrastive", "inter_consistency", "total"}
    assert two["contrastive"] == pytest.approx(2 * one["contrastive"])
    assert two["inter_consistency"] == pytest.approx(0.5 * one["inter_consistency"])
    assert two["total"] == pytest.approx(two["contrastive"] + two["inter_consistency"])


def test_terms_apply_where_the_head_provides_their_caches() -> None:
    glscl, pool = head_class("glscl"), head_class("mean_pool")
    of_scores, of_concepts = "contrastive_score_consistency", "inter_consistency"
    changed = {of_scores: {"weight": 0.4}, of_concepts: {"target": 0.7}}  # of the rest nobody asked for anything
    config = LossConfig.model_validate({"intra_diversity": {"weight": 0}} | changed)
    assert applicable_terms(config, glscl(16, glscl.Options())) == (("contrastive", of_concepts), (of_scores,))
    assert applicable_terms(config, pool(16, pool.Options())) == (("contrastive",), (of_scores, of_concepts))
    assert applicable_terms(LossConfig(), pool(16, pool.Options())) == (("contrastive",), ())
    without_local = glscl(16, glscl.Options.model_validate({"use_local": False}))
    assert applicable_terms(config, without_local) == (("contrastive",), (of_scores, of_concepts))
    glccl = build_head("glccl", 16, head_class("glccl").Options(), (6, 4))
    assert applicable_terms(config, glccl) == (("contrastive", of_scores), (of_concepts,))
    wti = build_head("wti", 16, head_class("wti").Options(), (6, 4))
    decorrelation = LossConfig.model_validate({"channel_decorrelation": {"weight": 0.001}})
    assert "channel_decorrelation" in applicable_terms(decorrelation, wti)[0]
    assert "channel_decorrelation" not in applicable_terms(config, wti)[0]


def test_a_term_stands_in_place_of_another_where_it_applies() -> None:
    colbert, pool = head_class("video_colbert"), head_class("mean_pool")
    head = colbert(16, colbert.Options.model_validate({"layers": 1}))
    assert applicable_terms(LossConfig(), head) == (("level_sigmoid",), ("contrastive",))
    assert applicable_terms(LossConfig(), pool(16, pool.Options())) == (("contrastive",), ())
    off = LossConfig.model_validate({"level_sigmoid": {"weight": 0}})
    assert applicable_terms(off, head) == (("contrastive",), ())
    inputs = _inputs()
    logits, positives = torch.randn(6, 6, 2), inputs.row_positives
    given = LossInputs(inputs.rows, inputs.rows, positives, positives, {}, {}, detail="level_logits", row_detail=logits)
    assert set(compute_losses(LossConfig(), given)) == {"level_sigmoid", "total"}
    assert set(compute_losses(off, given)) == {"contrastive", "total"}
    assert set(compute_losses(LossConfig(), inputs)) == {"contrastive", "inter_consistency", "intra_diversity", "total"}


def test_no_term_left_is_refused() -> None:
    config = LossConfig.model_validate({"contrastive": {"weight": 0}})
    inputs = _inputs()
    with pytest.raises(UserError, match="no term"):
        compute_losses(config, LossInputs(inputs.rows, inputs.rows, inputs.row_positives, inputs.row_positives, {}, {}))


def _with_parts(parts: torch.Tensor) -> LossInputs:
    positives = torch.eye(len(parts), dtype=torch.bool)
    return LossInputs(parts.mean(-1), parts.mean(-1), positives, positives, {}, {}, parts=parts)


@pytest.mark.parametrize("form", ["official", "corrected"])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_contrastive_score_consistency(form: str, scale: float) -> None:
    torch.manual_seed(0)
    parts = torch.randn(5, 5, 4) * 0.3 + 0.2
    matching = others = 0.0
    for a in range(5):
        for b in range(5):
            mean = sum(parts[a, b].tolist()) / 4
            variance = sum((score - mean) ** 2 for score in parts[a, b].tolist()) / 3
            if a == b:
                matching += variance / 5
            else:
                others += variance / (25 if form == "official" else 20)
    found = _loss(_with_parts(parts * scale), contrastive_score_consistency={"form": form})
    assert found["contrastive_score_consistency"] == pytest.approx(matching / others, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["all equal", "others equal", "one pair"])
def test_score_consistency_is_finite_where_scores_agree(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    pairs = 1 if case == "one pair" else 4
    parts = torch.rand(pairs, pairs, 4) * (0.0 if case == "all equal" else 0.1) + 0.25
    if case == "others equal":
        parts[~torch.eye(4, dtype=torch.bool)] = 0.25
    parts = parts.to(dtype).requires_grad_()
    config = LossConfig.model_validate({"contrastive": {"weight": 0}, "contrastive_score_consistency": {"weight": 1}})
    loss = compute_losses(config, _with_parts(parts))["total"]
    loss.backward()
    assert loss.isfinite()
    assert parts.grad is not None
    assert parts.grad.isfinite().all()
    assert bool(parts.grad.any()) == (case == "others equal")  # still pulls the matching pairs' scores together


def test_score_consistency_needs_more_than_one_score() -> None:
    provided = ("score_parts", "concepts")
    assert needed_features(LossConfig(), provided).names == {"score_parts", "concepts"}
    off = LossConfig.model_validate({"contrastive_score_consistency": {"weight": 0}})
    assert needed_features(off, provided).names == {"concepts"}
    assert needed_features(LossConfig(), ()).names == set()
    assert set(compute_losses(LossConfig(), _with_parts(torch.randn(3, 3, 1)))) == {"contrastive", "total"}
    assert "contrastive_score_consistency" in compute_losses(LossConfig(), _with_parts(torch.randn(3, 3, 2)))


def test_channel_decorrelation() -> None:
    """Against the term written out word by word, with padding in texts and videos."""
    torch.manual_seed(0)
    side = {}
    for name, length, real in (("text", 4, [4, 2, 3]), ("video", 3, [1, 3, 2])):
        mask = torch.arange(length) < torch.tensor(real)[:, None]
        weights = torch.rand(3, length).masked_fill(~mask, 0.0)
        features = F.normalize(torch.randn(3, length, 5), dim=-1).masked_fill(~mask.unsqueeze(-1), 9.0)
        side[name] = {"features": features, "mask": mask, "weights": weights / weights.sum(1, keepdim=True)}
    correlation = torch.zeros(5, 5)
    for own, other in ((side["text"], side["video"]), (side["video"], side["text"])):
        rows, matches, weights = [], [], []
        for n in range(3):
            candidates = other["features"][n][other["mask"][n]]
            for i in range(int(own["mask"][n].sum())):
                row = own["features"][n, i]
                rows.append(row)
                matches.append(max(candidates, key=lambda c, row=row: float(c @ row)))
                weights.append(own["weights"][n, i])
        first, second = (x.sub(x.mean(0)).div(x.std(0)) for x in (torch.stack(rows), torch.stack(matches)))
        for weight, a, b in zip(weights, first, second, strict=True):
            correlation += weight * torch.outer(a, b) / 3 / 2
    on = sum((correlation[i, i] - 1) ** 2 for i in range(5))
    off = sum(correlation[i, j] ** 2 for i in range(5) for j in range(5) if i != j)
    logits, positives = torch.zeros(3, 3), torch.eye(3, dtype=torch.bool)
    inputs = LossInputs(logits, logits, positives, positives, side["text"], side["video"])
    found = _loss(inputs, channel_decorrelation={"on_diagonal": 0.3, "off_diagonal": 0.7})["channel_decorrelation"]
    assert found == pytest.approx(float(0.3 * on + 0.7 * off), rel=1e-4)


def test_score_consistency_of_pairs_that_agree_is_held_at_a_variance_of_1e_6() -> None:
    parts = torch.full((4, 4, 2), 0.25)
    pairs = torch.arange(4)
    parts[pairs, pairs] = torch.tensor([0.2, 0.3])
    found = _loss(_with_parts(parts), contrastive_score_consistency={})["contrastive_score_consistency"]
    assert found == pytest.approx(0.005 / 1e-6, rel=1e-4)


def test_score_consistency_of_two_pairs() -> None:
    parts = torch.tensor([[[0.1, 0.3], [0.2, 0.8]], [[0.5, 0.9], [0.4, 0.6]]])
    variances = [[0.02, 0.18], [0.08, 0.02]]
    for form, divisor in (("official", 4), ("corrected", 2)):
        found = _loss(_with_parts(parts), contrastive_score_consistency={"form": form})
        expected = 0.02 / ((variances[0][1] + variances[1][0]) / divisor)
        assert found["contrastive_score_consistency"] == pytest.approx(expected, rel=1e-4)


def test_a_channel_without_any_spread_correlates_with_nothing() -> None:
    """It adds the same to every product, so that the matches are those without it."""
    torch.manual_seed(0)
    features = torch.randn(4, 3, 5)
    features[..., 4] = 0.5
    losses = []
    for channels in (4, 5):
        side = {"features": features[..., :channels], "weights": torch.full((4, 3), 1 / 3)}
        side["mask"] = torch.ones(4, 3, dtype=torch.bool)
        inputs = LossInputs(torch.zeros(4, 4), torch.zeros(4, 4), torch.eye(4) > 0, torch.eye(4) > 0, side, side)
        section = {"on_diagonal": 1.0, "off_diagonal": 0.5}
        losses.append(_loss(inputs, channel_decorrelation=section)["channel_decorrelation"])
    assert losses[1] == pytest.approx(losses[0] + 1, rel=1e-5)


def test_a_term_needs_its_caches_of_both_sides() -> None:
    inputs = _inputs()
    for text, video in (({}, inputs.video), (inputs.text, {})):
        given = LossInputs(inputs.rows, inputs.rows, inputs.row_positives, inputs.row_positives, text, video)
        assert set(compute_losses(LossConfig(), given)) == {"contrastive", "total"}


@pytest.mark.parametrize(
    ("term", "option"),
    [
        *((term, "weight") for term in term_names()),
        ("inter_consistency", "margin_weight"),
        ("channel_decorrelation", "on_diagonal"),
        ("channel_decorrelation", "off_diagonal"),
    ],
)
def test_weights_are_not_negative(term: str, option: str) -> None:
    for value in (0.0, 0.5):
        assert getattr(getattr(LossConfig.model_validate({term: {option: value}}), term), option) == value
    with pytest.raises(ValidationError, match=option):
        LossConfig.model_validate({term: {option: -0.5}})


@pytest.mark.parametrize("form", ["official", "corrected"])
def test_ranks_parts_of_the_loss_average_to_the_whole(form: str) -> None:
    """Six pairs over three ranks, two of them of one video."""
    torch.manual_seed(0)
    parts = torch.randn(6, 6, 4)
    ids = torch.tensor([0, 1, 2, 0, 4, 5])
    positives = ids[:, None] == ids
    config = LossConfig.model_validate({"contrastive_score_consistency": {"form": form}})
    logits = 7 * parts.mean(-1)
    whole = compute_losses(config, LossInputs(logits, logits, positives, positives, {}, {}, parts=parts))
    sums: list[torch.Tensor] = []
    for gathered in (False, True):
        losses = []
        for first in (0, 2, 4):
            own = slice(first, first + 2)

            def mean(tensor: torch.Tensor, gathered: bool = gathered) -> torch.Tensor:
                sums.append(tensor)
                return torch.stack(sums[:3]).mean(0) if gathered else tensor

            inputs = LossInputs(
                logits[own], logits[:, own], positives[own], positives[:, own], {}, {}, parts[own], first, mean
            )
            losses.append(compute_losses(config, inputs))
    for name, expected in whole.items():
        assert torch.stack([loss[name] for loss in losses]).mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_unknown_term_is_refused() -> None:
    with pytest.raises(ValidationError, match="intra_diversty"):
        LossConfig.model_validate({"intra_diversty": {"weight": 1.0}})


def test_what_a_term_is_given_does_not_change() -> None:
    for thing, name in ((_inputs(), "first"), (registry.get("contrastive"), "needs")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, name, 1)


def test_sigmoid_asks_of_every_pair_whether_it_belongs_together() -> None:
    inputs = _inputs(groups=[0, 0, 1, 2, 1, 3])
    bias = torch.tensor([-1.5])
    expected = sum(
        math.log1p(math.exp((-1 if inputs.row_positives[a, b] else 1) * (inputs.rows[a, b].item() - 1.5)))
        for a in range(6)
        for b in range(6)
    )
    found = _loss(replace(inputs, bias=bias), sigmoid={})
    assert found["sigmoid"] == pytest.approx(expected / 6, rel=1e-5)
    with pytest.raises(UserError, match="no term is on"):
        _loss(inputs, sigmoid={})  # without a bias it does not apply


def test_the_sigmoid_loss_asks_for_a_bias_by_name() -> None:
    on = LossConfig.model_validate({"sigmoid": {"weight": 1}})
    assert needs_logit_bias(on)
    assert not needs_logit_bias(LossConfig())
    head = build_head("mean_pool", 16, head_class("mean_pool").Options(), (8, 3))
    assert "sigmoid" in applicable_terms(on, head)[0]
