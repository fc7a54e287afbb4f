"""Heads: registry, the global score's algebra, masks, precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from glscl.errors import UserError
from glscl.models.heads import Draws, Features, Head, build_head, head_class, head_names
from glscl.models.heads.glscl import GLSCL, GLSCLOptions
from glscl.models.heads.mean_pool import MeanPool
from glscl.models.options import HeadsConfig
from glscl.models.scores import tiles
from glscl.models.towers import Towers

WIDTH = 16


def _glscl(**options: object) -> GLSCL:
    torch.manual_seed(0)
    defaults = {"queries": 3, "layers": 1, "attention_heads": 2, "feedforward": 32, "dropout": 0.0}
    return GLSCL(WIDTH, GLSCLOptions.model_validate(defaults | options))


def _build(name: str, words: int = 6, frames: int = 4, **options: object) -> Head:
    """A head without dropout whose parameters are away from their initial values."""
    torch.manual_seed(0)
    cls = head_class(name)
    small = {
        "glscl": {"queries": 3, "layers": 1, "attention_heads": 2, "feedforward": 32, "dropout": 0.0},
        "seq_transformer": {"layers": 2, "attention_heads": 2},
        "tight_transformer": {"layers": 2, "attention_heads": 2, "dropout": 0.0},
        "xpool": {"attention_heads": 2, "dropout": 0.0},
        "dicosa": {"centers": 2},
        "gare": {"dropout": 0.0, "tau": 1.0},
        "tmass": {"attention_heads": 2, "dropout": 0.0, "trials": 3},
        "uatvr": {"layers": 2, "attention_heads": 2, "extra_text_tokens": 1},
        "agc": {"layers": 2, "attention_heads": 2, "vectors": 2, "queries": 3},
        "tcmgc": {"attention_heads": 2, "dropout": 0.0, "keep_rate": 3.01 / words, "softmax_lambda": 5.0},
        "video_colbert": {"layers": 2, "attention_heads": 2},
    }.get(name, {})
    head = build_head(name, WIDTH, cls.Options.model_validate(small | options), (words, frames))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


def _inputs(texts: int = 5, videos: int = 7, words: int = 6, length: int = 4) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    sentence, tokens = torch.randn(texts, WIDTH), torch.randn(texts, words, WIDTH)
    frames = torch.randn(videos, length, WIDTH)
    token_mask = torch.arange(words) < torch.arange(1, texts + 1).unsqueeze(1)
    frame_mask = torch.arange(length) < (torch.arange(videos) % length + 1).unsqueeze(1)
    return sentence, tokens, token_mask, frames, frame_mask


def _encode(head: Head, *inputs: torch.Tensor) -> tuple[Features, Features]:
    sentence, tokens, token_mask, frames, frame_mask = inputs
    return head.encode_text(sentence, tokens, token_mask), head.encode_video(frames, frame_mask)


def test_unknown_head_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="unknown head 'glsl', did you mean 'glscl'"):
        head_class("glsl")


def test_every_head_has_its_section_in_the_configuration() -> None:
    assert set(HeadsConfig.model_fields) == set(head_names())
    for name in head_names():
        assert isinstance(getattr(HeadsConfig(), name), head_class(name).Options)


@pytest.mark.parametrize("size", [1.0, 0.01])
@pytest.mark.parametrize("options", [{}, {"use_local": False}, {"use_global": False}])
def test_global_score_is_the_cosine_with_the_pooled_video(options: dict[str, object], size: float) -> None:
    head = _glscl(tau=0.7, **options)
    sentence, tokens, token_mask, frames, frame_mask = _inputs()
    sentence, frames = sentence * size, frames * size
    text, video = _encode(head, sentence, tokens, token_mask, frames, frame_mask)
    weights = torch.einsum("ad,bfd->abf", sentence, frames).div(0.7).softmax(-1) * frame_mask
    pooled = torch.einsum("abf,bfd->abd", weights, frames)  # the tensor that the head never builds
    expected = torch.zeros(5, 7)
    if head.options.use_global:
        expected += torch.einsum("ad,abd->ab", sentence, pooled) / pooled.norm(dim=-1) / sentence.norm(dim=-1)[:, None]
    if head.options.use_local:
        expected += 0.5 * torch.einsum("akd,bkd->ab", text["concepts"], video["concepts"]) / 3
    assert torch.allclose(head(text, video), expected, atol=1e-6)
    assert ("concepts" in head.provides) == head.options.use_local


def test_both_parts_off_is_refused() -> None:
    with pytest.raises(UserError, match="use_global and use_local"):
        _glscl(use_global=False, use_local=False)


def test_attention_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"model\.heads\.glscl\.attention_heads"):
        _glscl(attention_heads=3)


@pytest.mark.parametrize("name", head_names())
def test_blocks_score_as_the_whole(name: str) -> None:
    head = _build(name).eval()
    text, video = _encode(head, *_inputs(texts=5, videos=300, length=4))  # more frames than one block of videos holds
    whole = head(text, video)
    rows = []
    for texts in (slice(0, 2), slice(2, 5)):
        columns = [
            head({k: v[texts] for k, v in text.items()}, {k: v[videos] for k, v in video.items()})
            for videos in (slice(0, 1), slice(1, 200), slice(200, 300))
        ]
        rows.append(torch.cat(columns, 1))
    assert torch.allclose(torch.cat(rows), whole, atol=1e-6)


@pytest.mark.parametrize("tile", [1, 90, 1500])
@pytest.mark.parametrize("name", head_names())
def test_tiles_score_as_the_whole(name: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    head = _build(name)
    results = []
    for size in (tiles.CPU_TILE, tile):
        monkeypatch.setattr(tiles, "CPU_TILE", size)
        monkeypatch.setattr(tiles, "DEVICE_TILE", size)
        features = [x.requires_grad_() if x.is_floating_point() else x for x in _inputs()]
        similarity = head(*_encode(head, *features))
        head.zero_grad()
        (similarity * torch.linspace(-1, 1, 35).view(5, 7)).sum().backward()
        grads = [x.grad for x in (*features, *head.parameters()) if x.grad is not None]
        results.append([similarity, *grads])
    assert len(results[0]) == len(results[1]) > 1
    for whole, tiled in zip(*results, strict=True):
        assert torch.allclose(whole, tiled, rtol=0, atol=1e-5 * max(1.0, whole.abs().max().item()))


def test_a_head_per_pair_never_holds_more_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    head = _build("tight_transformer")
    text, video = _encode(head, *_inputs(texts=20, videos=30))
    per_pair = 4 * (1 + 4) * WIDTH
    monkeypatch.setattr(tiles, "CPU_TILE", 50 * per_pair)
    pairs: list[int] = []
    head.context.resblocks[0].register_forward_hook(lambda module, inputs, output: pairs.append(len(output)))
    head(text, video)
    assert sum(pairs) == 600
    assert max(pairs) <= 50


@pytest.mark.parametrize("name", head_names())
def test_padding_has_no_influence(name: str) -> None:
    head = _build(name).eval()
    sentence, tokens, token_mask, frames, frame_mask = _inputs()
    before = head(*_encode(head, sentence, tokens, token_mask, frames, frame_mask))
    tokens = tokens.masked_fill(~token_mask.unsqueeze(-1), 50.0)
    frames = frames.masked_fill(~frame_mask.unsqueeze(-1), 50.0)
    after = head(*_encode(head, sentence, tokens, token_mask, frames, frame_mask))
    assert torch.allclose(before, after, atol=1e-6)


@pytest.mark.parametrize("name", sorted({*head_names()} - {"uatvr"}))  # its extra tokens stand behind the padding
def test_padding_is_as_good_as_absent(name: str) -> None:
    sentence, tokens, _, frames, _ = _inputs()
    long, short = _build(name, 6, 4).eval(), _build(name, 4, 3).eval()
    given = long.state_dict()
    short.load_state_dict(  # matrices over words or frames are cut
        {key: given[key][tuple(slice(size) for size in own.shape)] for key, own in short.state_dict().items()}
    )
    token_mask, frame_mask = (torch.arange(n) < kept for n, kept in ((6, 4), (4, 3)))
    padded = long(*_encode(long, sentence, tokens, token_mask.expand(5, 6), frames, frame_mask.expand(7, 4)))
    cut = short(
        *_encode(short, sentence, tokens[:, :4], torch.ones(5, 4), frames[:, :3], torch.ones(7, 3, dtype=torch.bool))
    )
    assert torch.allclose(padded, cut, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["agc", "glccl", "xclip", "xpool", "wti", "dicosa", "gare", "tcmgc", "tmass", "uatvr", "video_colbert"],
)
def test_authors_use_of_padding_can_be_had(name: str) -> None:
    inputs = _inputs()
    one, other = (head(*_encode(head, *inputs)) for head in (_build(name), _build(name, mask_padding=False)))
    assert not torch.allclose(one, other, atol=1e-4)


def test_padding_is_attended_to_where_asked() -> None:
    head = _glscl(mask_padding=False).eval()
    sentence, tokens, token_mask, frames, frame_mask = _inputs()
    before = head(*_encode(head, sentence, tokens, token_mask, frames, frame_mask))
    tokens = tokens.masked_fill(~token_mask.unsqueeze(-1), 50.0)
    assert not torch.allclose(before, head(*_encode(head, sentence, tokens, token_mask, frames, frame_mask)), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", head_names())
def test_finite_scores_and_gradients_without_a_real_frame(name: str, dtype: torch.dtype) -> None:
    head = _build(name).to(dtype)
    sentence, tokens, token_mask, frames, frame_mask = _inputs()
    frame_mask[2] = False
    sentence, tokens, frames = (x.to(dtype).requires_grad_() for x in (sentence, tokens, frames))
    similarity = head(*_encode(head, sentence, tokens, token_mask, frames, frame_mask))
    assert similarity.dtype == torch.float32
    assert similarity.isfinite().all()
    similarity.square().sum().backward()
    for tensor in (sentence, tokens, frames, *head.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", head_names())
def test_features_of_zeros_score_finite_numbers(name: str) -> None:
    head = _build(name).eval()
    assert (
        head(*_encode(head, *(torch.zeros_like(x) if x.is_floating_point() else x for x in _inputs()))).isfinite().all()
    )


@pytest.mark.parametrize("name", head_names())
def test_bf16_stays_near_fp32(name: str) -> None:
    head = _build(name).eval()
    inputs = _inputs()
    expected = head(*_encode(head, *inputs))
    found = head.bfloat16()(*_encode(head, *(x.bfloat16() if x.is_floating_point() else x for x in inputs)))
    assert (found - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    ("name", "what"),
    [("xclip", "words"), ("xclip", "frames"), ("glccl", "words"), ("tcmgc", "words"), ("tmass", "frames")],
)
def test_another_length_is_refused_with_the_numbers(name: str, what: str) -> None:
    head = _build(name, words=6, frames=4)
    assert what in head.length_tied
    words, length = (9, 4) if what == "words" else (6, 9)
    own = {"words": 6, "frames": 4}[what]
    with pytest.raises(
        UserError, match=rf"head '{name}' has parameters for {own} {what} and cannot take 9.*max_{what}"
    ):
        _encode(head, *_inputs(words=words, length=length))


@pytest.mark.parametrize("name", head_names())
def test_lengths_that_no_parameter_has_are_free(name: str) -> None:
    head = _build(name)
    words, length = 6 if "words" in head.length_tied else 9, 4 if "frames" in head.length_tied else 9
    assert head(*_encode(head, *_inputs(words=words, length=length))).shape == (5, 7)


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("seq_transformer", 3),
        ("tight_transformer", 3),
        ("tight_transformer", 4),
        ("agc", 3),
        ("video_colbert", 3),
    ],
)
def test_more_frames_than_positions_is_refused_with_the_knob(name: str, positions: int) -> None:
    head = _build(name, positions=positions)
    with pytest.raises(UserError, match=rf"model\.heads\.{name}\.positions: 4 frames"):
        _encode(head, *_inputs())


@pytest.mark.parametrize(("positions", "what"), [(6, "6 words and 1 extra"), (7, None), (5, "6 words and 1 extra")])
def test_extra_tokens_take_positions(positions: int, what: str | None) -> None:
    head = _build("uatvr", positions=positions)
    if what is None:
        _encode(head, *_inputs())
        with pytest.raises(UserError, match=r"model\.heads\.uatvr\.positions: 6 frames and 2 extra tokens"):
            _encode(head, *_inputs(length=6))
        return
    with pytest.raises(UserError, match=rf"model\.heads\.uatvr\.positions: {what}.*have {positions} rows.*max_words"):
        _encode(head, *_inputs())


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *((name, {"attention_heads": 3}) for name in ("agc", "tcmgc", "tmass", "uatvr", "video_colbert")),
        ("seq_transformer", {"attention_heads": 3}),
        ("tight_transformer", {"attention_heads": 3}),
        ("xpool", {"attention_heads": 3}),
        ("dicosa", {"centers": 3}),
    ],
)
def test_options_that_do_not_divide_the_width_are_refused(name: str, option: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"model\.heads\.{name}\.{next(iter(option))}: 3 does not divide"):
        _build(name, **option)


@pytest.mark.parametrize("name", ["seq_transformer", "tight_transformer"])
def test_transformer_heads_start_from_the_text_tower(name: str) -> None:
    towers = Towers("glscl-tiny")
    cls = head_class(name)
    head = build_head(name, towers.width, cls.Options(), (32, 12))
    head.initialise_from(towers.text)
    assert torch.equal(head.context.position_embeddings.weight, towers.text.positional_embedding)


@pytest.mark.parametrize("size", [1.0, 0.01])
def test_glccl_is_its_equations_with_every_pooled_feature_written_out(size: float) -> None:
    head = _build("glccl", mask_padding=False, tau=0.7)
    inputs = [x * size if x.is_floating_point() else x for x in _inputs()]
    s, w, _, v, _ = inputs

    def pooled(query: torch.Tensor) -> torch.Tensor:
        weights = (torch.einsum("ad,bfd->abf", query, v) / 0.7).softmax(-1)
        return F.normalize(torch.einsum("abf,bfd->abd", weights, v), dim=-1)

    def attended(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        return ((x / 0.01).softmax(-1) @ matrix * x).sum(-1)

    for_s, for_w = pooled(s), torch.stack([pooled(w[:, i]) for i in range(6)], 2)
    s, w = F.normalize(s, dim=-1), F.normalize(w, dim=-1)
    fine = torch.einsum("atd,abud->abtu", w @ head.local_mat_weight, for_w)
    expected = [
        torch.einsum("ad,abd->ab", s @ head.global_mat_weight, for_s),
        attended(torch.einsum("awd,abd->abw", w, for_s), head.word_logit_weight),
        attended(torch.einsum("ad,abwd->abw", s, for_w), head.word_frame_logit_weight),
        attended(attended(fine.mT, head.word_mat_weight), head.word_frame_mat_weight2) / 2
        + attended(attended(fine, head.word_frame_mat_weight), head.word_mat_weight2) / 2,
    ]
    caches = _encode(head, *inputs)
    assert torch.allclose(head(*caches, parts=True), torch.stack(expected, -1), atol=1e-5)
    assert torch.allclose(head(*caches), torch.stack(expected).mean(0), atol=1e-5)


@pytest.mark.parametrize("name", ["gare", "tcmgc", "tmass", "xpool"])
def test_folded_maps_are_the_maps(name: str) -> None:
    """Scores, details and gradients in float64, with every vector of a pair built and without."""
    head = _build(name, dropout=0.5).double()
    for module in head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the head's options still say that maps cannot be folded in training
    inputs = [x.double() if x.is_floating_point() else x for x in _inputs(texts=7)]
    results, caches = [], []
    for training in (True, False):
        head.train(training)
        leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
        text, video = _encode(head, *leaves)
        scores = [head(text, video)]
        matched = head.match(text, video, text, Draws(3, slice(0, 7), 7, torch.device("cpu")), ("support",))
        if head.detail is not None:
            scores.append(head(text | matched[0], video | matched[1], detail=True))
        grads = []
        for score in scores:
            objective = (score * torch.linspace(-1, 1, score.numel(), dtype=torch.float64).view_as(score)).sum()
            of = [x for x in (*leaves, *head.parameters()) if x.requires_grad]
            grads += torch.autograd.grad(objective, of, retain_graph=True, allow_unused=True, materialize_grads=True)
        results.append([*scores, *grads])
        caches.append(set(video))
    assert caches[0] != caches[1]
    assert any(grad.abs().max() > 0.1 for grad in results[0])
    for built, folded in zip(*results, strict=True):
        assert torch.allclose(built, folded, rtol=1e-9, atol=1e-9 * max(1.0, built.abs().max().item()))


def _counted(head: Head, words: int, length: int) -> float:
    """Multiply-adds per pair that torch counts while three texts meet five videos."""
    features = torch.randn(3, head.width), torch.randn(3, words, head.width), torch.ones(3, words)
    with torch.no_grad():
        text = head.encode_text(*features)
        video = head.encode_video(torch.randn(5, length, head.width), torch.ones(5, length))
        with FlopCounterMode(display=False) as counter:
            head(text, video)
    return counter.get_total_flops() / 2 / 15


@pytest.mark.parametrize("lengths", [(6, 4), (5, 9)])
@pytest.mark.parametrize("name", head_names())
def test_declared_multiply_adds_are_those_that_torch_counts(name: str, lengths: tuple[int, int]) -> None:
    head = _build(name, *lengths).eval()
    assert head.implemented_multiply_adds(*lengths) == _counted(head, *lengths)


@pytest.mark.parametrize(
    ("name", "short", "long"),
    [
        ("mean_pool", 512, 512),
        ("seq_transformer", 512, 512),
        ("glscl", 16_896, 72_192),
        ("wti", 196_608, 2_097_152),
        ("xclip", 238_880, 2_703_872),
        ("xpool", 537_088, 590_336),
        ("glccl", 1_032_704, 6_963_712),
        ("tight_transformer", 164_500_000, 835_500_000),
        ("gare", 1_073_664, 1_180_160),
        ("tmass", 559_104, 665_600),
        ("video_colbert", 425_984, 4_259_840),
        ("agc", 81_920, 163_840),
        ("uatvr", 243_712, 2_230_272),
        ("tcmgc", 9_616_000, 23_479_000),
    ],
)
def test_multiply_adds_of_the_methods_at_their_usual_sizes(name: str, short: int, long: int) -> None:
    """12 frames and 32 words, and 64 of both, at feature width 512 (counted from the authors' code)."""
    for words, length, queries, expected in ((32, 12, 8, short), (64, 64, 12, long)):
        cls = head_class(name)
        options = cls.Options.model_validate({"queries": queries} if name == "glscl" else {})
        with torch.device("meta"):
            head = build_head(name, 512, options, (words, length))
        assert head.multiply_adds(words, length) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "expected", "implemented"),
    [
        ("glscl", {}, 9 * 16 + 3 * 16, 4 * 16 + 4**2 + 3 * 16),
        ("glscl", {"use_local": False}, 9 * 16, 4 * 16 + 4**2),
        ("glscl", {"use_global": False}, 3 * 16, 3 * 16),
        ("mean_pool", {}, 16, 16),
        ("seq_transformer", {}, 16, 16),
        ("wti", {}, 6 * 4 * 16, 6 * 4 * 16),
        ("xclip", {}, 35 * 16 + 6 * 6**2 + 8 * 4**2, 35 * 16 + 6 * 6**2 + 8 * 4**2),
        ("xpool", {}, 2 * 16**2 + 8 * 16 + 16, 4 * 16 + 8 * 16 + 8**2 + 9**2 + 10**2),
        ("dicosa", {}, 13 * 16 + 4 * 16**2, 8 * 16 + 2 * 4**2 + 16 * 16),
        ("glccl", {}, 56 * 16 + 49 * 16 + 4 * 6**2 + 2 * 6**3, 56 * 16 + 7 * 4**2 + 6**2 * 4 + 4 * 6**2 + 2 * 6**3),
        ("tight_transformer", {}, *[2 * (60 * 16**2 + 50 * 16) + 16**2 + 16] * 2),
        ("gare", {}, 4 * 16**2 + 17 * 16, 13 * 16 + 2 * 4**2 + 5**2 + 6**2 + 6 * 4),
        ("tmass", {}, 2 * 16**2 + 19 * 16, 4 * 16 + 10 * 16 + 8**2 + 9**2 + 18 * 16),
        ("tcmgc", {}, 7 * (24 * 16) + 49 * 16 + 113, 7 * (20 * 16 + 8**2 + 9**2 + 10**2) + 6**2 * 10 + 113),
        ("uatvr", {}, *[7 * 6 * 16] * 2),
        ("video_colbert", {}, *[6 * 10 * 16] * 2),
        ("agc", {}, *[6 * 2 * 16] * 2),
        ("agc", {"vectors": 9}, *[6 * 4 * 16] * 2),
    ],
)
def test_multiply_adds_at_6_words_and_4_frames(
    name: str, options: dict[str, object], expected: int, implemented: int
) -> None:
    head = _build(name, **options)
    assert (head.multiply_adds(6, 4), head.implemented_multiply_adds(6, 4)) == (expected, implemented)


def test_a_head_that_does_not_declare_its_multiply_adds_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    class Plain(MeanPool):
        multiply_adds = Head.multiply_adds

    assert Plain(WIDTH, MeanPool.Options()).multiply_adds(6, 4) == WIDTH
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", head_names())
def test_facts(name: str) -> None:
    head = _build(name)
    facts = head.facts(6, 4)
    assert facts.parameters == sum(parameter.numel() for parameter in head.parameters())
    assert facts.length_tied == head.length_tied
    for cache, shapes in zip(_encode(head, *_inputs()), (facts.text_cache, facts.video_cache), strict=True):
        assert {key: tuple(tensor.shape[1:]) for key, tensor in cache.items()} == shapes
        assert cache
