"""What a text attends to in a video: weights of its frames, by head, and similarities of concepts."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from glscl.evaluation.caches import Cache
from glscl.models.heads.base import Head
from glscl.models.heads.scoring import wide
from glscl.models.heads.xpool import XPool

SHARPNESS = 20.0
"""Of the softmax of cosines that says which frames a word meets, where a head takes its best one alone."""


def frame_weights(head: Head, text: Cache, video: Cache) -> Tensor | None:
    """Weights (B, F) of the frames of B videos for one text (leading dimension 1), sum 1; None of other heads.

    Heads that pool frames by the text (glscl, dicosa, gare, glccl: a softmax of products with the sentence; xpool,
    tmass, tcmgc: learned attention) give the weights that they score with; of heads with several attention heads it is
    the mean. Heads in which words meet their best frame (wti, uatvr, video_colbert, xclip) give, for every word, a
    softmax of its cosines with the frames, and of these the mean, weighted as the head weighs words.
    """
    function = _BY_HEAD.get(head.name)
    if function is None:
        return None
    with torch.no_grad():
        weights = function(head, text, video)
    if weights is None:
        return None
    return weights / weights.sum(-1, keepdim=True).clamp_min(1e-12)


def concept_similarities(text: Cache, video: Cache) -> Tensor | None:
    """Cosines (B, K) of a text's concepts with those of B videos; None of heads without concepts."""
    if "concepts" not in text:
        return None
    return torch.einsum("kd,bkd->bk", text["concepts"][0].float(), video["concepts"].float())


def _by_sentence(name: str) -> Callable[[Head, Cache, Cache], Tensor | None]:
    def weigh(head: Head, text: Cache, video: Cache) -> Tensor | None:
        if "frames" not in video:  # glscl without its global part
            return None
        query = wide(text[name])[0]
        sentence = query[0] if query.ndim > 1 else query
        logits = wide(video["frames"]) @ sentence / head.options.tau  # type: ignore[union-attr, operator]
        return _softmax(logits, video["frame_mask"])

    return weigh


def _by_attention(head: Head, text: Cache, video: Cache) -> Tensor:
    pool = cast(XPool, getattr(head, "pool", head))
    weights = pool.weights(text, video)[..., 0]  # (b, heads F)
    mean: Tensor = weights.unflatten(-1, (pool.heads, -1)).mean(1)
    return mean


def _by_keys(head: Head, text: Cache, video: Cache) -> Tensor:
    key = wide(video["key"])  # (b, heads, F, D / heads)
    query = wide(text["query"])[0, 0].unflatten(-1, (key.shape[1], -1))  # the sentence's
    logits = torch.einsum("hd,bhfd->bhf", query, key)
    return _softmax(logits, video["frame_mask"].unsqueeze(1)).mean(1)


def _by_words(words: str, frames: str, masks: tuple[str, str], weights: str | None) -> Callable[..., Tensor]:
    def weigh(head: Head, text: Cache, video: Cache) -> Tensor:
        real = text[masks[0]][0].float()
        share = text[weights][0].float() if weights else real / real.sum().clamp_min(1)
        cosines = torch.einsum("wd,bfd->bwf", wide(text[words])[0], wide(video[frames]))
        mask = video[masks[1]]
        return torch.einsum("w,bwf->bf", share, _softmax(SHARPNESS * cosines, mask.unsqueeze(1)))

    return weigh


def _uatvr(head: Head, text: Cache, video: Cache) -> Tensor:
    """Of the frames without the learned tokens behind them."""
    frames = video["tokens"].shape[1] - head.options.extra_video_tokens  # type: ignore[union-attr, operator]
    own = {name: video[name][:, :frames] for name in ("tokens", "mask")}
    return _by_words("tokens", "tokens", ("mask", "mask"), "weights")(head, text, own)


def _softmax(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(-1) * mask


_BY_HEAD: dict[str, Callable[[Head, Cache, Cache], Tensor | None]] = {
    "glscl": _by_sentence("sentence"),
    "dicosa": _by_sentence("sentence"),
    "gare": _by_sentence("sentence"),
    "glccl": _by_sentence("queries"),
    "xpool": _by_attention,
    "tmass": _by_attention,
    "tcmgc": _by_keys,
    "wti": _by_words("features", "features", ("mask", "mask"), "weights"),
    "uatvr": _uatvr,
    "video_colbert": _by_words("tokens", "frames", ("mask", "frame_mask"), "share"),
    "xclip": _by_words("tokens", "frames", ("token_mask", "frame_mask"), None),
}
