"""The tokenizer of a model's towers: CLIP's byte pairs, or the one that open_clip takes from Hugging Face for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glscl.errors import UserError
from glscl.models.options import ModelConfig
from glscl.models.tokenizer import bound, tokenize

if TYPE_CHECKING:
    from open_clip.tokenizer import HFTokenizer

    from glscl.models.architectures import Architecture

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""From A captions to ids (A, W) int64, and (A,) bool, True where a caption did not fit. It can be pickled."""


def build_tokenizer(config: ModelConfig, *, fetch: bool = True) -> Tokenize:
    """The tokenizer of a configuration, ``config.max_words`` long; `glscl.models.text_files` says where it comes from.

    Without ``fetch`` nothing is fetched, whatever the configuration names. Raises `UserError`: no such architecture, no
    tokenizer, or one that does not fit the text tower.
    """
    from glscl.models.architectures import find_architecture  # with open_clip, seconds to import

    architecture = find_architecture(config.clip, fetch=fetch)
    text = architecture.text
    options = text.tokenizer_kwargs or {}
    if not text.hf_tokenizer_name:
        return partial(tokenize, max_words=config.max_words, clean=options.get("clean", "lower"))
    from glscl.models.text_files import find_tokenizer, require_transformers

    require_transformers(architecture)
    folder = find_tokenizer(architecture, config.pretrained, config.tokenizer, fetch=fetch)
    tokenizer = PretrainedTokenizer(_load(architecture, folder, config.max_words), config.max_words, text.vocab_size)
    _check(architecture, folder, tokenizer)
    return tokenizer


class PretrainedTokenizer:
    """A tokenizer from Hugging Face, as open_clip uses it; captions are bounded, control words in them are dropped.

    Args:
        inner: open_clip's.
        max_words: W.
        vocabulary: number of tokens that the text tower knows.
    """

    def __init__(self, inner: HFTokenizer, max_words: int, vocabulary: int) -> None:
        self.inner, self.max_words, self.vocabulary = inner, max_words, vocabulary
        self._control_words = re.compile("|".join(map(re.escape, inner.tokenizer.all_special_tokens)))

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode A captions; see `Tokenize`. Raises `UserError`: a token that the text tower does not know."""
        texts, cut = [], []
        for caption in captions:
            text, was_cut = bound(caption, self.max_words)
            texts.append(" ".join(self._control_words.sub(" ", self.inner.clean_fn(text)).split()))
            cut.append(was_cut)
        if not texts:
            return torch.zeros(0, self.max_words, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
        ids = self._encode(texts)
        if int(ids.max()) >= self.vocabulary:
            raise UserError(
                f"model.tokenizer: it has a token {int(ids.max())}, and the text tower knows {self.vocabulary}; give "
                "the tokenizer that belongs to model.clip"
            )
        lengths = [len(tokens) for tokens in self.inner.tokenizer(texts).input_ids]
        return ids, torch.tensor([c or n > self.max_words for c, n in zip(cut, lengths, strict=True)])

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """Ids (A, W) of texts that are clean already, as open_clip's tokenizer encodes them."""
        ids: Tensor = self.inner.tokenizer(
            list(texts), return_tensors="pt", max_length=self.max_words, padding="max_length", truncation=True
        ).input_ids
        if self.inner.strip_sep_token:
            ids = ids.masked_fill(ids == self.inner.tokenizer.sep_token_id, 0)
        return ids


def _load(architecture: Architecture, folder: str, max_words: int) -> HFTokenizer:
    from open_clip.tokenizer import HFTokenizer

    options = dict(architecture.text.tokenizer_kwargs or {})
    try:
        return HFTokenizer(folder, context_length=max_words, trust_remote_code=False, local_files_only=True, **options)
    except Exception as error:  # of the files, or of packages that this kind of tokenizer needs
        detail = str(error).strip()[:300]
        raise UserError(
            f"model.tokenizer: no tokenizer can be read from {folder} ({type(error).__name__}: {detail})"
        ) from None


def _check(architecture: Architecture, folder: str, tokenizer: PretrainedTokenizer) -> None:
    """Refuse a tokenizer that fills captions up in another way than the text tower was trained with."""
    inner = tokenizer.inner.tokenizer
    if inner.padding_side != "right" or inner.pad_token_id is None:
        raise UserError(f"model.tokenizer: the tokenizer in {folder} does not fill captions up at their end")
    if architecture.sees_padding and inner.pad_token_id != architecture.padding:
        raise UserError(
            f"model.tokenizer: the tokenizer in {folder} fills captions up with token {inner.pad_token_id}, and the "
            f"text tower of '{architecture.clip}' expects {architecture.padding}: give the tokenizer that belongs to "
            f"it, or set text_cfg.pad_id in the description of the architecture"
        )
