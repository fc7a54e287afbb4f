"""Heads: registry, the global score's algebra, masks, precision."""

from __future__ import annotations

import pytest
import torch

from glscl.errors import UserError
from glscl.models.heads import Features, Head, head_class, head_names
from glscl.models.heads.glscl import GLSCL, GLSCLOptions
from glscl.models.retriever import HeadsConfig

WIDTH = 16


def _glscl(**options: object) -> GLSCL:
    torch.manual_seed(0)
    defaults = {"queries": 3, "layers": 1, "attention_heads": 2, "feedforward": 32, "dropout": 0.0}
    return GLSCL(WIDTH, GLSCLOptions.model_validate(defaults | options))


def _build(name: str) -> Head:
    cls = head_class(name)
    return _glscl() if name == "glscl" else cls(WIDTH, cls.Options())


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
    with pytest.raises(UserError, match="did you mean 'glscl'"):
        head_class("glsl")


def test_every_head_has_its_section_in_the_configuration() -> None:
    assert set(HeadsConfig.model_fields) == set(head_names())
    for name in head_names():
        assert isinstance(getattr(HeadsConfig(), name), head_class(name).Options)


@pytest.mark.parametrize("options", [{}, {"use_local": False}, {"use_global": False}])
def test_global_score_is_the_cosine_with_the_pooled_video(options: dict[str, object]) -> None:
    head = _glscl(tau=0.7, **options)
    sentence, tokens, token_mask, frames, frame_mask = _inputs()
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


@pytest.mark.parametrize("name", head_names())
def test_padding_has_no_influence(name: str) -> None:
    head = _build(name).eval()
    sentence, tokens, token_mask, frames, frame_mask = _inputs()
    before = head(*_encode(head, sentence, tokens, token_mask, frames, frame_mask))
    tokens = tokens.masked_fill(~token_mask.unsqueeze(-1), 50.0)
    frames = frames.masked_fill(~frame_mask.unsqueeze(-1), 50.0)
    after = head(*_encode(head, sentence, tokens, token_mask, frames, frame_mask))
    assert torch.allclose(before, after, atol=1e-6)


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


def test_bf16_stays_near_fp32() -> None:
    head = _glscl().eval()
    inputs = _inputs()
    expected = head(*_encode(head, *inputs))
    found = head.bfloat16()(*_encode(head, *(x.bfloat16() if x.is_floating_point() else x for x in inputs)))
    assert (found - expected).abs().max() < 0.05
