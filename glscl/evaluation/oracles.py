"""Attribute oracles of a synthetic test set: what attributes alone would score, and which ones a model gets right.

An oracle knows the true value of some attributes of every text and every video and nothing else; among the videos that
agree with a text it chooses at random. Its expected R@1 is the mean over videos of 1 / (videos of the same values).
All figures are in per cent.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from glscl.evaluation.results import AttributeAccuracy, Oracles

Attributes = Sequence[Mapping[str, str]]


def measure_oracles(videos: Attributes) -> Oracles:
    """Expected R@1 of knowing one attribute, and two, in the videos' order of naming.

    Raises:
        ValueError: the videos do not all name the same attributes.
    """
    names = _names(videos)
    return Oracles(
        single={name: _expected_recall(videos, (name,)) for name in names},
        pair={"+".join(pair): _expected_recall(videos, pair) for pair in combinations(names, 2)},
    )


def attribute_accuracy(
    videos: Attributes, text_to_video: Sequence[int], first_matches: Sequence[int]
) -> dict[str, AttributeAccuracy]:
    """How often the first video retrieved has the text's value, for each attribute.

    ``text_to_video`` has per text the index of the video it describes, ``first_matches`` of the video ranked first.

    Raises:
        ValueError: no texts, lists of different lengths, or videos that do not all name the same attributes.
    """
    if len(text_to_video) != len(first_matches) or not text_to_video:
        raise ValueError(f"{len(text_to_video)} texts with {len(first_matches)} first matches")
    names = _names(videos)
    owners = [videos[index] for index in text_to_video]
    full = Counter(_key(video, names) for video in videos)
    table = {}
    for name in names:
        others = tuple(other for other in names if other != name)
        values = Counter(video[name] for video in videos)
        rest = Counter(_key(video, others) for video in videos)
        right = sum(owner[name] == videos[first][name] for owner, first in zip(owners, first_matches, strict=True))
        by_chance = sum(values[owner[name]] for owner in owners)
        without = sum(full[_key(owner, names)] / rest[_key(owner, others)] for owner in owners)
        table[name] = AttributeAccuracy(
            accuracy=100.0 * (right / len(owners)),
            chance=100.0 * (by_chance / (len(owners) * len(videos))),
            ignoring=100.0 * (without / len(owners)),
        )
    return table


def _expected_recall(videos: Attributes, known: tuple[str, ...]) -> float:
    """Each group of videos that agree in the known attributes adds one hit: n videos, each drawn 1 time in n."""
    return 100.0 * (len({_key(video, known) for video in videos}) / len(videos))


def _key(video: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(video[name] for name in names)


def _names(videos: Attributes) -> tuple[str, ...]:
    names = tuple(videos[0]) if videos else ()
    for index, video in enumerate(videos):
        if set(video) != set(names):
            raise ValueError(f"video {index} names attributes {sorted(video)}, video 0 names {sorted(names)}")
    return names
