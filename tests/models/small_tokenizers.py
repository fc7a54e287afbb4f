"""Small tokenizers in the files in which Hugging Face's repositories have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "square",
    "circle",
    "moves",
    "left",
    "right",
    "up",
    "down",
    "and",
    "then",
    "stops",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_tokenizer(folder: Path, kind: str, words: Sequence[str] = WORDS) -> str:
    """Write one like those of ``siglip``, ``siglip2``, ``clipa`` (BERT's) or ``xlm``; returns its folder."""
    backend, settings = {"siglip": _siglip, "siglip2": _siglip2, "clipa": _bert, "xlm": _xlm}[kind](words)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**30} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def _unigram(control: list[str], unknown: str, words: Sequence[str]) -> Tokenizer:
    pieces = [(word, 0.0) for word in control]
    pieces += [(f"▁{word}", -2.0) for word in words] + [("▁", -4.0)] + [(letter, -6.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=control.index(unknown)))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def _siglip(words: Sequence[str]) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = _unigram(["<pad>", "</s>", "<unk>"], "<unk>", words)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer, {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _siglip2(words: Sequence[str]) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = _unigram(["<pad>", "<eos>", "<bos>", "<unk>"], "<unk>", words)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer, {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}


def _xlm(words: Sequence[str]) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>", words)
    special = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return tokenizer, names | {"cls_token": "<s>", "sep_token": "</s>"}


def _bert(words: Sequence[str]) -> tuple[Tokenizer, dict[str, Any]]:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *LETTERS[1:], *(f"##{letter}" for letter in LETTERS)]
    ids = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(word, ids[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return tokenizer, names
