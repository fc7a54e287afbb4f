"""Loss terms against their equations written out, and the way they add up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glscl.errors import UserError
from glscl.losses import LossConfig, LossInputs, applicable_terms, compute_losses, term_names
from glscl.models.heads import head_class


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
    config = LossConfig.model_validate({"intra_diversity": {"weight": 0}})
    assert applicable_terms(config, glscl(16, glscl.Options())) == (("contrastive", "inter_consistency"), ())
    assert applicable_terms(config, pool(16, pool.Options())) == (("contrastive",), ("inter_consistency",))
    without_local = glscl(16, glscl.Options.model_validate({"use_local": False}))
    assert applicable_terms(config, without_local) == (("contrastive",), ("inter_consistency",))


def test_no_term_left_is_refused() -> None:
    config = LossConfig.model_validate({"contrastive": {"weight": 0}})
    inputs = _inputs()
    with pytest.raises(UserError, match="no term"):
        compute_losses(config, LossInputs(inputs.rows, inputs.rows, inputs.row_positives, inputs.row_positives, {}, {}))
