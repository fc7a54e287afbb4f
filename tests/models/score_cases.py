"""Random cases of pooled and maximum scores, held against their equations in float64.

    TRITON_INTERPRET=1 python tests/models/score_cases.py

checks the Triton kernels without a GPU; what interprets them must be said before they are imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

SEEDS = range(8)
TYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of gradients, relative to the largest; they come in the features' type, and scores in float32."""
SCORE_TOLERANCE = 1e-5


def _sizes(seed: int, *limits: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(torch.randint(1, limit + 1, (1,), generator=generator)) for limit in limits]


def _masks(*shapes: tuple[int, int]) -> list[Tensor]:
    """Random masks, of which the first row hides everything."""
    masks = [torch.rand(shape) > 0.3 for shape in shapes]
    for mask in masks:
        mask[0] = False
    return masks


def check_pooled(module: ModuleType, seed: int, kind: torch.dtype) -> None:
    """Scores and gradients of random queries and frames; odd seeds have equal frames."""
    texts, videos, length, width = _sizes(seed, 70, 12, 40, 40)
    width += 7
    torch.manual_seed(seed)
    queries, frames = torch.randn(texts, width), torch.randn(videos, length, width)
    frames = frames[:, :1].expand_as(frames) if seed % 2 else frames
    (mask,) = _masks((videos, length))
    tau = 0.3 + seed

    def by_gram(q: Tensor, v: Tensor) -> Tensor:
        scores: Tensor = module.pooled_scores(q, v, v.float() @ v.float().mT, mask, tau)
        return scores

    def written_out(q: Tensor, v: Tensor) -> Tensor:
        logits = torch.einsum("ad,bfd->abf", q, v) / tau
        weights = logits.masked_fill(~mask, -1e300).softmax(-1) * mask
        pooled = torch.einsum("abf,bfd->abd", weights, v)
        return torch.einsum("ad,abd->ab", q, pooled) / pooled.norm(dim=-1).clamp_min(1e-6)

    _compare(by_gram, written_out, (queries.to(kind), frames.to(kind)), kind)


def check_maximum(module: ModuleType, seed: int, kind: torch.dtype) -> None:
    """Scores and gradients of features of few values, which have many equal products, exact in any order.

    Of every fourth seed in one direction, from words to frames.
    """
    texts, videos, words, length, width = _sizes(seed, 9, 7, 20, 20, 24)
    torch.manual_seed(seed)
    w, f = torch.randint(-1, 2, (texts, words, width)) / 8, torch.randint(-1, 2, (videos, length, width)) / 8
    masks = _masks((texts, words), (videos, length))
    logits = torch.randn(texts, words), torch.randn(videos, length)
    hidden = -1.0 if seed % 2 else 0.0

    def weights(of_words: Tensor, of_frames: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip((of_words, of_frames), masks, strict=True)
        first, second = (logit.masked_fill(~mask, -1e30).softmax(-1) for logit, mask in pairs)
        return first, second

    one_way = seed % 4 == 3

    def in_tiles(w: Tensor, f: Tensor, *logits: Tensor) -> Tensor:
        alpha, beta = weights(*logits)
        given: tuple[Tensor, Tensor | None] = alpha, beta
        if one_way:
            given = (2 * alpha, 0 * beta) if "triton" in module.__name__ else (alpha, None)
        scores: Tensor = module.maximum_scores(w, f, tuple(masks), given, hidden)
        return scores + 0 * beta.sum()

    def written_out(w: Tensor, f: Tensor, *logits: Tensor) -> Tensor:
        alpha, beta = weights(*logits)
        products = torch.einsum("awd,bfd->abwf", w, f)
        products = products.masked_fill(~(masks[0][:, None, :, None] & masks[1][None, :, None, :]), hidden)
        by_word, by_frame = products.amax(3) * alpha[:, None], products.amax(2) * beta
        return by_word.sum(-1) + 0 * beta.sum() if one_way else (by_word.sum(-1) + by_frame.sum(-1)) / 2

    _compare(in_tiles, written_out, (w.to(kind), f.to(kind), *logits), kind)


def _compare(
    found: Callable[..., Tensor], expected: Callable[..., Tensor], inputs: tuple[Tensor, ...], kind: torch.dtype
) -> None:
    """Scores and gradients of a random objective, of ``expected`` in float64."""
    results = []
    given = torch.randn(len(inputs[0]), len(inputs[1]))
    for function, types in ((found, [x.dtype for x in inputs]), (expected, [torch.float64] * len(inputs))):
        leaves = [x.detach().to(dtype).requires_grad_() for x, dtype in zip(inputs, types, strict=True)]
        scores = function(*leaves)
        (scores * given).sum().backward()
        results.append([scores.detach(), *(leaf.grad for leaf in leaves)])
    for index, (these, those) in enumerate(zip(*results, strict=True)):
        assert these is not None
        assert these.dtype == (inputs[index - 1].dtype if index else torch.float32)
        largest = max(those.abs().max().item(), 0.1)
        difference = (these.double() - those).abs().max().item() / largest
        allowed = TOLERANCE[kind] if index else SCORE_TOLERANCE
        assert difference <= allowed, f"{'gradient' if index else 'scores'} {index}: {difference:.1e} of {largest:.1e}"


if __name__ == "__main__":
    prefix = "glscl.models.scores.triton_"
    for check, name in ((check_pooled, "pooling"), (check_maximum, "maxima")):
        for kind in TYPES:
            for seed in SEEDS:
                check(importlib.import_module(prefix + name), seed, kind)
                print(name, str(kind), seed, flush=True)
