"""Sentences about everyday videos, to fit a first stage to where a library has too few captions of its own."""

from __future__ import annotations

import itertools
import random

_WHO = (
    *("a man", "a woman", "a child", "two people", "a group of friends", "a dog", "a cat", "a bird", "a chef"),
    *("a singer", "a player", "a crowd", "a teacher", "an animated character", "a horse", "a car", "a train"),
)
_DOES = (
    *("is talking", "is running", "is cooking", "plays music", "is dancing", "is swimming", "rides a bike"),
    *("jumps over something", "is eating", "throws a ball", "is painting", "opens a box", "shows a phone"),
    *("drives past", "is sleeping", "builds something", "moves to the left", "falls down", "turns around"),
)
_WHERE = (
    *("in a kitchen", "on a stage", "in the street", "on a beach", "in the snow", "in a room", "on a field"),
    *("at night", "in the water", "in a forest", "in front of a house", "in a video game", "close to the camera"),
)


def everyday_texts(count: int) -> list[str]:
    """So many different sentences, the same every time."""
    sentences = [" ".join(words) for words in itertools.product(_WHO, _DOES, _WHERE)]
    return random.Random(0).sample(sentences, min(count, len(sentences)))
