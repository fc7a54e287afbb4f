"""What the newer heads do that no recording holds: equations in plain loops, draws, and what padding may do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.models.heads import Draws, Features, Head, build_head, head_class

WIDTH, WORDS, FRAMES = 16, 6, 4


def _build(name: str, **options: object) -> Any:
    torch.manual_seed(0)
    head = build_head(name, WIDTH, head_class(name).Options.model_validate(options), (WORDS, FRAMES))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head.eval()


def _inputs(texts: int = 3, videos: int = 5) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    torch.manual_seed(1)
    token_mask = torch.arange(WORDS) < torch.arange(2, texts + 2).unsqueeze(1)
    frame_mask = torch.arange(FRAMES) < (torch.arange(videos) % FRAMES + 1).unsqueeze(1)
    text = torch.randn(texts, WIDTH), torch.randn(texts, WORDS, WIDTH), token_mask
    return text, (torch.randn(videos, FRAMES, WIDTH), frame_mask)


def _encode(head: Head, texts: int = 3, videos: int = 5) -> tuple[Features, Features]:
    text, video = _inputs(texts, videos)
    return head.encode_text(*text), head.encode_video(*video)


@pytest.mark.parametrize("mask_padding", [True, False])
def test_video_colbert_is_the_mean_of_best_matches_at_two_levels(mask_padding: bool) -> None:
    head = _build("video_colbert", layers=1, attention_heads=2, expansion_tokens=3, mask_padding=mask_padding)
    (_, words, word_mask), (frames, frame_mask) = _inputs()
    both = head(*_encode(head), detail=True)
    positions = head.context.position_embeddings.weight[:FRAMES]
    for a in range(3):
        kept = [w for w in range(WORDS) if word_mask[a, w] or not mask_padding]
        for b in range(5):
            real = frames[b, frame_mask[b]]
            sequence = torch.cat([real + positions[: len(real)], head.expansion]).unsqueeze(0)
            tokens = head.context.attend(sequence, torch.ones(1, len(real) + 3))[0]
            tokens = torch.cat([tokens[: len(real)] + real, tokens[len(real) :]])
            levels = []
            for level in (real, tokens):
                items = level.detach()
                best = [max(float(F.cosine_similarity(words[a, w], item, dim=0)) for item in items) for w in kept]
                levels.append(sum(best) / len(kept))
            assert both[a, b, 0].item() == pytest.approx(sum(levels), abs=1e-5)
            for place, level in enumerate(levels):
                logit = head.level_log_scale[place].exp() * level + head.level_bias[place]
                assert both[a, b, 1 + place].item() == pytest.approx(logit.item(), abs=1e-4)
    assert torch.equal(head(*_encode(head)), both[..., 0])


def test_video_colbert_starts_with_pairs_that_do_not_match() -> None:
    head = build_head("video_colbert", WIDTH, head_class("video_colbert").Options(layers=1), (WORDS, FRAMES))
    assert head.level_log_scale.exp().tolist() == pytest.approx([10.0, 10.0])
    assert head.level_bias.tolist() == [-10.0, -10.0]


@pytest.mark.parametrize(
    ("pooling", "weights", "centroid_weight"),
    [("cluster", "saliency", 1.0), ("cluster", "none", 2.5), ("select_only", "none", 1.0)],
)
def test_agc_presses_frames_into_the_means_of_what_is_nearest(
    pooling: str, weights: str, centroid_weight: float
) -> None:
    options = {"pooling": pooling, "weights": weights, "centroid_weight": centroid_weight}
    head = _build("agc", layers=1, attention_heads=2, vectors=3, queries=2, **options)
    torch.manual_seed(2)
    features, attention = torch.randn(2, 7, WIDTH), torch.rand(2, 2, 2, 7)
    mask = torch.tensor([[True] * 7, [True] * 2 + [False] * 5])
    found = head.compress(features, attention, mask)
    assert found["mask"].tolist() == [[True] * 3, [True, True, False]]
    for item in range(2):
        length = int(mask[item].sum())
        saliency = attention[item, :, :, :length].mean(0).softmax(-1).mean(0)
        centroids = saliency.argsort(descending=True)[:3].tolist()
        cosines = F.normalize(features[item, :length], dim=-1) @ F.normalize(features[item], dim=-1).T
        nearest = [max(centroids, key=lambda c, f=f: float(cosines[f, c])) for f in range(length)]
        for place, centroid in enumerate(centroids):
            members = [f for f in range(length) if nearest[f] == centroid]
            shares = [centroid_weight if f == centroid else 1.0 for f in members]
            if weights == "saliency":
                shares = [float(saliency[f]) for f in members]
            vector = sum(share * features[item, f] for share, f in zip(shares, members, strict=True))
            if pooling == "select_only":
                vector = features[item, centroid]
            assert torch.allclose(found["vectors"][item, place], F.normalize(vector, dim=0), atol=1e-5)


def test_agc_sums_over_the_real_words() -> None:
    head = _build("agc", layers=1, attention_heads=2, vectors=2)
    text, video = _encode(head)
    for a in range(3):
        for b in range(5):
            vectors = video["vectors"][b, video["mask"][b]]
            words = text["tokens"][a, text["mask"][a]]
            expected = float((words @ vectors.T).amax(1).sum())
            assert head(text, video)[a, b].item() == pytest.approx(expected, abs=1e-5)


def test_the_attention_that_agc_reads_is_the_last_blocks() -> None:
    head = _build("agc", layers=2, attention_heads=2, queries=3)
    _, (frames, mask) = _inputs()
    context, given = head.context, []
    hook = context.resblocks[-1].attn.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    positions = context.position_embeddings.weight[:FRAMES]
    _, found = context.attend_and_tell(frames, mask, positions, head.queries)
    hook.remove()
    hidden = torch.cat([~mask, torch.zeros(5, 3, dtype=torch.bool)], 1)
    _, expected = context.resblocks[-1].attn(
        given[0], given[0], given[0], key_padding_mask=hidden, average_attn_weights=False
    )
    assert found.shape == (5, 2, 3, FRAMES + 3)
    assert torch.allclose(found, expected[:, :, FRAMES:], atol=1e-6)


def test_tmass_is_deterministic_and_another_seed_draws_other_points() -> None:
    scores = []
    for seed in (24, 24, 25):
        head = _build("tmass", seed=seed, trials=4)
        caches = _encode(head)
        torch.manual_seed(len(scores))
        state = torch.get_rng_state()
        scores.append(head(*caches))
        assert torch.equal(torch.get_rng_state(), state), "its points do not come from the global generator"
    assert torch.equal(scores[0], scores[1])
    assert not torch.allclose(scores[0], scores[2], atol=1e-3)


@pytest.mark.parametrize(("prior", "low", "high"), [("uniform", 0.0, 1.0), ("normal", -0.2, 0.2)])
def test_tmass_draws_from_its_prior(prior: str, low: float, high: float) -> None:
    head = _build("tmass", prior=prior, prior_std=0.05, trials=200)
    points = head._noise(torch.zeros(()))
    assert points.shape == (200, WIDTH)
    assert low <= points.min() < points.max() < high
    assert points.mean().item() == pytest.approx((low + high) / 2, abs=0.02)


def test_without_noise_tmass_is_x_pool() -> None:
    head = _build("tmass", prior="normal", prior_std=1e-9)
    pool = build_head("xpool", WIDTH, head_class("xpool").Options(), (WORDS, FRAMES)).eval()
    pool.load_state_dict(head.pool.state_dict())
    assert torch.allclose(head(*_encode(head)), pool(*_encode(pool)), atol=1e-6)


def test_more_points_find_no_worse_one() -> None:
    few, many = (_build("tmass", trials=trials) for trials in (3, 30))
    many._noise, points = few._noise, many._noise(torch.zeros(()))
    few._noise = lambda like: points[:3]
    first = few(*_encode(few))
    many._noise = lambda like: points
    assert (many(*_encode(many)) >= first - 1e-6).all()


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_a_pairs_numbers_are_the_same_whichever_rank_draws_them(kind: str) -> None:
    device = torch.device("cpu")

    def draw(seed: int, own: slice) -> Tensor:
        draws = Draws(seed, own, 8, device)
        first, second = getattr(draws, kind)(3), getattr(draws, kind)(2, 5)
        assert first.shape[1:] == (3,)
        return torch.cat([first, second.flatten(1)], 1)

    whole = draw(7, slice(0, 8))
    assert torch.equal(torch.cat([draw(7, slice(first, first + 2)) for first in (0, 2, 4, 6)]), whole)
    assert len(whole.unique()) == whole.numel()
    assert not torch.equal(draw(8, slice(0, 8)), whole)


def test_samples_of_uatvr_have_the_distributions_mean_and_deviation() -> None:
    head = _build("uatvr", layers=1, attention_heads=2, text_samples=4000, video_samples=2).train()
    text, video = _encode(head, texts=3, videos=3)
    samples = head.match(text, video, text, Draws(0, slice(0, 3), 3, torch.device("cpu")), ("samples",))[0]["samples"]
    assert torch.allclose(samples.mean(1), text["mu"], atol=0.15)
    assert torch.allclose(samples.std(1), text["log_sigma"].exp(), rtol=0.1)
    assert head.match(text, video, text, Draws(0, slice(0, 3), 3, torch.device("cpu")), ()) == ({}, {})


@pytest.mark.parametrize(("extra", "mask_padding", "hidden"), [(0, False, True), (0, True, False), (1, False, False)])
def test_the_first_word_is_hidden_where_the_authors_code_hides_it(extra: int, mask_padding: bool, hidden: bool) -> None:
    head = _build("uatvr", layers=1, attention_heads=2, extra_text_tokens=extra, mask_padding=mask_padding)
    text, _ = _encode(head)
    assert (not text["mask"][:, 0].any()) == hidden
    assert text["weights"][:, 0].eq(0).all() == hidden
    assert text["mask"][:, 1].all()


def test_tc_mgc_keeps_at_least_one_word_and_no_more_than_its_share() -> None:
    for rate, kept in ((0.01, 1), (0.1, 1), (0.5, 3), (0.99, 5), (1.0, 6)):
        head = _build("tcmgc", keep_rate=rate)
        assert head.kept == len(head.attentive_word_logit_weight) == kept
        assert len(head.concat_frame_word_logit_weight) == kept + 1
        assert head(*_encode(head)).isfinite().all()


def test_tc_mgcs_similarity_joins_its_scores_by_the_logit_scale() -> None:
    head = _build("tcmgc", keep_rate=0.5, softmax_lambda=5.0)
    caches = _encode(head)
    for scale in (1.0, 30.0):
        both = head(*caches, detail=True, scale=torch.tensor([scale]))
        for a in range(3):
            for b in range(5):
                scores = both[a, b, 1:]
                weights = (scale * scores @ head.logit_weight).softmax(0)
                assert both[a, b, 0].item() == pytest.approx(float(weights @ scores), abs=1e-6)
    assert not torch.allclose(head(*caches, scale=1.0), head(*caches, scale=30.0), atol=1e-3)


def test_the_increment_of_a_video_of_one_frame_does_not_depend_on_the_text() -> None:
    head = _build("gare")
    increments = head(*_encode(head), detail=True)[..., 1:]
    one = increments[:, 0]  # the first video has one real frame
    assert torch.allclose(one, one[:1].expand_as(one), atol=1e-5)
    assert not torch.allclose(increments[:, 3], increments[:1, 3].expand_as(one), atol=1e-3)


def test_gare_is_its_equations_with_every_vector_built() -> None:
    head = _build("gare", tau=0.9)
    (sentence, _, _), (frames, mask) = _inputs()
    found = head(*_encode(head), detail=True)
    norm = head.layer_norm1
    for a in range(3):
        for b in range(5):
            real = frames[b, mask[b]]
            query = head.q_proj(norm(real.mean(0) - sentence[a]))
            keys, values = head.k_proj(norm(real)), head.v_proj(norm(real))
            attended = head.out_proj((keys @ query / WIDTH**0.5).softmax(0) @ values)
            attended = head.layer_norm2(attended)
            increment = head.mean_proj(head.layer_norm3(attended + head.linear_proj(attended)))
            pooled = (real @ sentence[a] / 0.9).softmax(0) @ real
            assert torch.allclose(found[a, b, 1:], increment, atol=1e-5)
            expected = F.cosine_similarity(sentence[a] + increment, pooled, dim=0)
            assert found[a, b, 0].item() == pytest.approx(expected.item(), abs=1e-5)
