"""Recall of the two stages of a search against the head's exact scores of everything."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glscl.errors import UserError
from glscl.evaluation.similarity import rows_of
from glscl.index.search import VideoIndex

TEXTS_AT_ONCE = 16
_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found.

    Attributes:
        texts: how many.
        k: of recall@k.
        recall: mean share of the k best videos of all that the search finds, too.
        low: end of its 95 % interval.
        high: other end.
        first_right: share of texts whose best video is the same.
        candidates: segments that the first stage handed to the head; 0 without one.
        search_ms: median time of a search, from an encoded text to the videos.
        exact_ms: of scoring everything, per text.
    """

    texts: int
    k: int
    recall: float
    low: float
    high: float
    first_right: float
    candidates: int
    search_ms: float
    exact_ms: float


def check_index(index: VideoIndex, texts: Sequence[str] | None = None, k: int = 10, most: int = 200) -> CheckReport:
    """Search with texts, by default captions of the library drawn at random, and compare with the exact scores.

    Raises `UserError`: there are no texts.
    """
    if texts is None:
        texts = list(dict.fromkeys(caption for entry in index.videos() for caption in entry.captions))
        if not texts:
            raise UserError(f"{index.folder}: the library has no captions; --texts names a file of texts")
    drawn = np.random.default_rng(1).permutation(len(texts))[:most]
    cache = index.model.encode_text([texts[row] for row in drawn]).caches.read(range(len(drawn)), index.model.device)
    found: list[list[str]] = []
    seconds: list[float] = []
    for row in range(len(drawn)):
        began = time.perf_counter()
        found.append([one.id for one in index.search_encoded(rows_of(cache, range(row, row + 1)), k)])
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    exact: list[list[str]] = []
    for start in range(0, len(drawn), TEXTS_AT_ONCE):
        exact += index.best_of_all(rows_of(cache, range(start, start + TEXTS_AT_ONCE)), k)
    spent = time.perf_counter() - began
    shares = [len({*some} & {*best}) / len(best) for some, best in zip(found, exact, strict=True)]
    recall = float(np.mean(shares))
    return CheckReport(
        texts=len(drawn),
        k=k,
        recall=recall,
        **_interval(recall, len(drawn)),
        first_right=float(np.mean([some[:1] == best[:1] for some, best in zip(found, exact, strict=True)])),
        candidates=index.candidates,
        search_ms=1e3 * float(np.median(seconds)),
        exact_ms=1e3 * spent / len(drawn),
    )


def _interval(mean: float, count: int) -> dict[str, float]:
    """Wilson's 95 % interval of a mean of numbers from 0 to 1, whose variance is that of a share at most."""
    centre = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
    return {"low": max(0.0, centre - half), "high": min(1.0, centre + half)}
