"""The results of a sweep, as ``results.json`` holds them and the page shows them. Scores are in per cent."""

from __future__ import annotations

from collections.abc import Mapping

from glscl.evaluation.results import parse
from glscl.runs.summary import Section, Summary
from tune.space import Value
from tune.trials import Trial


class Parameter(Section):
    """A searched key."""

    key: str
    default: Value
    log: bool
    choices: list[str] | None
    """None for numbers."""
    low: int | float | None
    high: int | float | None
    words: str
    """How values were drawn."""


class ImportanceShare(Section):
    """Share of the objective's variance that a key explains, with the 5th and 95th percentile of the resamples."""

    key: str
    estimate: float
    low: float
    high: float


class Importance(Section):
    """fANOVA over the scores at the first scoring; no parameters where trials are too few."""

    trials: int
    step: int
    resamples: int
    parameters: list[ImportanceShare]


class TradeOff(Section):
    """The finished trial that serves a domain best, and its distance from the best on each other one."""

    domain: str
    trial: str
    values: dict[str, Value]
    scores: dict[str, float]
    losses: dict[str, float]


class Budget(Section):
    """Steps of all trainings of the trials that have ended."""

    ended: int
    stopped: int
    failed: int
    trained: int
    full: int
    """Without early stopping."""


class Difference(Section):
    """Winner minus default, paired by seed; ``name`` is ``objective`` or a domain."""

    name: str
    winner: list[float]
    default: list[float]
    estimate: float
    low: float | None
    """None for one seed."""
    high: float | None


class Confirmation(Section):
    """The winner and the default configuration, trained with seeds that the search did not use."""

    seeds: list[int]
    differences: list[Difference]


class SweepResults(Summary):
    """Everything that the page shows."""

    objective: str
    metric: str
    searcher: str
    scheduler: str
    seed: int
    planned: int
    steps: int
    first: int
    trainings: int
    domains: list[str]
    parameters: list[Parameter]
    trials: list[Trial]
    best: str | None
    best_file: str
    importance: Importance
    trade_offs: list[TradeOff]
    budget: Budget
    pareto: list[str]
    confirmation: Confirmation | None


def parse_sweep(results: Mapping[str, object] | SweepResults) -> SweepResults:
    """Check the structure of ``results``.

    Raises:
        UserError: a key is missing or of another type; names the first one.
    """
    return parse(SweepResults, results, "sweep", "glscl sweep")
