"""Captions to token ids: CLIP's byte-pair encoding, bounded in time and safe for any text."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

VOCABULARY = 49408
_CHARACTERS_PER_WORD = 32  # of a caption, per token of the budget: far above any language's average
_LONGEST_CHUNK = 128  # characters without a space; merging is quadratic in this


@cache
def _tokenizer() -> "SimpleTokenizer":
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def tokenize(captions: Sequence[str], max_words: int) -> tuple[Tensor, Tensor]:
    """Encode A captions as ``<start> tokens <end> 0 0 …``, ``max_words`` long; control words in the text are dropped.

    What is very long is cut before it is encoded, so that ``max_words`` bounds the cost. Returns ids (A, max_words)
    int64, and truncated (A,) bool: True where a caption did not fit.
    """
    ids = torch.zeros(len(captions), max_words, dtype=torch.int64)
    truncated = torch.zeros(len(captions), dtype=torch.bool)
    tokenizer = _tokenizer()
    for row, caption in enumerate(captions):
        text, cut = _bounded(caption, max_words * _CHARACTERS_PER_WORD)
        tokens = [token for token in tokenizer.encode(text) if token not in tokenizer.all_special_ids]
        truncated[row] = cut or len(tokens) > max_words - 2
        tokens = [tokenizer.sot_token_id, *tokens[: max_words - 2], tokenizer.eot_token_id]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids, truncated


def _bounded(caption: str, limit: int) -> tuple[str, bool]:
    """The beginning of a caption, valid Unicode, words of bounded length; and whether anything was left out."""
    head = caption[: 4 * limit].encode("utf-8", "replace").decode("utf-8")
    chunks = head.split()
    text = " ".join(chunk[:_LONGEST_CHUNK] for chunk in chunks)
    rest = bool(caption[4 * limit :].strip()) or len(text) > limit
    return text[:limit], rest or any(len(chunk) > _LONGEST_CHUNK for chunk in chunks)
