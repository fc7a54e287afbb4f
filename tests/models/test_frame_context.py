"""The temporal transformer over frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from glscl.errors import UserError
from glscl.models.frame_context import FrameContext
from glscl.models.heads import head_class
from glscl.models.towers import Towers


def test_with_mean_pooling_is_seq_transf_of_clip4clip(shared: Path) -> None:
    path = shared / "parity" / "heads" / "seq_transformer.safetensors"
    case = load_file(path)
    with safe_open(str(path), "pt") as file:
        meta = file.metadata()
    table = case["param.frame_position_embeddings.weight"]
    context = FrameContext(int(meta["width"]), int(meta["layers"]), int(meta["heads"]), len(table))
    prefix = "param.transformerClip."
    state = {key.removeprefix(prefix): tensor for key, tensor in case.items() if key.startswith(prefix)}
    context.load_state_dict(state | {"position_embeddings.weight": table})

    cls = head_class("mean_pool")
    head = cls(int(meta["width"]), cls.Options())
    frames = case["input.frames"].requires_grad_()
    eos = case["input.text_eos"].requires_grad_()
    text = head.encode_text(eos, case["input.text_tokens"], case["input.token_mask"])
    video = head.encode_video(context(frames, case["input.frame_mask"]), case["input.frame_mask"])
    similarity = head(text, video)
    (similarity * torch.linspace(-1, 1, similarity.numel()).view_as(similarity)).sum().backward()

    assert torch.allclose(similarity, case["expected.similarity"], rtol=0, atol=1e-5)
    for found, key in ((frames.grad, "expected.grad.frames"), (eos.grad, "expected.grad.text_eos")):
        assert found is not None
        assert (found - case[key]).abs().max() <= 1e-4 * case[key].abs().max()


def test_starts_from_the_text_tower() -> None:
    text = Towers("glscl-tiny").text
    context = FrameContext(text.width, layers=3, heads=text.heads, positions=80)
    context.initialise_from(text)
    assert torch.equal(context.position_embeddings.weight[:77], text.positional_embedding)
    for own, given in zip(context.resblocks, text.transformer.resblocks, strict=False):
        assert torch.equal(own.mlp.c_fc.weight, given.mlp.c_fc.weight)
        assert own.mlp.c_fc.weight is not given.mlp.c_fc.weight


def test_more_frames_than_positions_is_refused_with_the_knob() -> None:
    context = FrameContext(16, layers=1, heads=2, positions=4)
    with pytest.raises(UserError, match=r"model\.max_frames"):
        context(torch.zeros(1, 5, 16), torch.ones(1, 5))


def test_a_video_without_a_real_frame_stays_finite() -> None:
    context = FrameContext(16, layers=1, heads=2, positions=4)
    assert context(torch.randn(1, 4, 16), torch.zeros(1, 4)).isfinite().all()
