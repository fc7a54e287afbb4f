"""What knowing attributes alone would score on a synthetic test set, and which attributes a model's answers get right.

An oracle knows the true value of some attributes of every text and every video and nothing else; among the videos that
agree with a text it chooses at random. Its expected R@1 is the mean over videos of 1 / (videos of the same values). A
model that has learned a domain is far above every oracle of one or two attributes, and above the oracle that knows
everything but the order of events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

Attributes = Sequence[Mapping[str, str]]


def single_attribute_oracles(videos: Attributes) -> dict[str, float]:
    """Expected R@1, 0 to 1, of knowing one attribute, for each attribute (in the videos' order of naming).

    Raises:
        ValueError: the videos do not all name the same attributes.
    """
    return {name: _expected_recall(videos, (name,)) for name in _names(videos)}


def attribute_pair_oracles(videos: Attributes) -> dict[str, float]:
    """Expected R@1, 0 to 1, of knowing two attributes; keys are ``"first+second"``.

    Raises:
        ValueError: the videos do not all name the same attributes.
    """
    return {"+".join(pair): _expected_recall(videos, pair) for pair in combinations(_names(videos), 2)}


def attribute_accuracy(
    videos: Attributes, text_to_video: Sequence[int], first_matches: Sequence[int]
) -> dict[str, dict[str, float]]:
    """How often the first video retrieved has the text's value of each attribute.

    Args:
        videos: attributes of each video.
        text_to_video: per text, the index of the video it describes.
        first_matches: per text, the index of the video ranked first.

    Returns:
        per attribute: ``accuracy``, the share of texts, and ``chance``, that share for a video drawn at random. Where
        other attributes narrow the choice, a model that ignores an attribute is right more often than by chance:
        ``ignoring`` is the accuracy of the oracle that knows every attribute but this one.

    Raises:
        ValueError: no texts, lists of different lengths, or videos that do not all name the same attributes.
    """
    if len(text_to_video) != len(first_matches) or not text_to_video:
        raise ValueError(f"{len(text_to_video)} texts with {len(first_matches)} first matches")
    names = _names(videos)
    table = {}
    for name in names:
        others = tuple(other for other in names if other != name)
        values = Counter(video[name] for video in videos)
        rest = Counter(_key(video, others) for video in videos)
        full = Counter(_key(video, names) for video in videos)
        owners = [videos[index] for index in text_to_video]
        right = sum(owner[name] == videos[first][name] for owner, first in zip(owners, first_matches, strict=True))
        table[name] = {
            "accuracy": right / len(owners),
            "chance": sum(values[owner[name]] for owner in owners) / (len(owners) * len(videos)),
            "ignoring": sum(full[_key(owner, names)] / rest[_key(owner, others)] for owner in owners) / len(owners),
        }
    return table


def _expected_recall(videos: Attributes, known: tuple[str, ...]) -> float:
    """Each group of videos that agree in the known attributes adds one hit: n videos, each found in 1 of n draws."""
    return len({_key(video, known) for video in videos}) / len(videos) if videos else 0.0


def _key(video: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(video[name] for name in names)


def _names(videos: Attributes) -> tuple[str, ...]:
    names = tuple(videos[0]) if videos else ()
    for index, video in enumerate(videos):
        if set(video) != set(names):
            raise ValueError(f"video {index} names attributes {sorted(video)}, video 0 names {sorted(names)}")
    return names
