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
def _tokenizer(clean: str) -> "SimpleTokenizer":
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(clean=clean)


def tokenize(captions: Sequence[str], max_words: int, clean: str = "lower") -> tuple[Tensor, Tensor]:
    """Encode A captions as ``<start> tokens <end> 0 0 …``, ``max_words`` long; control words in the text are dropped.

    What is very long is cut before it is encoded, so that ``max_words`` bounds the cost. ``clean`` is open_clip's name
    of what is done to a caption first. Returns ids (A, max_words) int64, and truncated (A,) bool: True where a caption
    did not fit. Towers with another tokenizer: `glscl.models.caption_tokenizer.build_tokenizer`.
    """
    ids = torch.zeros(len(captions), max_words, dtype=torch.int64)
    truncated = torch.zeros(len(captions), dtype=torch.bool)
    tokenizer = _tokenizer(clean)
    for row, caption in enumerate(captions):
        text, cut = bound(caption, max_words, _LONGEST_CHUNK)
        tokens = [token for token in tokenizer.encode(text) if token not in tokenizer.all_special_ids]
        truncated[row] = cut or len(tokens) > max_words - 2
        tokens = [tokenizer.sot_token_id, *tokens[: max_words - 2], tokenizer.eot_token_id]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return ids, truncated


def bound(caption: str, max_words: int, longest_chunk: int | None = None) -> tuple[str, bool]:
    """The beginning of a caption, valid Unicode, as long as ``max_words`` tokens can need; and whether it was cut.

    What has no space in it is cut at ``longest_chunk`` characters, for tokenizers whose cost is not linear in them.
    """
    limit = max_words * _CHARACTERS_PER_WORD
    head = caption[: 4 * limit].encode("utf-8", "replace").decode("utf-8")
    chunks = head.split()
    text = " ".join(chunk[:longest_chunk] for chunk in chunks)
    rest = bool(caption[4 * limit :].strip()) or len(text) > limit
    return text[:limit], rest or any(longest_chunk is not None and len(chunk) > longest_chunk for chunk in chunks)
