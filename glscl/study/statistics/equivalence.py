"""Two one-sided tests of equivalence: whether a paired difference is shown to be smaller than a margin.

"No difference shown" may only mean that too little was measured. That two models are equal within ``±m`` points is a
claim of its own (Schuirmann 1987): both "the difference is m or more" and "it is -m or less" must be refuted, each at
5 %. The test stands on the interval of the difference, so queries are paired and seeds are a random effect, and its
one-sided p-values are tails on that interval's scale (`Tail`): it is at most 0.05 about where the 90 % interval lies
within the margins.

Few queries can make the interval too short: on 100 queries of which none differs nothing varies, and yet a true
difference of one point leaves no trace there in 37 % of cases. If it is m points, though, at least m % of queries
differ by 100 points, so the variance between queries is at least ``m (100 - m)``. The test takes no less.
"""

from dataclasses import replace

import numpy as np

from glscl.study.statistics.interval import LEVEL, Interval

_MOST = 100.0  # points that a query's value can differ by


def equivalence_p(difference: Interval, margin: float) -> float:
    """p-value of ``|difference| >= margin``, in points of a metric in per cent; small where the models are equal.

    Raises `ValueError`: the margin is not within 0 and 100 points, or ``difference`` is not one.
    """
    if not 0 < margin < _MOST or difference.null != 0:
        raise ValueError(f"a difference needs a margin between 0 and {_MOST:g} points, not {margin}")
    tail, variance = difference.tail, difference.standard_error**2
    least = margin * (_MOST - margin) / tail.groups
    widened = variance + max(0.0, least - (1 - tail.share) * variance)
    tail = replace(tail, share=tail.share * variance / widened)
    p_value = 0.0
    for side, reach in (
        (1, difference.high - difference.estimate),
        (-1, difference.estimate - difference.low),
    ):
        half = reach * np.sqrt(widened / variance) if reach > 0 else tail.reach(1 - LEVEL) * np.sqrt(widened)
        distance = margin - side * difference.estimate
        one_sided = tail.p_value(abs(distance), float(half)) / 2
        p_value = max(p_value, one_sided if distance > 0 else 1 - one_sided)
    return p_value
