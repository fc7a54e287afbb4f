"""The moment of a video that a text is about: from the scores of its segments and the weights of the best one's frames.

1. Segments whose score lies within `NEAR` of the way from the video's best to its worst, and that follow each other
   without a gap around the best one, are one moment if together they are half as long again as a segment: an event that
   is longer than a segment.
2. Else, where other segments overlap the best one by more than half, the moment is as long as a segment, and begins at
   the mean of where they begin, weighted by their scores.
3. Where they do not, and the head keeps frames, the best segment is cut to the frames around the heaviest that weigh at
   least half as much: an event that is shorter.
4. A head without frames cuts it by the segments that overlap it (`_cut_by_overlaps`): what their scores say of the
   parts that they share with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NEAR = 0.1
LONGER = 1.5
HALF = 0.5
SHARPNESS = 8.0
"""Of the softmax of scores, laid out from 0 for the video's worst to 1 for its best."""


def find_moment(
    segments: Sequence[tuple[float, float]],
    scores: Sequence[float],
    times: Sequence[float],
    weights: Sequence[float],
) -> tuple[float, float]:
    """First and last second of the moment.

    Args:
        segments: of one video, in the order of time.
        scores: of each.
        times: seconds of the frames of the best segment.
        weights: of these frames; empty where the head keeps none.
    """
    best = max(range(len(scores)), key=lambda number: (scores[number], -number))
    first, last = _join(segments, scores, best)
    start, end = segments[best]
    if segments[last][1] - segments[first][0] >= LONGER * (end - start):
        return segments[first][0], segments[last][1]
    close = [number for number, other in enumerate(segments) if abs(other[0] - start) < HALF * (end - start)]
    if len(close) > 1:
        return _place_among(segments, scores, close, best)
    if weights:
        return _cut_by_frames(segments[best], times, weights)
    return _cut_by_overlaps(segments, scores, best)


def _join(segments: Sequence[tuple[float, float]], scores: Sequence[float], best: int) -> tuple[int, int]:
    """First and last segment that are as good as the best one, and follow each other around it."""
    if len(scores) < 3:
        return best, best
    least = scores[best] - NEAR * (scores[best] - min(scores))
    first = last = best
    while first > 0 and scores[first - 1] > least and segments[first - 1][1] >= segments[first][0]:
        first -= 1
    while last + 1 < len(scores) and scores[last + 1] > least and segments[last][1] >= segments[last + 1][0]:
        last += 1
    return first, last


def _place_among(
    segments: Sequence[tuple[float, float]], scores: Sequence[float], close: Sequence[int], best: int
) -> tuple[float, float]:
    """The best segment, moved to where those around it say that it is."""
    span = scores[best] - min(scores)
    if span <= 0:
        return segments[best]
    shares = [math.exp(SHARPNESS * (scores[number] - scores[best]) / span) for number in close]
    start = sum(share * segments[number][0] for share, number in zip(shares, close, strict=True)) / sum(shares)
    return start, start + segments[best][1] - segments[best][0]


def _cut_by_frames(
    segment: tuple[float, float], times: Sequence[float], weights: Sequence[float]
) -> tuple[float, float]:
    """The stretch around the heaviest frame whose frames weigh half as much or more; a frame lasts to half-way."""
    peak = max(range(len(times)), key=lambda number: (weights[number], -number))
    first = last = peak
    while first > 0 and weights[first - 1] >= HALF * weights[peak]:
        first -= 1
    while last + 1 < len(times) and weights[last + 1] >= HALF * weights[peak]:
        last += 1
    start = segment[0] if first == 0 else (times[first - 1] + times[first]) / 2
    end = segment[1] if last + 1 == len(times) else (times[last] + times[last + 1]) / 2
    return start, end


def _cut_by_overlaps(
    segments: Sequence[tuple[float, float]], scores: Sequence[float], best: int
) -> tuple[float, float]:
    """The best segment without what it shares with the worse of its two neighbours, if that one is as bad as any.

    A neighbour that scores as the video's worst shares nothing of the event with it; the better neighbour may.
    """
    start, end = segments[best]
    worst = min(scores)
    least = worst + 2 * NEAR * (scores[best] - worst)
    before = segments[best - 1] if best > 0 else None
    after = segments[best + 1] if best + 1 < len(segments) else None
    cut_start = before[1] if before and scores[best - 1] <= least else start
    cut_end = after[0] if after and scores[best + 1] <= least else end
    if cut_start < cut_end:
        return max(start, cut_start), min(end, cut_end)
    return start, end
