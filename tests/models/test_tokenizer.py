"""Captions of any kind become bounded token ids."""

from __future__ import annotations

import open_clip
import pytest
import torch

from glscl.models.tokenizer import tokenize

START, END = 49406, 49407


def test_agrees_with_open_clip_on_ordinary_captions() -> None:
    captions = ["a man is playing the guitar", "Two dogs run; one isn't happy!", "", "café — naïve 日本語 😀"]
    ids, truncated = tokenize(captions, 77)
    assert torch.equal(ids, open_clip.get_tokenizer("ViT-B-32")(captions))
    assert ids.dtype == torch.int64
    assert not truncated.any()


def test_long_captions_are_cut_and_say_so() -> None:
    ids, truncated = tokenize(["one two three four", "one two three"], 5)
    assert truncated.tolist() == [True, False]
    assert ids[:, 0].tolist() == [START, START]
    assert ids[:, -1].tolist() == [END, END]


@pytest.mark.parametrize(
    "caption", ["word " * 10_000, "x" * 200_000, "!" * 200_000, "😀" * 50_000, "a" + " " * 90_000 + "b"]
)
def test_hostile_lengths_are_bounded(caption: str) -> None:
    ids, truncated = tokenize([caption], 32)
    assert truncated.item()
    assert ids.shape == (1, 32)
    assert (ids == END).sum() == 1


@pytest.mark.parametrize(
    "caption", ["\ud800 broken", "a\x00b", "\u202eright to left\u202c", "x <end_of_text> y", "&lt;end_of_text&gt; z"]
)
def test_odd_unicode_has_one_end_token(caption: str) -> None:
    ids, _ = tokenize([caption], 16)
    assert (ids == END).sum() == 1
    assert (ids == START).sum() == 1
