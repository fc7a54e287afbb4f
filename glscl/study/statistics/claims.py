"""The sentence that a difference between two models allows."""

from __future__ import annotations

from glscl.evaluation.metrics import METRICS
from glscl.study.statistics.interval import LEVEL, Interval


def claim(
    difference: Interval, first: str, second: str, metric: str, where: str = "", adjusted_p: float | None = None
) -> str:
    """The sentence that a difference allows, and no more.

    Args:
        difference: `QueryBootstrap.difference` of ``first`` and ``second``.
        first: name of the first model.
        second: name of the second.
        metric: key of `METRICS`.
        where: test set or condition, as in ``"on activitynet"``.
        adjusted_p: of `holm`; a difference that does not survive the correction is not shown either.
    """
    kind = METRICS[metric]
    place = f" {where}" if where else ""
    numbers = _signed(difference.estimate, difference.low, difference.high)
    figures = f"{numbers[0]} {kind.unit} (95 % interval {numbers[1]} to {numbers[2]})"
    if not difference.excludes_null:
        verdict = f"No difference shown between {first} and {second} in {metric}{place}: {figures}."
    elif adjusted_p is not None and adjusted_p > 1 - LEVEL:
        verdict = (
            f"No difference shown between {first} and {second} in {metric}{place}: {figures}, "
            f"but p = {adjusted_p:.2g} after Holm's correction for the other comparisons."
        )
    else:
        better = (difference.estimate > 0) == kind.higher_is_better
        verdict = f"{first} is {'better' if better else 'worse'} than {second} in {metric}{place}: {figures}."
    return f"{verdict} {difference.note}"


def _signed(*values: float) -> list[str]:
    """Numbers with sign, all to the same decimals: one, or as many as keep a number that is not 0 from reading 0."""
    decimals = 1
    while decimals < 4 and any(value != 0 and round(abs(value), decimals) == 0 for value in values):
        decimals += 1
    return [f"{value:+.{decimals}f}".replace("-", "−") if round(value, decimals) else "0" for value in values]
