"""Typed results of what a study says of factors: shifts of captions and pictures, and orders that change."""

from collections.abc import Mapping
from typing import Literal, TypeVar

from glscl.evaluation.metrics import Direction
from glscl.evaluation.results import Section
from glscl.study.factors import Cell
from glscl.study.statistics import LEVEL, Interval, holm

Key = TypeVar("Key")
Factor = Literal["captions", "pictures", "interaction", "total"]


class Effect(Section):
    """A change of R@1 in points, with its 95 % interval; paired over queries, seeds a random effect."""

    estimate: float
    low: float
    high: float
    p_value: float
    adjusted_p: float  # after Holm's correction over its family
    shown: bool  # the interval excludes 0 and the adjusted p-value is below 0.05
    standard_error: float


class Decomposition(Section):
    """The change of a variant's R@1 from the domain trained on to one of other captions and pictures, split in parts.

    The total is the sum of the other three. With ``minus``, everything is the difference of the two variants.
    """

    condition: str
    source: str  # what was trained on
    variant: str
    minus: str | None  # the variant that is taken off
    direction: Direction
    domains: dict[Cell, str]  # the four test sets
    recall: dict[Cell, float]  # R@1 there, in per cent, mean over seeds; a difference with ``minus``
    effects: dict[Factor, Effect]
    paired: bool  # whether all four test sets show the same scenes, by their videos' ids
    videos: int  # independent videos, over all four where they are not paired
    seeds: int  # fewest of any variant


class OrderOfPair(Section):
    """The difference ``first - second`` in two conditions, and how it changes."""

    first: str
    second: str
    one: Effect
    other: Effect
    change: Effect  # in the other condition, minus in the one


class OrderChange(Section):
    """Whether the order of variants is the same in two conditions: text-to-video R@1, mean over cells."""

    one: str  # condition
    other: str
    relation: str  # of the cells: in-domain or cross-domain
    what: dict[str, str]  # what differs between them: key -> ``one → other``
    tau: float | None  # Kendall's, of the mean R@1; None where all are equal
    recall: dict[str, tuple[float, float]]  # variant -> R@1 in both
    pairs: list[OrderOfPair]


def correct(family: Mapping[Key, Interval]) -> dict[Key, Effect]:
    """Effects of one family, with Holm's correction."""
    adjusted = holm({key: interval.p_value or 0.0 for key, interval in family.items()})
    return {
        key: Effect(
            estimate=interval.estimate,
            low=interval.low,
            high=interval.high,
            p_value=interval.p_value or 0.0,
            adjusted_p=adjusted[key],
            shown=interval.excludes_null and adjusted[key] <= 1 - LEVEL,
            standard_error=interval.standard_error,
        )
        for key, interval in family.items()
    }
